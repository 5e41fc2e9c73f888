//! How many users engaged with an item: a set of hashes an item, of [`ITEM_USERS_CAP`] at most.
//!
//! A full set never changes, and nobody leaves one; so a process remembers which items have a full one and asks no more. It
//! forgets that when Redis is no longer the one it was: its tail, and users with it, may be lost.

use super::RedisStore;
use super::call::Call;
use super::function;
use super::values::read;
use crate::store::{ITEM_USERS_CAP, RecordKind, StoreResult};
use parking_lot::Mutex;
use redis::Value;
use std::collections::{BTreeMap, HashSet};

/// Items remembered; bounded, because it is only a short cut.
const KEPT: usize = 100_000;

/// Items known to have all the users that are counted.
#[derive(Default)]
pub(super) struct FullItems {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    incarnation: u64,
    items: HashSet<String>,
}

impl FullItems {
    /// Which of the items are known.
    pub(super) fn contains<'a>(&self, items: impl Iterator<Item = &'a str>) -> Vec<bool> {
        let known = self.known.lock();
        items.map(|item| known.items.contains(item)).collect()
    }

    pub(super) fn note<'a>(&self, counts: impl Iterator<Item = (&'a str, u32)>) {
        let mut known = self.known.lock();
        for (item, _) in counts.filter(|(_, count)| *count >= ITEM_USERS_CAP) {
            if known.items.len() < KEPT && !known.items.contains(item) {
                known.items.insert(item.to_string());
            }
        }
    }

    /// What was known counts for this life of the store only.
    pub(super) fn forget_others_than(&self, incarnation: u64) {
        let mut known = self.known.lock();
        if known.incarnation != incarnation {
            *known = Known { incarnation, items: HashSet::new() };
        }
    }
}

impl RedisStore {
    /// Counts users of items, given as hashes, and new users.
    pub(super) async fn count(&self, engaged: BTreeMap<&str, Vec<i64>>, new_users: u64) -> StoreResult<()> {
        let is_full = self.full_items.contains(engaged.keys().copied());
        let engaged = engaged.into_iter().zip(is_full).filter(|(_, is_full)| !is_full).map(|(open, _)| open);
        let open: Vec<(&str, Vec<i64>)> = engaged.collect();
        let mut calls: Vec<Call> = Vec::with_capacity(open.len() + 1);
        // They are distinct, so more of them say no more.
        let enough = ITEM_USERS_CAP as usize;
        for (item, users) in &open {
            let key = [self.keys.item_users(item)];
            calls.push(Call::function(function!("item_users"), &key).arg("").arg(&users[..users.len().min(enough)]));
        }
        if new_users > 0 {
            calls.push(Call::new("INCRBY", &self.keys.user_count()).arg(new_users));
        }
        let mut answers = self.link.run_each("count users", calls).await.into_iter();
        let mut counts: Vec<(&str, u32)> = Vec::with_capacity(open.len());
        for ((item, _), answer) in open.iter().zip(answers.by_ref()) {
            counts.push((item, self.users(item, answer)?));
        }
        for counted in answers {
            self.unreadable.skip(RecordKind::Count, counted)?;
        }
        self.full_items.note(counts.into_iter());
        Ok(())
    }

    /// 0 where it cannot be read: who is not known to be known is not shown.
    pub(super) fn users(&self, item: &str, answer: StoreResult<Value>) -> StoreResult<u32> {
        let users = answer.and_then(|answer| read(&self.keys.item_users(item), answer));
        Ok(self.unreadable.skip(RecordKind::ItemUsers, users)?.unwrap_or(0))
    }
}
