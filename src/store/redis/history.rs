//! Appending events and reading histories. One function call a user, or several where one would take long.
//!
//! The kept lists are Redis lists that the function keeps in order (`entries` has the bytes). Users of items stand in other
//! slots, so they are counted after the append (`item_users`), for events that are new or delivered again: a crash between
//! the two is healed by the redelivery.

use super::RedisStore;
use super::call::Call;
use super::pace::{PIECE, WHOLE_KEY, append_cost};
use super::values::{corrupt, number, read};
use super::{entries, function};
use crate::event::ActionClass;
use crate::proto::Behaviour;
use crate::store::codec::CodecResult;
use crate::store::rehearsal;
use crate::store::{
    AppendOutcome, Each, Histories, ITEM_USERS_CAP, Record, RecordBody, RecordKind, StoreResult, UserBatch,
    UserHistory, UserMarks, UserState, unless_all_failed,
};
use async_trait::async_trait;
use prost::Message;
use redis::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// Fields of a user's counters, in the order of [`state_of`].
const STATE: [&str; 6] = ["seq", "weight", "last_refresh_ms", "era", "erased_before_ms", "erased_seq"];

/// A field of a hash, absent or text.
pub(super) type Field = Option<Vec<u8>>;

/// Whose events are appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Of now.
    Live,
    /// Bulk history, whose users the sweep passes over.
    Bulk,
}

/// What the function answers: flags, new, seq, weight, last refresh, era, erased before, erased seq, refreshed.
type Answer = (Vec<u8>, u8, u64, f64, i64, u64, i64, u64, String);

#[async_trait]
impl Histories for RedisStore {
    async fn append_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        self.append_as(Source::Live, spaces, batches).await
    }

    async fn append_bulk_each(&self, spaces: &[String], batches: &[UserBatch]) -> StoreResult<Each<AppendOutcome>> {
        self.append_as(Source::Bulk, spaces, batches).await
    }

    async fn histories_each(&self, users: &[String]) -> StoreResult<Each<Option<UserHistory>>> {
        const PARTS: usize = 5;
        let mut calls = Vec::with_capacity(users.len() * PARTS);
        for user in users {
            calls.push(Call::new("HMGET", &self.keys.of_user(user, "st")).arg(&STATE));
            let list = |name| Call::new("LRANGE", &self.keys.of_user(user, name)).arg(0).arg(-1).costing(WHOLE_KEY);
            calls.extend(["h:e", "h:i", "q"].map(list));
            calls.push(Call::new("HGETALL", &self.keys.of_user(user, "prof")).costing(WHOLE_KEY));
        }
        let mut answers = self.link.run_each("read histories", calls).await.into_iter();
        let history = |user: &String| {
            // All of them, or the next user's would be taken for this one's.
            let parts: Vec<StoreResult<Value>> = answers.by_ref().take(PARTS).collect();
            let parts = parts.into_iter().collect::<StoreResult<Vec<Value>>>();
            let history = parts.and_then(|parts| history_of(&self.keys.of_user(user, "st"), parts));
            self.unreadable.watch(RecordKind::History, history)
        };
        unless_all_failed(users.iter().map(history).collect())
    }

    async fn states_each(&self, spaces: &[String], users: &[String]) -> StoreResult<Each<Option<UserMarks>>> {
        let refreshed: Vec<String> = spaces.iter().map(|space| format!("r:{space}")).collect();
        let call = |user: &String| Call::new("HMGET", &self.keys.of_user(user, "st")).arg(&STATE).arg(&refreshed);
        let answers = self.link.read_each("read states", users.iter().map(call).collect()).await;
        let marks = |(user, answer): (&String, StoreResult<Value>)| {
            let key = self.keys.of_user(user, "st");
            let fields: Vec<Field> = read(&key, answer?)?;
            let Some(state) = state_of(&key, &fields)? else { return Ok(None) };
            Ok(Some(UserMarks { state, refreshed_seq: least_refreshed(&key, &fields[STATE.len()..])? }))
        };
        let watched = |asked| self.unreadable.watch(RecordKind::State, marks(asked));
        unless_all_failed(users.iter().zip(answers).map(watched).collect())
    }

    async fn held_back(&self, spaces: &[String], place: &str) -> StoreResult<(Vec<String>, String)> {
        let (keys, next) = self.walk("held back", place).await?;
        Ok((self.states_of(spaces, &keys).await?.held, next.place))
    }

    async fn release_held_back(&self, users: &[String]) -> StoreResult<()> {
        let call = |user: &String| Call::new("HDEL", &self.keys.of_user(user, "st")).arg("held");
        self.link.run("release held back", users.iter().map(call).collect()).await?;
        Ok(())
    }

    async fn quiet_users(&self, for_ms: i64, at_ms: i64, place: &str) -> StoreResult<(Vec<(String, u64)>, String)> {
        let (keys, next) = self.walk("quiet users", place).await?;
        let fields = |key: &String| Call::new("HMGET", key).arg("seq").arg("erased_seq").arg("quiet");
        let answers = self.link.run_each("quiet users", keys.iter().map(fields).collect()).await;
        let (mut quiet, mut moved) = (Vec::new(), Vec::new());
        for (key, answer) in keys.iter().zip(answers) {
            let read_state = answer.and_then(|answer| {
                let (seq, erased_seq, since): (Field, Field, Field) = read(key, answer)?;
                Ok((number::<u64>(key, seq.as_deref())?, number::<u64>(key, erased_seq.as_deref())?, since))
            });
            let Some((seq, erased_seq, since)) = self.unreadable.skip(RecordKind::State, read_state)? else { continue };
            if seq <= erased_seq {
                continue;
            }
            let since = since.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.split_once(' '));
            let since = since.and_then(|(of, ms)| Some((of.parse::<u64>().ok()?, ms.parse::<i64>().ok()?)));
            match since.filter(|(of, ms)| *of == seq && (0..=at_ms).contains(ms)) {
                Some((_, ms)) if at_ms - ms >= for_ms => {
                    quiet.extend(self.keys.user_of_state(key).map(|user| (user, seq)));
                }
                Some(_) => {}
                None => moved.push(Call::new("HSET", key).arg("quiet").arg(format!("{seq} {at_ms}"))),
            }
        }
        self.link.run("quiet users", moved).await?;
        Ok((quiet, next.place))
    }

    async fn item_user_counts(&self, items: &[String]) -> StoreResult<Vec<u32>> {
        let is_full = self.full_items.contains(items.iter().map(String::as_str));
        let open: Vec<&str> =
            items.iter().zip(&is_full).filter(|(_, is_full)| !**is_full).map(|(item, _)| item.as_str()).collect();
        let calls = open.iter().map(|item| Call::new("SCARD", &self.keys.item_users(item))).collect();
        let answers = self.link.run_each("item user counts", calls).await;
        let asked = open.iter().zip(answers).map(|(item, answer)| self.users(item, answer));
        let asked = asked.collect::<StoreResult<Vec<u32>>>()?;
        self.full_items.note(open.iter().copied().zip(asked.iter().copied()));
        let mut asked = asked.into_iter();
        let count = |is_full: bool| if is_full { Some(ITEM_USERS_CAP) } else { asked.next() };
        Ok(is_full.into_iter().map(count).map(Option::unwrap_or_default).collect())
    }
}

impl RedisStore {
    /// What both ways of appending do.
    async fn append_as(
        &self,
        source: Source,
        spaces: &[String],
        batches: &[UserBatch],
    ) -> StoreResult<Each<AppendOutcome>> {
        let parts: Vec<Part<'_>> = batches.iter().flat_map(parts_of).collect();
        let calls = parts.iter().map(|part| self.append_call(source, spaces, part)).collect::<StoreResult<Vec<_>>>()?;
        let answers = self.link.write_each("append", calls).await;
        let mut outcomes: Each<AppendOutcome> = Vec::with_capacity(batches.len());
        let (mut engaged, mut new_users) = (BTreeMap::new(), 0);
        for (part, answer) in parts.iter().zip(answers) {
            let before = if part.is_first { None } else { outcomes.pop() }.unwrap_or(Ok(AppendOutcome::default()));
            let key = self.keys.of_user(part.user, "st");
            let answer = answer.and_then(|answer| {
                let answer: Answer = read(&key, answer)?;
                let refreshed = refreshed_seq(&key, answer.8.as_bytes())?;
                Ok((answer, refreshed))
            });
            // Of a user's parts one that failed fails them all: they are repeated, and what is stored counts as duplicate.
            let (before, (answer, refreshed_seq)) = match (before, self.unreadable.watch(RecordKind::History, answer)) {
                (Ok(before), Ok(answer)) => (before, answer),
                (Err(error), _) | (_, Err(error)) => {
                    outcomes.push(Err(error));
                    continue;
                }
            };
            let (flags, is_new, seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq, _) = answer;
            new_users += u64::from(is_new);
            for (record, flag) in part.records.iter().zip(&flags) {
                note_engagement(&mut engaged, part.user, record, *flag);
            }
            let accepted = flags.iter().filter(|flag| **flag == b'a').count() as u32;
            outcomes.push(Ok(AppendOutcome {
                accepted: before.accepted + accepted,
                duplicates: before.duplicates + part.records.len() as u32 - accepted,
                state: UserState { seq, weight, last_refresh_ms, era, erased_before_ms, erased_seq },
                refreshed_seq,
            }));
        }
        self.count(engaged, new_users).await?;
        unless_all_failed(outcomes)
    }

    pub(super) fn append_call(&self, source: Source, spaces: &[String], part: &Part<'_>) -> StoreResult<Call> {
        let keys = ["st", "h:e", "h:i", "q", "prof", "remembered"].map(|name| self.keys.of_user(part.user, name));
        let kinds: Vec<u8> = part.records.iter().map(kind_of).collect();
        let call = Call::function(function!("append"), &keys).arg(self.clock_argument()).arg(spaces.len()).arg(spaces);
        let mut call = call.arg(u8::from(source == Source::Bulk)).arg(kinds);
        for record in part.records {
            let stored = stored_bytes(record);
            // A list's element may be longer, but a history of such is no history.
            if stored.len() > usize::from(u16::MAX) {
                return Err(corrupt(&keys[0], format!("event of {} bytes; at most 65535 are kept", stored.len())));
            }
            call = call.arg(record.weight).arg(&record.event_id).arg(stored);
            if let Some(former) = &record.former_id {
                call = call.arg(former);
            }
            if let RecordBody::Profile(attributes) = &record.body {
                call = call.arg(attributes.len());
                for (name, value) in attributes {
                    call = call.arg(name).arg(value.to_string());
                }
            }
        }
        let (attributes, formers) = (part.records.iter().map(attributes_of).sum(), formers_of(part.records));
        Ok(call.costing(append_cost(part.records.len(), attributes, formers)))
    }
}

/// Records of one user that one call appends.
pub(super) struct Part<'a> {
    pub user: &'a str,
    pub records: &'a [Record],
    /// Of the user's in a batch.
    pub is_first: bool,
}

/// A user's records in as many calls as keep each short, one at least.
pub(super) fn parts_of(batch: &UserBatch) -> Vec<Part<'_>> {
    let (mut parts, mut from, mut attributes, mut formers) = (Vec::new(), 0, 0, 0);
    for (index, record) in batch.records.iter().enumerate() {
        let (own_attributes, own_formers) = (attributes_of(record), usize::from(record.former_id.is_some()));
        (attributes, formers) = (attributes + own_attributes, formers + own_formers);
        if index > from && append_cost(index + 1 - from, attributes, formers) > PIECE {
            parts.push(from..index);
            (from, attributes, formers) = (index, own_attributes, own_formers);
        }
    }
    parts.push(from..batch.records.len());
    let part =
        |range: Range<usize>| Part { user: &batch.user, is_first: range.start == 0, records: &batch.records[range] };
    parts.into_iter().map(part).collect()
}

/// How many are looked for under two ids.
fn formers_of(records: &[Record]) -> usize {
    records.iter().filter(|record| record.former_id.is_some()).count()
}

fn attributes_of(record: &Record) -> usize {
    if let RecordBody::Profile(attributes) = &record.body { attributes.len() } else { 0 }
}

/// What the function calls this kind of record.
fn kind_of(record: &Record) -> u8 {
    let kind = match &record.body {
        RecordBody::Behaviour { class: ActionClass::Engagement, .. } => b'e',
        RecordBody::Behaviour { class: ActionClass::Impression, .. } => b'i',
        RecordBody::Behaviour { class: ActionClass::None, .. } => b'n',
        RecordBody::Query(_) => b'q',
        RecordBody::Profile(_) => b'p',
    };
    // A capital says that another id follows.
    if record.former_id.is_some() { kind.to_ascii_uppercase() } else { kind }
}

/// `ts | body`. A behaviour is kept without time and id, which stand beside it.
fn stored_bytes(record: &Record) -> Vec<u8> {
    let mut bytes = entries::time_bytes(record.ts_ms).to_vec();
    match &record.body {
        RecordBody::Behaviour { behaviour, .. } => {
            let body = Behaviour { ts_ms: 0, event_id: String::new(), ..behaviour.clone() };
            bytes.extend_from_slice(&body.encode_to_vec());
            rehearsal::extend_message(&mut bytes);
        }
        RecordBody::Query(query) => bytes.extend_from_slice(query.as_bytes()),
        RecordBody::Profile(_) => {}
    }
    bytes
}

fn note_engagement<'a>(engaged: &mut BTreeMap<&'a str, Vec<i64>>, user: &str, record: &'a Record, flag: u8) {
    if let RecordBody::Behaviour { class: ActionClass::Engagement, behaviour } = &record.body
        && !behaviour.item_id.is_empty()
        && matches!(flag, b'a' | b'k')
    {
        let users = engaged.entry(behaviour.item_id.as_str()).or_default();
        let user = xxh3_64(user.as_bytes()) as i64;
        if !users.contains(&user) {
            users.push(user);
        }
    }
}

fn refreshed_seq(key: &str, version: &[u8]) -> StoreResult<Option<u64>> {
    match version.split(|byte| *byte == b' ').next() {
        None | Some(b"") => Ok(None),
        seq => number(key, seq).map(Some),
    }
}

/// The lowest `seq` of these versions, one a space; `None` where a space has none: it is behind whatever the others read.
pub(super) fn least_refreshed(key: &str, versions: &[Field]) -> StoreResult<Option<u64>> {
    let seq = |version: &Field| refreshed_seq(key, version.as_deref().unwrap_or_default());
    let seqs = versions.iter().map(seq).collect::<StoreResult<Vec<Option<u64>>>>()?;
    Ok(seqs.into_iter().min().flatten())
}

/// The counters out of the fields [`STATE`]; `None` for a user never seen.
fn state_of(key: &str, fields: &[Field]) -> StoreResult<Option<UserState>> {
    let field = |nth: usize| fields.get(nth).and_then(|value| value.as_deref());
    if field(0).is_none() {
        return Ok(None);
    }
    Ok(Some(UserState {
        seq: number(key, field(0))?,
        weight: number(key, field(1))?,
        last_refresh_ms: number(key, field(2))?,
        era: number(key, field(3))?,
        erased_before_ms: number(key, field(4))?,
        erased_seq: number(key, field(5))?,
    }))
}

/// The history of a user out of the five answers.
fn history_of(key: &str, parts: Vec<Value>) -> StoreResult<Option<UserHistory>> {
    let Ok([state, engagements, impressions, queries, profile]) = <[Value; 5]>::try_from(parts) else {
        return Err(corrupt(key, "answers are missing"));
    };
    let Some(state) = state_of(key, &read::<Vec<Field>>(key, state)?)? else { return Ok(None) };
    let unreadable = |message: String| corrupt(key, message);
    let list = |value: Value| read::<Vec<Vec<u8>>>(key, value);
    let attributes: Vec<(String, Vec<u8>)> = read(key, profile)?;
    Ok(Some(UserHistory {
        state,
        engagements: behaviours(&list(engagements)?).map_err(unreadable)?,
        impressions: behaviours(&list(impressions)?).map_err(unreadable)?,
        queries: texts(&list(queries)?).map_err(unreadable)?,
        profile: attributes.into_iter().map(attribute).collect::<CodecResult<_>>().map_err(unreadable)?,
    }))
}

fn behaviours(list: &[Vec<u8>]) -> CodecResult<Vec<Behaviour>> {
    let restore = |(ts_ms, id, body): (i64, &str, &[u8])| {
        let behaviour = Behaviour::decode(body).map_err(|error| error.to_string())?;
        Ok(Behaviour { ts_ms, event_id: id.to_string(), ..behaviour })
    };
    entries::entries(list)?.into_iter().map(restore).collect()
}

fn texts(list: &[Vec<u8>]) -> CodecResult<Vec<(i64, String)>> {
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).map_err(|error| error.to_string());
    entries::entries(list)?.into_iter().map(|(ts_ms, _, body)| Ok((ts_ms, text(body)?))).collect()
}

fn attribute((name, bytes): (String, Vec<u8>)) -> CodecResult<(String, (i64, serde_json::Value))> {
    let (ts_ms, value) = entries::attribute(&bytes)?;
    let value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    Ok((name, (ts_ms, value)))
}
