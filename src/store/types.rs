//! What goes into and comes out of a [`super::FeatureStore`].

use crate::event::{ActionClass, MAX_FUTURE_MS, is_opted_out};
use crate::feature::{Group, GroupBlob, Version};
use crate::proto;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Engagements and impressions kept, each (DESIGN 2).
pub const HISTORY_CAP: usize = 100;
/// Search queries kept.
pub const QUERY_CAP: usize = 20;
/// Erased events ahead of the clock whose ids are remembered: as many as the lists hold.
pub const REMEMBERED_CAP: usize = 2 * HISTORY_CAP + QUERY_CAP;
/// How far the store's clock may go back, at a fail-over, without an erasure taking its time for another program's, in ms.
pub(crate) const CLOCK_STEP_MS: i64 = 60_000;
/// How far ahead of the store's clock an event may lie at most, in ms. What is further ahead was never accepted.
pub(crate) const AHEAD_MS: i64 = MAX_FUTURE_MS + CLOCK_STEP_MS;
/// Profile attributes kept; beyond it the oldest go, but never an opt-out.
pub const PROFILE_CAP: usize = 64;
/// Distinct users counted per item; "≥ 5 users" is all the privacy rule asks (DESIGN 5.3).
pub const ITEM_USERS_CAP: u32 = 5;
/// Due class of users found by the sweep: behind everyone a fresh event or a reader asked for.
pub const SWEEP_CLASS: u8 = 3;

/// A live process renews its entry at this interval, in ms.
pub const MEMBER_RENEWAL_MS: u64 = 10_000;

/// What a live process says of itself; the store adds which build it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Hex digits, other ones at every start.
    pub id: String,
    /// As in the settings: api, ingest, infer, joined by commas.
    pub roles: String,
    /// Epochs of the bundles it has loaded and warmed.
    pub epochs: Vec<u64>,
}

/// One validated event on its way into a history.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Order within a user is (ts_ms, event_id).
    pub ts_ms: i64,
    /// Key of idempotence.
    pub event_id: String,
    /// The id under which programs before kept the same event: kept under either, it is a duplicate. For one release.
    pub former_id: Option<String>,
    /// Added to the user's refresh weight when new.
    pub weight: f64,
    /// Where it goes.
    pub body: RecordBody,
}

/// The three kinds of records.
#[derive(Debug, Clone, PartialEq)]
pub enum RecordBody {
    /// Enters the engagements or the impressions ([`ActionClass::None`] is refused by the caller's types: it never gets here).
    Behaviour {
        /// Engagement or Impression.
        class: ActionClass,
        /// As kept.
        behaviour: proto::Behaviour,
    },
    /// A search query; the latest [`QUERY_CAP`] are kept.
    Query(String),
    /// Profile attributes; each is kept with the ts of its newest event.
    Profile(BTreeMap<String, serde_json::Value>),
}

/// One user's records of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct UserBatch {
    /// Whose.
    pub user: String,
    /// In any order.
    pub records: Vec<Record>,
}

/// The counters of a user (`:st`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UserState {
    /// Counts stored events; never falls.
    pub seq: u64,
    /// Refresh weight gathered since the last refresh.
    pub weight: f64,
    /// Store clock of the last refresh, 0 = never.
    pub last_refresh_ms: i64,
    /// Rises with every erasure.
    pub era: u64,
    /// Events up to this ts are refused as duplicates. The store's clock at a `DELETE`; the newest event kept at the erasure of an idle user.
    /// (Ahead of the clock where that went back, or where a program before wrote it.)
    pub erased_before_ms: i64,
    /// `seq` at the last erasure: while they are equal nothing is kept, and there is nothing to refresh from.
    pub erased_seq: u64,
}

impl UserState {
    /// Whether any event has come since the last erasure (or ever).
    pub fn has_events(&self) -> bool {
        self.seq > self.erased_seq
    }
}

/// What [`super::Histories::states`] reads of a user.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UserMarks {
    /// Counters.
    pub state: UserState,
    /// `seq` the last tier-1 refresh read, of several spaces the lowest; `None` where there was none in one of them.
    pub refreshed_seq: Option<u64>,
}

/// What replicas have of what was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replicas {
    /// Of the store that answered; see [`super::FeatureStore::incarnation`].
    pub incarnation: u64,
    /// What they lack, in words for an operator; `None` = they have everything.
    pub lacking: Option<String>,
}

/// An erasure that was asked for (`ns:erased`); finished ones stay as tombstones until they expire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Whose.
    pub user: String,
    /// Rises with every erasure noted and is never below the store's clock (unix ms) of that moment.
    pub id: u64,
    /// The user's era after it, once it is finished; `None` = steps are left to do.
    pub finished_era: Option<u64>,
}

/// An erasure that takes place only while nothing comes. It is kept apart from the noted ones, which everybody carries out, until it
/// has taken place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleErasure {
    /// Whose.
    pub user: String,
    /// From the same numbers as the noted ones' ids.
    pub id: u64,
    /// What it needs after a crash, too.
    pub plan: IdlePlan,
}

impl IdleErasure {
    /// As it is noted when it has taken place.
    pub fn as_erasure(&self) -> Erasure {
        Erasure { user: self.user.clone(), id: self.id, finished_era: None }
    }
}

/// What an [`IdleErasure`] is to find and to clear.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdlePlan {
    /// The user's `seq`; another one says that something came.
    pub seq: u64,
    /// Space and id of the neighbours that the user's features show.
    pub shown: Vec<(String, String)>,
}

/// What [`super::Erasures::blank_cross`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrossBlank {
    /// `cross` showed the erased user; it is empty now, and the prompt hash is cleared.
    Blanked,
    /// It shows the neighbour as they are after the erasure; nothing changed.
    Current,
    /// It shows somebody else or nobody; nothing changed.
    Other,
}

/// What an append did to one user.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppendOutcome {
    /// New events.
    pub accepted: u32,
    /// Already there, too old to be kept, or before an erasure.
    pub duplicates: u32,
    /// After the append.
    pub state: UserState,
    /// As [`UserMarks::refreshed_seq`].
    pub refreshed_seq: Option<u64>,
}

/// Everything a prompt needs of a user.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserHistory {
    /// Counters.
    pub state: UserState,
    /// Newest first, at most [`HISTORY_CAP`].
    pub engagements: Vec<proto::Behaviour>,
    /// Newest first, at most [`HISTORY_CAP`].
    pub impressions: Vec<proto::Behaviour>,
    /// (ts_ms, query), newest first, at most [`QUERY_CAP`].
    pub queries: Vec<(i64, String)>,
    /// Attribute → (ts_ms, value).
    pub profile: BTreeMap<String, (i64, serde_json::Value)>,
}

impl UserHistory {
    /// Whether the user asked not to be shown to others.
    pub fn is_opted_out(&self) -> bool {
        is_opted_out(|name| self.profile.get(name).map(|(_, value)| value.clone()))
    }
}

/// A user's features in one space.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StoredFeatures {
    /// At most one blob a group.
    pub groups: Vec<GroupBlob>,
    /// `seq` read by the last tier-1 refresh, or by a skip; `None` if only tier 0 wrote.
    pub refreshed_seq: Option<u64>,
    /// Hash of the prompt behind the features, covers the epoch; 0 = cleared.
    pub prompt_hash: u64,
    /// The user's vector, fp16 little-endian; empty if none.
    pub embedding: Vec<u8>,
}

impl StoredFeatures {
    /// The group as it is stored, expired or not.
    pub fn group(&self, group: Group) -> Option<&GroupBlob> {
        self.groups.iter().find(|blob| blob.group == group)
    }

    /// The group, if it is there and its time is not over.
    pub fn living(&self, group: Group, now_ms: i64) -> Option<&GroupBlob> {
        self.group(group).filter(|blob| !blob.is_expired(now_ms))
    }

    /// Without other groups, prompt hash and embedding.
    pub fn only(self, groups: &[Group]) -> StoredFeatures {
        let kept = self.groups.into_iter().filter(|blob| groups.contains(&blob.group)).collect();
        StoredFeatures { groups: kept, refreshed_seq: self.refreshed_seq, ..StoredFeatures::default() }
    }
}

/// One write of a refresh.
#[derive(Debug, Clone, PartialEq)]
pub struct FeaturePut {
    /// Whose.
    pub user: String,
    /// Era the refresh read; another era in the store refuses the put.
    pub era: u64,
    /// Version of the refresh: seq read, turn.
    pub version: Version,
    /// 0 or 1.
    pub tier: u8,
    /// What is written.
    pub body: PutBody,
}

/// A put writes groups, or only moves the marks of an unchanged prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum PutBody {
    /// New groups (all of this put's tier and version).
    Write {
        /// Replaces the groups of the same names.
        groups: Vec<GroupBlob>,
        /// Covers the epoch.
        prompt_hash: u64,
        /// fp16 little-endian.
        embedding: Vec<u8>,
    },
    /// Unchanged prompt: every group's meta gets `seq`, `turn` and `source_ts_ms`; `generated_at_ms` stays (DESIGN 5.2, Skip).
    Skip {
        /// Newest event seen.
        source_ts_ms: i64,
    },
}

/// What became of a put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutOutcome {
    /// Written (for tier 0 possibly over a part of the groups only); the stored seq now.
    Written {
        /// If it is above the put's, the user is due again.
        current_seq: u64,
    },
    /// Refused; nothing changed.
    Refused(PutRefusal),
}

/// Why a put was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutRefusal {
    /// The user was erased since the refresh read.
    Era,
    /// It claims a seq the store has not reached.
    FutureSeq,
    /// What is stored is newer, or of a higher tier.
    Stale,
    /// A skip found nothing to keep.
    NothingToSkip,
}

/// A queue of users, one for all spaces. A user is in each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Queue {
    /// To be refreshed.
    Due,
    /// To get a first answer without the LLM: the fast path's.
    Fast,
}

impl Queue {
    /// All of them.
    pub const ALL: [Queue; 2] = [Queue::Due, Queue::Fast];

    /// The name that programs before gave to the queue of one space.
    pub(crate) fn of_space(self, space: &str) -> String {
        match self {
            Queue::Due => space.to_string(),
            Queue::Fast => format!("{space}.fast"),
        }
    }
}

/// A user in the due queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEntry {
    /// Who.
    pub user: String,
    /// 0 = most urgent.
    pub class: u8,
    /// Not before this store time.
    pub due_ms: i64,
}

/// A leased user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub user: String,
    /// Class it waited in.
    pub class: u8,
    /// Since when it was due.
    pub due_ms: i64,
    /// Proves the lease.
    pub token: u64,
}

/// The queue at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// (class, users waiting, oldest due time), by class.
    pub classes: Vec<(u8, usize, i64)>,
    /// Users under lease.
    pub leased: usize,
}

/// An entry of the vector feed.
#[derive(Debug, Clone, PartialEq)]
pub struct FreshVector {
    /// Whose.
    pub user: String,
    /// Highest (era, version) wins.
    pub era: u64,
    /// Version of the refresh that made it.
    pub version: Version,
    /// fp16 little-endian; `None` is a tombstone.
    pub vector: Option<Vec<u8>>,
}

/// Numbers for /metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Users with a state.
    pub users: u64,
    /// Size of the embedded store's folder.
    pub disk_bytes: u64,
    /// Users held back by bulk history, as of the last sweep.
    pub held: u64,
    /// Memory that Redis uses, all masters together.
    pub memory_bytes: u64,
}

/// A chore taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChoreLease {
    /// Which.
    pub chore: String,
    /// Proves the lease.
    pub token: u64,
    /// Where to go on; empty = from the beginning.
    pub place: String,
}

/// A step of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepStep {
    /// Users marked due.
    pub marked: usize,
    /// Where to go on; empty = that was all.
    pub next: String,
}
