//! Appending events to histories and reading them back (DESIGN 5.2, Append).
//!
//! In: batches of records. Out: outcomes; whole histories. One call is one fjall batch, made under the locks of its users.
//!
//! Each kept list is packed ([`crate::store::kept`]), not one key per behaviour: measured with full lists, its bytes are
//! read 30 times faster, it takes 0.6 of the disk after compaction, and it leaves no tombstones for later reads to step
//! over. Rewriting the whole list reached 0.84 of its append rate; most appends therefore write a short tail only.

use super::engine::Engine;
use super::keys::{self, Kind};
use super::notes::Notes;
use super::{EmbeddedStore, Inner};
use crate::event::{ActionClass, OPT_OUT_ATTRIBUTE};
use crate::proto::Behaviour;
use crate::store::codec::{self, CodecResult, Profile, ProfileAttribute, UserRecord};
use crate::store::kept::KeptList;
use crate::store::rehearsal;
use crate::store::{
    AHEAD_MS, AppendOutcome, Each, HISTORY_CAP, Histories, PROFILE_CAP, QUERY_CAP, Record, RecordBody, RecordKind,
    StoreResult, UserBatch, UserHistory, UserMarks, UserState, unless_all_failed,
};
use async_trait::async_trait;
use fjall::{OwnedWriteBatch, Snapshot};
use prost::Message;
use std::collections::{BTreeMap, HashMap};

/// Where a kept list stands, and how much it keeps.
type ListKeys = (Kind, Kind, usize);

const ENGAGEMENTS: ListKeys = (Kind::Engagements, Kind::EngagementsTail, HISTORY_CAP);
const IMPRESSIONS: ListKeys = (Kind::Impressions, Kind::ImpressionsTail, HISTORY_CAP);
const QUERIES: ListKeys = (Kind::Queries, Kind::QueriesTail, QUERY_CAP);

fn load_list(
    engine: &Engine,
    snapshot: &Snapshot,
    user: &str,
    (main_kind, tail_kind, cap): ListKeys,
) -> StoreResult<KeptList> {
    let (main_key, tail_key) = (keys::of_user(user, main_kind), keys::of_user(user, tail_kind));
    let main = engine.get(snapshot, &engine.users, &main_key)?;
    let tail = engine.get(snapshot, &engine.users, &tail_key)?;
    let list = KeptList::decode(main.as_deref().unwrap_or_default(), tail.as_deref().unwrap_or_default(), cap);
    list.map_err(|message| super::engine::corrupt(&main_key, message))
}

/// A user's three lists.
struct KeptLists {
    engagements: KeptList,
    impressions: KeptList,
    queries: KeptList,
}

impl KeptLists {
    fn load(engine: &Engine, snapshot: &Snapshot, user: &str) -> StoreResult<KeptLists> {
        Ok(KeptLists {
            engagements: load_list(engine, snapshot, user, ENGAGEMENTS)?,
            impressions: load_list(engine, snapshot, user, IMPRESSIONS)?,
            queries: load_list(engine, snapshot, user, QUERIES)?,
        })
    }
}

/// A user's records while a call changes them.
struct Draft {
    user: UserRecord,
    /// Not seen before this call.
    is_new: bool,
    lists: KeptLists,
    profile: Profile,
    /// Which values differ from what is stored.
    changed: Vec<Kind>,
    /// Items newly engaged with.
    engaged: Vec<String>,
    notes: Notes,
    notes_changed: bool,
    /// The store's clock.
    now_ms: i64,
}

#[async_trait]
impl Histories for EmbeddedStore {
    async fn append_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        self.append_as(false, spaces, batches)
    }

    async fn append_bulk_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        self.append_as(true, spaces, batches)
    }

    async fn histories_each(&self, users: &[String]) -> StoreResult<Each<Option<UserHistory>>> {
        let inner = &self.inner;
        let snapshot = inner.engine.database.snapshot();
        let read = |user: &String| inner.unreadable.watch(RecordKind::History, inner.history(&snapshot, user));
        unless_all_failed(users.iter().map(read).collect())
    }

    async fn states_each(&self, spaces: &[String], users: &[String]) -> StoreResult<Each<Option<UserMarks>>> {
        let inner = &self.inner;
        let snapshot = inner.engine.database.snapshot();
        let marks =
            |record: UserRecord| UserMarks { state: record.state, refreshed_seq: record.least_refreshed(spaces) };
        let read = |user: &String| inner.unreadable.watch(RecordKind::State, inner.engine.user_record(&snapshot, user));
        unless_all_failed(users.iter().map(|user| Ok(read(user)?.map(marks))).collect())
    }

    async fn held_back(&self, spaces: &[String], place: &str) -> StoreResult<(Vec<String>, String)> {
        let found = self.write(|inner| inner.behind_after(spaces, place))?;
        Ok((found.held, found.next))
    }

    async fn release_held_back(&self, users: &[String]) -> StoreResult<()> {
        self.write(|inner| {
            let _users = inner.user_locks.lock_all(users.iter().map(String::as_str));
            let snapshot = inner.engine.database.snapshot();
            let mut batch = inner.engine.batch();
            for user in users {
                let mut notes = Notes::read(&inner.engine, &snapshot, user)?;
                if notes.held.take().is_some() {
                    notes.write(&inner.engine, &mut batch, user)?;
                }
            }
            inner.engine.commit("release held back", batch)
        })
    }

    async fn quiet_users(&self, for_ms: i64, at_ms: i64, place: &str) -> StoreResult<(Vec<(String, u64)>, String)> {
        let (users, next) = self.inner.users_after(place)?;
        let mut quiet = Vec::new();
        self.write(|inner| {
            let _users = inner.user_locks.lock_all(users.iter().map(String::as_str));
            let (snapshot, mut batch) = (inner.engine.database.snapshot(), inner.engine.batch());
            for user in users {
                let record = inner.unreadable.skip(RecordKind::State, inner.engine.user_record(&snapshot, &user))?;
                let Some(record) = record.flatten().filter(|record| record.state.has_events()) else { continue };
                let mut notes = Notes::read(&inner.engine, &snapshot, &user)?;
                match notes.quiet.filter(|(of, ms)| *of == record.state.seq && (0..=at_ms).contains(ms)) {
                    Some((seq, ms)) if at_ms - ms >= for_ms => quiet.push((user, seq)),
                    Some(_) => {}
                    None => {
                        notes.quiet = Some((record.state.seq, at_ms));
                        notes.write(&inner.engine, &mut batch, &user)?;
                    }
                }
            }
            inner.engine.commit("quiet users", batch)
        })?;
        Ok((quiet, next))
    }

    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>> {
        items.iter().map(|item| Ok(self.inner.item_users(item)?.len() as u32)).collect()
    }
}

impl EmbeddedStore {
    /// What both ways of appending do.
    fn append_as(&self, is_bulk: bool, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        self.write(|inner| {
            let _users = inner.user_locks.lock_all(batches.iter().map(|batch| batch.user.as_str()));
            let snapshot = inner.engine.database.snapshot();
            let mut drafts: HashMap<&str, Draft> = HashMap::new();
            let mut outcomes = Vec::with_capacity(batches.len());
            for batch in batches {
                let draft = match drafts.entry(&batch.user) {
                    std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        let draft = Draft::load(inner, &snapshot, &batch.user);
                        match inner.unreadable.watch(RecordKind::History, draft) {
                            Ok(draft) => entry.insert(draft),
                            Err(error) if error.is_unreadable() => {
                                outcomes.push(Err(error));
                                continue;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                };
                outcomes.push(Ok(draft.apply(spaces, &batch.records, is_bulk)));
            }
            drafts.retain(|_, draft| !draft.changed.is_empty());
            if drafts.is_empty() {
                return Ok(outcomes);
            }
            let mut batch = inner.engine.batch();
            for (user, draft) in &drafts {
                draft.write(&inner.engine, &mut batch, user)?;
            }
            let engaged =
                drafts.iter().flat_map(|(user, draft)| draft.engaged.iter().map(|item| (item.as_str(), *user)));
            let _items = inner.count_item_users(&mut batch, engaged)?;
            inner.engine.commit("append", batch)?;
            inner.count_new_users(drafts.values().filter(|draft| draft.is_new).count());
            Ok(outcomes)
        })
    }
}

impl Inner {
    /// Time and id of what is kept of a user, can be read and lies after a time, in no order; and the newest time up to that one, 0 = none.
    pub(super) fn kept_after(
        &self,
        snapshot: &Snapshot,
        user: &str,
        now_ms: i64,
    ) -> StoreResult<(Vec<(i64, String)>, i64)> {
        let mut stamps: Vec<(i64, String)> = Vec::new();
        for list_keys in [ENGAGEMENTS, IMPRESSIONS, QUERIES] {
            let list = load_list(&self.engine, snapshot, user, list_keys);
            let Some(list) = self.unreadable.skip(RecordKind::History, list)? else { continue };
            stamps.extend(list.iter().map(|(ts_ms, id, _)| (ts_ms, String::from_utf8_lossy(id).into_owned())));
        }
        let key = keys::of_user(user, Kind::Profile);
        let profile = self.engine.read(snapshot, &self.engine.users, &key, decode_profile);
        let profile = self.unreadable.skip(RecordKind::History, profile)?.flatten().unwrap_or_default();
        stamps.extend(profile.into_values().map(|attribute| (attribute.ts_ms, attribute.event_id)));
        let newest = stamps.iter().map(|(ts_ms, _)| *ts_ms).filter(|ts_ms| *ts_ms <= now_ms).max();
        stamps.retain(|(ts_ms, _)| *ts_ms > now_ms && *ts_ms <= now_ms.saturating_add(AHEAD_MS));
        Ok((stamps, newest.unwrap_or_default().max(0)))
    }

    fn history(&self, snapshot: &Snapshot, user: &str) -> StoreResult<Option<UserHistory>> {
        let Some(record) = self.engine.user_record(snapshot, user)? else {
            return Ok(None);
        };
        let lists = KeptLists::load(&self.engine, snapshot, user)?;
        let unreadable = |message| super::engine::corrupt(&keys::of_state(user), message);
        let profile =
            self.engine.read(snapshot, &self.engine.users, &keys::of_user(user, Kind::Profile), decode_profile)?;
        let attributes = profile.unwrap_or_default().into_iter();
        Ok(Some(UserHistory {
            state: record.state,
            engagements: behaviours(&lists.engagements).map_err(unreadable)?,
            impressions: behaviours(&lists.impressions).map_err(unreadable)?,
            queries: queries(&lists.queries).map_err(unreadable)?,
            profile: attributes.map(|(name, attribute)| (name, (attribute.ts_ms, attribute.value))).collect(),
        }))
    }
}

impl Draft {
    fn load(inner: &Inner, snapshot: &Snapshot, user: &str) -> StoreResult<Draft> {
        let engine = &inner.engine;
        let profile = engine.read(snapshot, &engine.users, &keys::of_user(user, Kind::Profile), decode_profile)?;
        let known = engine.user_record(snapshot, user)?;
        Ok(Draft {
            is_new: known.is_none(),
            user: known.unwrap_or_default(),
            lists: KeptLists::load(engine, snapshot, user)?,
            profile: profile.unwrap_or_default(),
            changed: Vec::new(),
            engaged: Vec::new(),
            notes: Notes::read(engine, snapshot, user)?,
            notes_changed: false,
            now_ms: inner.now_ms(),
        })
    }

    fn apply(&mut self, spaces: &[String], records: &[Record], is_bulk: bool) -> AppendOutcome {
        let (before, mut accepted) = (self.user.state.seq, 0);
        for record in records {
            if let Some(kind) = self.add(record) {
                accepted += 1;
                self.user.state.seq += 1;
                self.user.state.weight += record.weight;
                if !self.changed.contains(&kind) {
                    self.changed.push(kind);
                }
            }
        }
        if accepted > 0 {
            self.hold_back(spaces, is_bulk, before);
        }
        AppendOutcome {
            accepted,
            duplicates: records.len() as u32 - accepted,
            state: self.user.state,
            refreshed_seq: self.user.least_refreshed(spaces),
        }
    }

    /// Bulk history holds a user back from the sweep who was not behind before; every other event takes that back.
    fn hold_back(&mut self, spaces: &[String], is_bulk: bool, before: u64) {
        let refreshed = self.user.least_refreshed(spaces).unwrap_or(0);
        let done = refreshed.max(self.user.state.erased_seq);
        let from = self.notes.held.filter(|(_, to)| *to == before).map_or(before, |(from, _)| from);
        let held = (is_bulk && done >= from).then_some((from, self.user.state.seq));
        self.notes_changed |= self.notes.held != held;
        self.notes.held = held;
        let remembered = self.notes.remembered.len();
        self.notes.remembered.retain(|(ts_ms, _)| *ts_ms > self.now_ms);
        self.notes_changed |= remembered != self.notes.remembered.len();
    }

    /// Adds one record; what it changed, or `None` for a duplicate.
    fn add(&mut self, record: &Record) -> Option<Kind> {
        let is_known = |id: &str| self.notes.remembers(id, self.now_ms) || self.keeps(id);
        if is_erased(&self.user.state, record.ts_ms)
            || is_known(&record.event_id)
            || record.former_id.as_deref().is_some_and(is_known)
        {
            return None;
        }
        let (ts_ms, id) = (record.ts_ms, record.event_id.as_str());
        match &record.body {
            RecordBody::Behaviour { class: ActionClass::Engagement, behaviour } => {
                let body = strip(behaviour);
                let added = self.lists.engagements.insert(ts_ms, id, &body, HISTORY_CAP);
                if added && !behaviour.item_id.is_empty() {
                    self.engaged.push(behaviour.item_id.clone());
                }
                added.then_some(Kind::Engagements)
            }
            RecordBody::Behaviour { class: ActionClass::Impression, behaviour } => {
                self.lists.impressions.insert(ts_ms, id, &strip(behaviour), HISTORY_CAP).then_some(Kind::Impressions)
            }
            // Searches and profiles have bodies of their own; a behaviour of no class has no list to enter.
            RecordBody::Behaviour { class: ActionClass::None, .. } => None,
            RecordBody::Query(query) => {
                self.lists.queries.insert(ts_ms, id, query.as_bytes(), QUERY_CAP).then_some(Kind::Queries)
            }
            RecordBody::Profile(attributes) => {
                self.merge(ts_ms, id, record.former_id.as_deref(), attributes).then_some(Kind::Profile)
            }
        }
    }

    fn keeps(&self, event_id: &str) -> bool {
        let lists = &self.lists;
        [&lists.engagements, &lists.impressions, &lists.queries].iter().any(|list| list.contains(event_id))
    }

    /// Takes over the attributes that are newer by (ts_ms, event_id) than the stored ones; false if none is. What is stored under the
    /// event's former id is the same.
    fn merge(
        &mut self,
        ts_ms: i64,
        event_id: &str,
        former_id: Option<&str>,
        attributes: &BTreeMap<String, serde_json::Value>,
    ) -> bool {
        let mut newer = false;
        for (name, value) in attributes {
            let stored = self.profile.get(name).map(|stored| (stored.ts_ms, stored.event_id.as_str()));
            let is_same = former_id.is_some_and(|former| stored == Some((ts_ms, former)));
            if is_same || stored >= Some((ts_ms, event_id)) {
                continue;
            }
            if stored.is_none() && self.profile.len() >= PROFILE_CAP && !self.evict_older_than(ts_ms, event_id) {
                continue;
            }
            let attribute = ProfileAttribute { ts_ms, event_id: event_id.to_string(), value: value.clone() };
            self.profile.insert(name.clone(), attribute);
            newer = true;
        }
        newer
    }

    /// Drops the oldest attribute of a full profile; false when all are newer than (ts_ms, event_id), so that what was
    /// dropped before is not taken for new when it is delivered again.
    fn evict_older_than(&mut self, ts_ms: i64, event_id: &str) -> bool {
        let candidates = self.profile.iter().filter(|(name, _)| name.as_str() != OPT_OUT_ATTRIBUTE);
        let oldest = candidates.min_by_key(|(_, stored)| (stored.ts_ms, stored.event_id.as_str()));
        let Some((name, stored)) = oldest else { return false };
        if (stored.ts_ms, stored.event_id.as_str()) >= (ts_ms, event_id) {
            return false;
        }
        let name = name.clone();
        self.profile.remove(&name);
        true
    }

    fn write(&self, engine: &Engine, batch: &mut OwnedWriteBatch, user: &str) -> StoreResult<()> {
        engine.write_user_record(batch, user, &self.user);
        if self.notes_changed {
            self.notes.write(engine, batch, user)?;
        }
        for kind in &self.changed {
            let (list, tail_kind) = match kind {
                Kind::Engagements => (&self.lists.engagements, Kind::EngagementsTail),
                Kind::Impressions => (&self.lists.impressions, Kind::ImpressionsTail),
                Kind::Queries => (&self.lists.queries, Kind::QueriesTail),
                _ => {
                    self.write_profile(engine, batch, user)?;
                    continue;
                }
            };
            let stored = list.encode();
            batch.insert(&engine.users, keys::of_user(user, tail_kind), stored.tail);
            if let Some(main) = stored.main {
                batch.insert(&engine.users, keys::of_user(user, *kind), main);
            }
        }
        Ok(())
    }

    fn write_profile(&self, engine: &Engine, batch: &mut OwnedWriteBatch, user: &str) -> StoreResult<()> {
        let key = keys::of_user(user, Kind::Profile);
        let value = serde_json::to_vec(&self.profile)
            .map_err(|error| super::engine::corrupt(&key, format!("profile cannot be written: {error}")))?;
        batch.insert(&engine.users, key, value);
        Ok(())
    }
}

/// An erasure covers every event up to its time; those it found beyond that are remembered by their ids.
fn is_erased(state: &UserState, ts_ms: i64) -> bool {
    state.erased_before_ms != 0 && ts_ms <= state.erased_before_ms
}

/// A behaviour without what its place in the list says already.
fn strip(behaviour: &Behaviour) -> Vec<u8> {
    let mut bytes = Behaviour { ts_ms: 0, event_id: String::new(), ..behaviour.clone() }.encode_to_vec();
    rehearsal::extend_message(&mut bytes);
    bytes
}

fn behaviours(list: &KeptList) -> CodecResult<Vec<Behaviour>> {
    let restore = |(ts_ms, id, body): (i64, &[u8], &[u8])| {
        let behaviour = Behaviour::decode(body).map_err(|error| error.to_string())?;
        Ok(Behaviour { ts_ms, event_id: text(id)?, ..behaviour })
    };
    list.iter().map(restore).collect()
}

fn queries(list: &KeptList) -> CodecResult<Vec<(i64, String)>> {
    list.iter().map(|(ts_ms, _, query)| Ok((ts_ms, text(query)?))).collect()
}

fn decode_profile(bytes: &[u8]) -> CodecResult<codec::Profile> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

fn text(bytes: &[u8]) -> CodecResult<String> {
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string())
}
