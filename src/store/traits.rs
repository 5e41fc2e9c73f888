//! The store's trait, by subject. In: what `crate::store` says of every type. Out: traits that `redis` and `embedded` implement
//! where the subject lives, and [`FeatureStore`], all of them together.

use super::{
    AppendOutcome, ChoreLease, Claim, CrossBlank, DueEntry, Each, Erasure, FeaturePut, FeedCursor, FeedPage,
    FreshVector, IdleErasure, IdlePlan, Member, PutOutcome, Queue, QueueDepth, Replicas, StoreResult, StoreStats,
    StoredFeatures, SweepStep, Unreadable, UserBatch, UserHistory, UserMarks, UserState,
};
use crate::clock::unix_ms;
use crate::event::Item;
use crate::feature::Group;
use async_trait::async_trait;
use std::time::Duration;

/// The store behind every role. One instance per process, shared by `Arc`.
pub trait FeatureStore: Histories + Features + DueQueue + Feeds + Erasures + Chores + Health + Members {}

impl<T: Histories + Features + DueQueue + Feeds + Erasures + Chores + Health + Members> FeatureStore for T {}

/// What users did, and how far they were refreshed.
#[async_trait]
pub trait Histories: Send + Sync {
    /// Appends records of many users; one outcome a batch, in order. A user's records are applied in order and idempotently
    /// (DESIGN 5.2, Append), all at once, or where they are many in several steps, each of them atomic. The outcome reports the
    /// lowest `refreshed_seq` of `spaces`, the live ones: a user is behind who is behind in one of them.
    async fn append_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>>;

    /// As [`Self::append_each`], where one user's failure is the call's; the others' records are stored.
    async fn append(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Vec<AppendOutcome>> {
        self.append_each(spaces, batches).await?.into_iter().collect()
    }

    /// The same for bulk history. Who was not behind before is held back: the sweep passes over them until an event of another
    /// kind, or [`Self::release_held_back`].
    async fn append_bulk_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>>;

    /// As [`Self::append_bulk_each`], where one user's failure is the call's; the others' records are stored.
    async fn append_bulk(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Vec<AppendOutcome>> {
        self.append_bulk_each(spaces, batches).await?.into_iter().collect()
    }

    /// Histories of many users in the order asked; `None` for a user never seen.
    async fn histories_each(&self, users: &[String]) -> StoreResult<Each<Option<UserHistory>>>;

    /// As [`Self::histories_each`], where one user's failure is the call's: for one user, or where all are needed.
    async fn histories(&self, users: &[String]) -> StoreResult<Vec<Option<UserHistory>>> {
        self.histories_each(users).await?.into_iter().collect()
    }

    /// Counters of many users in the order asked, with what the last refresh in each of the spaces had read, the least of it; `None` for a
    /// user never seen. A light read: neither histories nor features.
    async fn states_each(&self, spaces: &[String], users: &[String]) -> StoreResult<Each<Option<UserMarks>>>;

    /// As [`Self::states_each`], where one user's failure is the call's.
    async fn states(&self, spaces: &[String], users: &[String]) -> StoreResult<Vec<Option<UserMarks>>> {
        self.states_each(spaces, users).await?.into_iter().collect()
    }

    /// Users held back by bulk history: a step of a walk over all users, from `place` (empty at the beginning); returns the next place,
    /// empty at the end.
    async fn held_back(&self, spaces: &[String], place: &str) -> StoreResult<(Vec<String>, String)>;

    /// Holds these users back no longer. Whoever calls this has marked them due.
    async fn release_held_back(&self, users: &[String]) -> StoreResult<()>;

    /// Users with events whose `seq` has stood still for so long, each with that `seq`: a step of a walk over all users, from `place`
    /// (empty at the beginning); returns the next place, empty at the end. It notes on its way since when each `seq` has stood, by
    /// [`Erasures::quiet_time`], which says `at_ms` now.
    async fn quiet_users(&self, for_ms: i64, at_ms: i64, place: &str) -> StoreResult<(Vec<(String, u64)>, String)>;

    /// Distinct users who engaged with each item, counted up to [`super::ITEM_USERS_CAP`]; 0 where nobody can say.
    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>>;
}

/// What refreshes made of it, and who shows whom.
#[async_trait]
pub trait Features: Send + Sync {
    /// Only these groups of many users, as a reader needs them: of [`StoredFeatures`] the prompt hash and the embedding are left
    /// out. `None` for a user without any features.
    async fn feature_groups_each(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Each<Option<StoredFeatures>>>;

    /// As [`Self::feature_groups_each`], where one user's failure is the call's.
    async fn feature_groups(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.feature_groups_each(space, users, groups).await?.into_iter().collect()
    }

    /// All feature blobs of many users in one space, with the marks of the last refresh; `None` for a user without any.
    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>>;

    /// Writes one refresh's result, by the version rules of DESIGN 5.2 (Put, Skip). Stored features that cannot be read count as
    /// none: they were made from the history, and are made again.
    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome>;

    /// Notes that `user`'s `cross` shows `neighbour`. Returns how many users show that neighbour now.
    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize>;

    /// Takes that note back.
    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()>;

    /// How many users' `cross` shows each of these.
    async fn referrer_counts_each(&self, space: &str, neighbours: &[String]) -> StoreResult<Each<usize>>;

    /// As [`Self::referrer_counts_each`], where one user's failure is the call's.
    async fn referrer_counts(&self, space: &str, neighbours: &[String]) -> StoreResult<Vec<usize>> {
        self.referrer_counts_each(space, neighbours).await?.into_iter().collect()
    }

    /// Who is noted as showing `neighbour`, in any order. No more than the cap on referrers, so it comes at once.
    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>>;
}

/// Whom to refresh next. A [`Queue`] is one for all spaces; a user is in it at most once, waiting or leased.
#[async_trait]
pub trait DueQueue: Send + Sync {
    /// Adds users to a queue; of two due times the earlier wins, of two classes the lower (more urgent).
    async fn mark_due(&self, queue: Queue, entries: &[DueEntry]) -> StoreResult<()>;

    /// Puts users before everybody in the due queue (class 0, due at `due_ms`) for as long as a caller waits, until the store's time `until_ms`. A claim
    /// that finds that time passed treats a user as of the place they had; who stood nowhere waits in [`super::SWEEP_CLASS`].
    async fn mark_awaited(&self, users: &[String], due_ms: i64, until_ms: i64) -> StoreResult<()>;

    /// Takes up to `limit` users whose time has come, most urgent class first, oldest first within a class, and leases
    /// them. Users under an unexpired lease are not given out; users whose lease ran out are. Fewer than `limit` means that
    /// nobody else was due (or that other replicas kept being quicker).
    async fn claim(&self, queue: Queue, limit: usize, lease: Duration) -> StoreResult<Vec<Claim>>;

    /// Prolongs a lease; false when the token no longer holds it.
    async fn renew(&self, queue: Queue, claim: &Claim, lease: Duration) -> StoreResult<bool>;

    /// Ends a lease; false when the token no longer holds it. A user marked due meanwhile stays due.
    async fn release(&self, queue: Queue, claim: &Claim) -> StoreResult<bool>;

    /// Queue length and oldest due time by class, and the number of leases.
    async fn queue_depth(&self, queue: Queue) -> StoreResult<QueueDepth>;

    /// Marks due users with `seq > refreshed_seq` (or without features) in one of the live `spaces` who stand in neither queue nor lease and are not held back: a
    /// step of a walk over all users, from `place` (empty at the beginning). After the last step the numbers of users and of those held
    /// back are known anew.
    async fn sweep_step(&self, spaces: &[String], place: &str) -> StoreResult<SweepStep>;

    /// All steps at once; returns how many were marked. Slow.
    async fn sweep(&self, spaces: &[String]) -> StoreResult<usize> {
        let (mut marked, mut place) = (0, String::new());
        loop {
            let step = self.sweep_step(spaces, &place).await?;
            marked += step.marked;
            if step.next.is_empty() {
                return Ok(marked);
            }
            place = step.next;
        }
    }

    /// Takes a user out of every queue. A lease stays, but a mark made while it runs is dropped, too.
    async fn forget_due(&self, user: &str) -> StoreResult<()>;
}

/// What replicas follow: fresh vectors, and changes of the catalogue.
#[async_trait]
pub trait Feeds: Send + Sync {
    /// Puts a vector into the space's feed in the place of the user's older one. One below the (era, version) that stands
    /// there changes nothing; an equal one, of a repeated refresh, replaces it.
    async fn append_vector(&self, space: &str, vector: &FreshVector) -> StoreResult<()>;

    /// Entries of the vector feed after `cursor`, about `limit` of them. The default cursor begins with the oldest, and
    /// whoever reads from there to the last page has the newest entry of every user.
    async fn vectors_after(&self, space: &str, cursor: &FeedCursor, limit: usize)
    -> StoreResult<FeedPage<FreshVector>>;

    /// Writes items to the catalogue overlay and its change feed.
    async fn put_items(&self, items: &[Item]) -> StoreResult<()>;

    /// Changes of the catalogue after `cursor`, oldest first: the latest version of each item.
    async fn items_after(&self, cursor: &FeedCursor, limit: usize) -> StoreResult<FeedPage<Item>>;
}

/// Erasing users, step by step; the order of the steps is the job of [`crate::erase`].
#[async_trait]
pub trait Erasures: Send + Sync {
    /// Says that this process writes this space, and which queues of before concern it. Called before anything is written, by every process
    /// that marks users due: an erasure looks into the spaces named here and nowhere else.
    async fn note_space(&self, space: &str) -> StoreResult<()>;

    /// Every space ever noted, in the order of their names. One that cannot be read is put aside, as in every list of many.
    async fn spaces(&self) -> StoreResult<Vec<String>>;

    /// First step of an erasure: from now on it survives every crash. Of two notes of a user the later replaces the
    /// earlier, which it covers. A user never seen can be noted: their events may be on their way.
    async fn note_erasure(&self, user: &str) -> StoreResult<Erasure>;

    /// Every erasure noted and not expired: unfinished ones first, then by id. Walks all of them: for the start.
    async fn erasures(&self) -> StoreResult<Vec<Erasure>>;

    /// The unfinished ones, by id. May lack those that an older build noted and [`Self::file_erasures`] has not met yet.
    async fn unfinished_erasures(&self) -> StoreResult<Vec<Erasure>>;

    /// Lets [`Self::unfinished_erasures`] and [`Self::expire_erasures`] find what an older build noted: a step of a walk over all
    /// erasures from `place`, empty at the beginning; returns the next place, empty at the end.
    async fn file_erasures(&self, place: &str) -> StoreResult<String>;

    /// Deletes history, profile, queries and the features of all spaces, and changes the counters: `era` up by one,
    /// `erased_before_ms` = the store's clock, `erased_seq` = `seq`, which stays, `weight` and `last_refresh_ms` 0. Atomic. Returns the
    /// counters. The ids of events kept that lie after the store's clock ([`super::REMEMBERED_CAP`] at most, the latest) are
    /// remembered until their ts has passed: delivered again, they are duplicates.
    ///
    /// Once per erasure: the user's record remembers the highest id that was applied, and an id not above it changes
    /// nothing (a job that goes on after a crash, or two jobs at once). Creates the record of a user never seen.
    ///
    /// What is kept goes whatever it holds. Where the counters cannot be read a new era begins that no earlier one reaches,
    /// the store's clock, and `seq` begins at 0: who compares versions compares the era first.
    async fn erase_user(&self, erasure: &Erasure) -> StoreResult<UserState>;

    /// Time in which users of whom nothing comes were looked at, in ms: carried on by what passed since the last call, `at_most_ms` of
    /// it. So one wrong reading of the clock adds little, and time in which nobody looks hardly counts.
    async fn quiet_time(&self, at_most_ms: i64) -> StoreResult<i64>;

    /// Keeps an erasure that is to take place only while nothing comes; nobody but who asks for [`Self::idle_erasures`] sees it. `None`,
    /// and nothing changed, where another erasure of the user is unfinished, noted or not.
    async fn plan_idle_erasure(&self, user: &str, plan: &IdlePlan) -> StoreResult<Option<IdleErasure>>;

    /// Those that are planned and not settled.
    async fn idle_erasures(&self) -> StoreResult<Vec<IdleErasure>>;

    /// As [`Self::erase_user`], where the user has events and their `seq` is still the planned one; else nothing changes. Returns the
    /// counters, and whether it took place, now or before. `erased_before_ms` becomes the newest kept event's ts up to the store's
    /// clock: an event that is on its way is news, and counts.
    async fn erase_idle_user(&self, idle: &IdleErasure) -> StoreResult<(UserState, bool)>;

    /// Forgets the plan. Where it took place, the erasure is noted now, under its id, unless this or a later one stands there.
    async fn settle_idle_erasure(&self, idle: &IdleErasure, took_place: bool) -> StoreResult<()>;

    /// Empties `user`'s `cross` if it shows `neighbour` as they were before `era`: no items, `neighbour_user_id` cleared,
    /// prompt hash cleared, so that no skip keeps it. Version, tier and expiry stay, so that no older refresh fills the
    /// gap. What cannot be read might show the neighbour: it is emptied, or deleted. Atomic.
    async fn blank_cross(&self, space: &str, user: &str, neighbour: &str, era: u64) -> StoreResult<CrossBlank>;

    /// Last step of an erasure; nothing if a later one of the same user was noted meanwhile.
    async fn finish_erasure(&self, erasure: &Erasure, era: u64) -> StoreResult<()>;

    /// Forgets finished erasures with an id below `before_ms` (an id is never below the time it was noted). Returns how
    /// many. The user's counters stay for good: they keep `seq` and `era` from going back. What was put aside before that time
    /// because it could not be read is forgotten, too.
    async fn expire_erasures(&self, before_ms: i64) -> StoreResult<usize>;
}

/// Which process does the walks that one does for all; [`super::chore`] has the way of one.
#[async_trait]
pub trait Chores: Send + Sync {
    /// Takes a chore for `lease`; `None` when somebody has it, or when it was done less than `every` ago and nobody was
    /// interrupted at it since.
    async fn begin_chore(&self, chore: &str, every: Duration, lease: Duration) -> StoreResult<Option<ChoreLease>>;

    /// Notes the place reached, empty at the end, and prolongs the lease; false when it is another's by now.
    async fn go_on_with_chore(&self, held: &ChoreLease, place: &str, lease: Duration) -> StoreResult<bool>;
}

/// The store's clock, size and trouble.
#[async_trait]
pub trait Health: Send + Sync {
    /// The store's own clock, unix ms. Leases and due times are measured with it.
    async fn now_ms(&self) -> StoreResult<i64>;

    /// The same as it was last heard, carried on by this process's own: for what a few ms more or less do not matter. Asks
    /// nobody.
    fn clock_ms(&self) -> i64 {
        unix_ms()
    }

    /// Numbers for /metrics: users, bytes on disk.
    async fn stats(&self) -> StoreResult<StoreStats>;

    /// Makes everything acknowledged so far survive a power loss, too.
    async fn flush(&self) -> StoreResult<()>;

    /// True when no crash can take back what was acknowledged before a successful [`Self::flush`], so that offsets may
    /// be released at once (DESIGN 5.5, drain). False where a fail-over may lose the last moments whatever we do.
    fn flush_is_final(&self) -> bool {
        false
    }

    /// Changes whenever the store may have lost acknowledged writes (DESIGN 5.5): a restarted or failed-over Redis.
    /// Constant for the embedded store.
    async fn incarnation(&self) -> StoreResult<u64>;

    /// Whether as many replicas as are wanted have everything that was acknowledged before this call (DESIGN 5.5). A store
    /// without replicas lacks nothing.
    async fn replicas(&self) -> StoreResult<Replicas> {
        Ok(Replicas { incarnation: self.incarnation().await?, lacking: None })
    }

    /// What could not be read since the store was opened.
    fn unreadable(&self) -> &Unreadable;

    /// Keys that hold something of many users, of no space or of these, and are of another type: each with what it holds. None where keys
    /// have no type.
    async fn misused_keys(&self, _spaces: &[String]) -> StoreResult<Vec<String>> {
        Ok(Vec::new())
    }

    /// Why the store cannot be asked at all now, in words for an operator; `None` while it can. Asks nobody.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Live processes, as `taiji migrate clean` sees them. Nothing is kept where one process has the store alone.
#[async_trait]
pub trait Members: Send + Sync {
    /// Notes that this process lives, for three times [`super::MEMBER_RENEWAL_MS`] from now. An error may say that the layouts
    /// of the store were changed to ones that this program does not know.
    async fn announce(&self, member: &Member) -> StoreResult<()>;

    /// Takes that note back: the process ends.
    async fn leave(&self, member_id: &str) -> StoreResult<()>;
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Names of asynchronous functions in the sources of a folder.
    fn names(folder: &str) -> Vec<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let sources = files.filter_map(|file| std::fs::read_to_string(file).ok());
        let name = |line: &str| Some(line.trim().strip_prefix("async fn ")?.split(['(', '<']).next()?.to_string());
        sources.flat_map(|source| source.lines().filter_map(name).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn audit_16_every_act_has_one_name_in_each_store_and_the_double_is_short() {
        let source = include_str!("traits.rs").split("#[cfg(test)]").next().unwrap_or_default();
        // Those with a body here are made of others.
        let required = source.lines().filter(|line| line.ends_with(';'));
        let acts = required.filter_map(|line| line.trim().strip_prefix("async fn ")?.split('(').next());
        let stores = ["src/store/redis", "src/store/embedded"].map(names);
        let mut count = 0;
        for act in acts {
            count += 1;
            for names in &stores {
                assert_eq!(names.iter().filter(|name| *name == act).count(), 1, "{act}");
            }
        }
        let double = include_str!("../ingest/kafka/tests/double.rs").lines().count();
        println!("audit 16: {count} acts by one name each; the test double has {double} lines");
        assert!(count > 30 && double < 80, "{count} acts, {double} lines");
    }
}
