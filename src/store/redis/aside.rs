//! What cannot be read of keys of many: removed, and kept for a while in `ns:unreadable:{tag}` of the slot it was in, so that
//! one bad member costs no reader more than one look.
//!
//! In: members that could not be read. Callers: `queue`, `feeds`, `erase`. Nothing that goes wrong here harms the caller: the
//! member is met again, and counted again.

use super::RedisStore;
use super::call::Call;
use super::function;
use super::keys::tag_of;
use super::values::corrupt;
use crate::store::{RecordKind, StoreResult};

/// Where a member stood.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// A feed: members by id, and their values.
    Feed(&'a [String; 3]),
    /// A field of a hash.
    Hash(&'a str),
    /// A member of a set.
    Set(&'a str),
}

/// A member that is not what this version writes.
pub(super) struct Bad {
    pub member: Vec<u8>,
    /// As it was read; empty where a member has none.
    pub value: Vec<u8>,
    /// What is wrong with it.
    pub message: String,
}

impl Source<'_> {
    fn kind(self) -> &'static str {
        match self {
            Source::Feed(_) => "f",
            Source::Hash(_) => "h",
            Source::Set(_) => "s",
        }
    }

    /// What the function takes: two keys, the same one where there is only one.
    fn keys(self) -> [String; 2] {
        match self {
            Source::Feed([ids, values, _]) => [ids.clone(), values.clone()],
            Source::Hash(key) | Source::Set(key) => [key.to_string(), key.to_string()],
        }
    }
}

impl RedisStore {
    /// Counts these members, removes them where they stand, and keeps the newest of them aside.
    pub(super) async fn set_aside(&self, kind: RecordKind, source: Source<'_>, bad: Vec<Bad>) {
        if bad.is_empty() {
            return;
        }
        let [first, second] = source.keys();
        let [when, what] = self.keys.unreadable(tag_of(&first));
        let keys = [first, second, when, what];
        let mut calls = Vec::with_capacity(bad.len());
        for Bad { member, value, message } in bad {
            self.unreadable.note(kind, &corrupt(&keys[0], message));
            let call = Call::function(function!("set_aside"), &keys).arg(self.clock_argument());
            calls.push(call.arg(source.kind()).arg(member).arg(value));
        }
        for error in self.link.run_each("set aside", calls).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "an unreadable record stays where it is");
        }
    }

    /// Forgets what was put aside of an erased user beside this key.
    pub(super) async fn clear_aside(&self, beside: &str, user: &str) -> StoreResult<()> {
        let call = Call::function(function!("clear_aside"), &self.keys.unreadable(tag_of(beside))).arg("").arg(user);
        self.link.one("clear aside", call).await?;
        Ok(())
    }

    /// Forgets everywhere what was put aside before that time.
    pub(super) async fn expire_aside(&self, before_ms: i64) {
        let mut tags: Vec<String> = (0..self.shards).map(|shard| shard.to_string()).collect();
        let [erased, ..] = self.keys.erasures();
        let spaces = self.keys.spaces();
        tags.extend([self.keys.items()[0].as_str(), &erased, &spaces].map(|key| tag_of(key).to_string()));
        let call =
            |tag: &String| Call::function(function!("expire_aside"), &self.keys.unreadable(tag)).arg("").arg(before_ms);
        let answers = self.link.run_each("expire aside", tags.iter().map(call).collect()).await;
        for error in answers.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "what was put aside is not forgotten yet");
        }
    }
}
