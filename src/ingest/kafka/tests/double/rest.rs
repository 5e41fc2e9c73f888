//! What the double hands on to its store as it is, call by call.

use super::Double;
use crate::event::Item;
use crate::feature::Group;
use crate::store::*;
use async_trait::async_trait;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Double {
    /// Appends acknowledged so far.
    pub fn appends(&self) -> usize {
        self.acknowledged.lock().len()
    }
}

/// Implements a subject: these calls go to the store in use, the rest stands behind them.
macro_rules! hand_on {
    ($subject:ident { $($call:ident($($arg:ident: $kind:ty),*) -> $answer:ty;)* } $($own:item)*) => {
        #[async_trait]
        impl $subject for Double {
            $(async fn $call(&self, $($arg: $kind),*) -> StoreResult<$answer> {
                self.store()?.$call($($arg),*).await
            })*
            $($own)*
        }
    };
}

hand_on! {
    Histories {
        append_bulk_each(spaces: &[String], batches: &[UserBatch]) -> Each<AppendOutcome>;
        histories_each(users: &[String]) -> Each<Option<UserHistory>>;
        states_each(spaces: &[String], users: &[String]) -> Each<Option<UserMarks>>;
        held_back(spaces: &[String], place: &str) -> (Vec<String>, String);
        release_held_back(users: &[String]) -> ();
        quiet_users(for_ms: i64, at_ms: i64, place: &str) -> (Vec<(String, u64)>, String);
        item_user_counts(items: &[String]) -> Vec<u32>;
    }

    async fn append_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        Double::append(self, spaces, batches).await
    }
}

hand_on! {
    Features {
        feature_groups_each(space: &str, users: &[String], groups: &[Group]) -> Each<Option<StoredFeatures>>;
        features(space: &str, users: &[String]) -> Vec<Option<StoredFeatures>>;
        put(space: &str, put: FeaturePut) -> PutOutcome;
        add_referrer(space: &str, neighbour: &str, user: &str) -> usize;
        remove_referrer(space: &str, neighbour: &str, user: &str) -> ();
        referrer_counts_each(space: &str, neighbours: &[String]) -> Each<usize>;
        referrers(space: &str, neighbour: &str) -> Vec<String>;
    }
}

hand_on! {
    DueQueue {
        mark_due(queue: Queue, entries: &[DueEntry]) -> ();
        mark_awaited(users: &[String], due_ms: i64, until_ms: i64) -> ();
        claim(queue: Queue, limit: usize, lease: Duration) -> Vec<Claim>;
        renew(queue: Queue, claim: &Claim, lease: Duration) -> bool;
        release(queue: Queue, claim: &Claim) -> bool;
        queue_depth(queue: Queue) -> QueueDepth;
        sweep_step(spaces: &[String], place: &str) -> SweepStep;
        forget_due(user: &str) -> ();
    }
}

hand_on! {
    Feeds {
        append_vector(space: &str, vector: &FreshVector) -> ();
        vectors_after(space: &str, cursor: &FeedCursor, limit: usize) -> FeedPage<FreshVector>;
        put_items(items: &[Item]) -> ();
        items_after(cursor: &FeedCursor, limit: usize) -> FeedPage<Item>;
    }
}

hand_on! {
    Erasures {
        note_space(space: &str) -> ();
        spaces() -> Vec<String>;
        note_erasure(user: &str) -> Erasure;
        erasures() -> Vec<Erasure>;
        unfinished_erasures() -> Vec<Erasure>;
        file_erasures(place: &str) -> String;
        erase_user(erasure: &Erasure) -> UserState;
        quiet_time(at_most_ms: i64) -> i64;
        plan_idle_erasure(user: &str, plan: &IdlePlan) -> Option<IdleErasure>;
        idle_erasures() -> Vec<IdleErasure>;
        erase_idle_user(idle: &IdleErasure) -> (UserState, bool);
        settle_idle_erasure(idle: &IdleErasure, took_place: bool) -> ();
        blank_cross(space: &str, user: &str, neighbour: &str, era: u64) -> CrossBlank;
        finish_erasure(erasure: &Erasure, era: u64) -> ();
        expire_erasures(before_ms: i64) -> usize;
    }
}

hand_on! {
    Chores {
        begin_chore(chore: &str, every: Duration, lease: Duration) -> Option<ChoreLease>;
        go_on_with_chore(held: &ChoreLease, place: &str, lease: Duration) -> bool;
    }
}

hand_on! {
    Health {
        now_ms() -> i64;
        stats() -> StoreStats;
        flush() -> ();
    }

    async fn incarnation(&self) -> StoreResult<u64> {
        self.store()?;
        Ok(self.incarnation.load(Ordering::SeqCst))
    }

    async fn replicas(&self) -> StoreResult<Replicas> {
        let lacking = self.replica_lags.load(Ordering::SeqCst).then(|| "the replica of the double".to_string());
        Ok(Replicas { incarnation: self.incarnation().await?, lacking })
    }

    fn unreadable(&self) -> &Unreadable {
        &self.unreadable
    }

    fn flush_is_final(&self) -> bool {
        !self.may_lose_flushed.load(Ordering::SeqCst)
    }
}

hand_on! {
    Members {
        announce(member: &Member) -> ();
        leave(member_id: &str) -> ();
    }
}
