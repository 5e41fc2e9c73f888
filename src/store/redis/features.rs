//! Writing and reading features (DESIGN 5.2, Put and Skip), and noting who shows whom.
//!
//! A user's features in a space are one hash: a field a group (a short header, then the message as it goes on the wire),
//! the refreshed version, the prompt's hash, the vector, a revision. A refresh reads all of it (`HGETALL`), whoever serves
//! only the fields asked for (`HMGET`): the vector alone is 2 KB.
//!
//! A put reads, decides by the rules the embedded store uses, and hands the result to a function that writes only if
//! era and revision are still those read; else it reads again.

use super::call::Call;
use super::link::HashReads;
use super::pace::{COMMAND, WHOLE_KEY};
#[cfg(any(test, feature = "fuzz"))]
use super::reads::Replies;
use super::reads::Reply;
use super::values::{corrupt, digits, number, read};
use super::{RedisStore, function};
use crate::feature::{Group, GroupBlob, Version};
use crate::log_id::LogId;
use crate::store::codec::{CodecResult, FeatureRecord};
use crate::store::embedded::put_rules;
use crate::store::rehearsal;
use crate::store::{
    Each, FeaturePut, Features, PutOutcome, PutRefusal, RecordKind, StoreError, StoreResult, StoredFeatures,
    unless_all_failed,
};
use async_trait::async_trait;
use bytes::Bytes;
use redis::Value;

/// A key outlives its last group by this, so that readers learn "expired" and not "never made", in ms.
const EXPIRY_GRACE_MS: i64 = 3_600_000;
/// Other writers of one user that a write gives way to; two replicas at one user are rare, ten at once are a fault.
pub(super) const ROUNDS: u32 = 10;
/// Bytes before a group's message: tier, seq, turn, expiry.
const HEADER: usize = 25;

/// What a put read.
struct Read {
    seq: u64,
    era: u64,
    record: FeatureRecord,
    revision: String,
    now_ms: i64,
}

#[async_trait]
impl Features for RedisStore {
    async fn feature_groups_each(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Each<Option<StoredFeatures>>> {
        // The revision says that there are features at all.
        let names: Vec<&str> = ["rev", "r"].into_iter().chain(groups.iter().map(|group| group.as_str())).collect();
        let part = ["f:", space].concat();
        let keys: Vec<String> = users.iter().map(|user| self.keys.of_user(user, &part)).collect();
        let cost = COMMAND + groups.len() as u32;
        let reads = HashReads { operation: "read groups", keys: &keys, fields: &names, cost };
        let decode = |index: usize, reply: Reply<'_>| {
            decode_groups(groups, reply).map_err(|message| corrupt(&keys[index], message))
        };
        let answers = self.link.read_hashes(&reads, decode).await;
        unless_all_failed(answers.into_iter().map(|one| self.unreadable.watch(RecordKind::Features, one)).collect())
    }

    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>> {
        let calls = users
            .iter()
            .map(|user| Call::new("HGETALL", &self.keys.features(user, space)).costing(WHOLE_KEY))
            .collect();
        let answers = self.link.run("read features", calls).await;
        let answers = self.unreadable.watch(RecordKind::Features, answers)?;
        let decode = |(user, value): (&String, Value)| {
            let decoded = decode(&self.keys.features(user, space), value);
            let (record, revision) = self.unreadable.watch(RecordKind::Features, decoded)?;
            Ok((!revision.is_empty()).then_some(record.features))
        };
        users.iter().zip(answers).map(decode).collect()
    }

    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome> {
        for _ in 0..ROUNDS {
            let read = self.read_for_put(space, &put.user).await?;
            if put.era != read.era {
                return Ok(PutOutcome::Refused(PutRefusal::Era));
            }
            if put.version.seq > read.seq {
                return Ok(PutOutcome::Refused(PutRefusal::FutureSeq));
            }
            let record = match put_rules::decide(read.record, &put, read.now_ms) {
                Ok(record) => record,
                Err(refusal) => return Ok(PutOutcome::Refused(refusal)),
            };
            if let Some(outcome) = self.write_put(space, &put, &record, &read.revision).await? {
                return Ok(outcome);
            }
        }
        Err(contended("put", &put.user))
    }

    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize> {
        let key = self.keys.referrers(neighbour, space);
        let calls = vec![Call::new("SADD", &key).arg(user), Call::new("SCARD", &key)];
        read(&key, self.link.run("add referrer", calls).await?.pop().unwrap_or_default())
    }

    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()> {
        let key = self.keys.referrers(neighbour, space);
        self.link.one("remove referrer", Call::new("SREM", &key).arg(user)).await?;
        Ok(())
    }

    async fn referrer_counts_each(&self, space: &str, neighbours: &[String]) -> StoreResult<Each<usize>> {
        let keys: Vec<String> = neighbours.iter().map(|user| self.keys.referrers(user, space)).collect();
        let calls = keys.iter().map(|key| Call::new("SCARD", key)).collect();
        let answers = self.link.run_each("referrer counts", calls).await;
        let count = |(key, answer): (&String, StoreResult<Value>)| read(key, answer?);
        let watched = |asked| self.unreadable.watch(RecordKind::Referrers, count(asked));
        unless_all_failed(keys.iter().zip(answers).map(watched).collect())
    }

    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>> {
        let key = self.keys.referrers(neighbour, space);
        let mut users: Vec<String> = self.scan("read referrers", "SSCAN", &key).await?;
        users.sort_unstable();
        users.dedup();
        Ok(users)
    }
}

impl RedisStore {
    async fn read_for_put(&self, space: &str, user: &str) -> StoreResult<Read> {
        let (state_key, key) = (self.keys.of_user(user, "st"), self.keys.features(user, space));
        let calls = vec![
            Call::new("HMGET", &state_key).arg(&["seq", "era"]),
            Call::new("HGETALL", &key).costing(WHOLE_KEY),
            Call::beside("TIME", &key),
        ];
        let answers = self.link.run_each("put", calls).await;
        let Ok([state, features, time]) = <[StoreResult<Value>; 3]>::try_from(answers) else {
            return Err(corrupt(&key, "answers are missing"));
        };
        let state: (Option<Vec<u8>>, Option<Vec<u8>>) = read(&state_key, state?)?;
        let features = features.and_then(|features| decode(&key, features));
        let (record, revision) = match self.unreadable.skip(RecordKind::Features, features)? {
            Some(found) => found,
            None => {
                self.delete_features(&key).await?;
                Default::default()
            }
        };
        Ok(Read {
            seq: number(&state_key, state.0.as_deref())?,
            era: number(&state_key, state.1.as_deref())?,
            record,
            revision: if revision.is_empty() { "0".into() } else { revision },
            now_ms: self.time_of(time?)?,
        })
    }

    /// Features that cannot be read go: they were made from the history, and are made again.
    pub(super) async fn delete_features(&self, key: &str) -> StoreResult<()> {
        self.link.one("delete features", Call::new("UNLINK", key)).await?;
        Ok(())
    }

    /// A record and its revision.
    pub(super) async fn read_record(
        &self,
        operation: &'static str,
        key: &str,
    ) -> StoreResult<Option<(FeatureRecord, String)>> {
        let (record, revision) = decode(key, self.link.one(operation, Call::new("HGETALL", key)).await?)?;
        Ok((!revision.is_empty()).then_some((record, revision)))
    }

    /// Writes a record that no put made; false when someone else wrote in between.
    pub(super) async fn rewrite(
        &self,
        operation: &'static str,
        key: &str,
        record: &FeatureRecord,
        revision: &str,
    ) -> StoreResult<bool> {
        let call = Call::function(function!("rewrite"), &[key.to_string()]).arg("").arg(revision);
        let call = fields(record).into_iter().fold(call, |call, (field, value)| call.arg(field).arg(value));
        read(key, self.link.one(operation, call).await?)
    }

    /// Notes a user who had no state before a function wrote one: `is_new` is the function's answer, 1 or 0.
    pub(super) async fn count_new_user(&self, is_new: u64) -> StoreResult<()> {
        if is_new > 0 {
            let counted = self.link.one("count users", Call::new("INCRBY", &self.keys.user_count()).arg(is_new)).await;
            self.unreadable.skip(RecordKind::Count, counted)?;
        }
        Ok(())
    }

    /// `None` when someone else wrote in between.
    async fn write_put(
        &self,
        space: &str,
        put: &FeaturePut,
        record: &FeatureRecord,
        revision: &str,
    ) -> StoreResult<Option<PutOutcome>> {
        let keys = [self.keys.of_user(&put.user, "st"), self.keys.features(&put.user, space)];
        let notes = put.tier >= 1 && record.refreshed == Some(put.version);
        let mut call = Call::function(function!("put"), &keys)
            .arg(self.clock_argument())
            .arg(space)
            .arg(put.era)
            .arg(put.version.seq)
            .arg(put.version.turn)
            .arg(revision)
            .arg(u8::from(notes))
            .arg(expiry(record).map_or(String::new(), |at_ms| at_ms.to_string()));
        for (field, value) in fields(record) {
            call = call.arg(field).arg(value);
        }
        let (word, current_seq, is_new): (String, u64, u64) = read(&keys[0], self.link.one("put", call).await?)?;
        match word.as_str() {
            "written" => {
                self.count_new_user(is_new).await?;
                Ok(Some(PutOutcome::Written { current_seq }))
            }
            "era" => Ok(Some(PutOutcome::Refused(PutRefusal::Era))),
            "future" => Ok(Some(PutOutcome::Refused(PutRefusal::FutureSeq))),
            _ => Ok(None),
        }
    }
}

/// Others were quicker [`ROUNDS`] times.
pub(super) fn contended(operation: &'static str, user: &str) -> StoreError {
    let message = format!("user {} was written by others {ROUNDS} times in a row; try again", LogId(user));
    StoreError::Busy { operation, message }
}

/// When the key may go: never while a group lives for ever.
fn expiry(record: &FeatureRecord) -> Option<i64> {
    let ends = record.features.groups.iter().map(|blob| blob.expires_at_ms);
    let last = ends.clone().max()?;
    (!ends.into_iter().any(|at_ms| at_ms == 0)).then_some(last.saturating_add(EXPIRY_GRACE_MS))
}

pub(crate) fn fields(record: &FeatureRecord) -> Vec<(&'static str, Vec<u8>)> {
    let refreshed = record.refreshed.map_or(String::new(), |version| format!("{} {}", version.seq, version.turn));
    let mut fields = vec![
        ("r", refreshed.into_bytes()),
        ("h", record.features.prompt_hash.to_string().into_bytes()),
        ("emb", record.features.embedding.clone()),
    ];
    for blob in &record.features.groups {
        let mut bytes = Vec::with_capacity(HEADER + blob.bytes.len());
        bytes.push(blob.tier);
        bytes.extend_from_slice(&blob.version.seq.to_be_bytes());
        bytes.extend_from_slice(&blob.version.turn.to_be_bytes());
        bytes.extend_from_slice(&blob.expires_at_ms.to_be_bytes());
        bytes.extend_from_slice(&blob.bytes);
        rehearsal::extend_message(&mut bytes);
        fields.push((blob.group.as_str(), bytes));
    }
    if let Some(build) = rehearsal::build() {
        fields.push((rehearsal::FIELD, build.into()));
    }
    fields
}

/// The record and its revision, which is empty when there is none.
pub(crate) fn decode(key: &str, value: Value) -> StoreResult<(FeatureRecord, String)> {
    decode_fields(key, read(key, value)?)
}

/// The answer of HMGET for `rev`, `r` and these groups; `None` without features. Judges as [`decode`] does (a fuzz target compares
/// them), and builds neither names nor copies: this is every read.
fn decode_groups(groups: &[Group], reply: Reply<'_>) -> CodecResult<Option<StoredFeatures>> {
    let mut fields = reply.fields()?;
    let (revision, refreshed) = (fields.take()?, fields.take()?);
    revision.map(digits::<u64>).transpose()?;
    let refreshed_seq = refreshed.map_or(Ok(None), version)?.map(|version| version.seq);
    let groups_held = Vec::with_capacity(groups.len());
    let mut features = StoredFeatures { refreshed_seq, groups: groups_held, ..StoredFeatures::default() };
    for group in groups {
        if let Some(bytes) = fields.take()? {
            features.groups.push(blob(*group, bytes, |message| fields.keep(message))?);
        }
    }
    features.groups.sort_by_key(|blob| blob.group);
    Ok(revision.is_some().then_some(features))
}

/// For the fuzz target: the same of what `redis` has read.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn decode_groups_of(groups: &[Group], value: &Value) -> CodecResult<Option<StoredFeatures>> {
    let replies = Replies::of_value(value);
    let reply = replies.iter().next().ok_or("no answer")?;
    decode_groups(groups, reply)
}

/// As [`decode`], of any of the fields.
fn decode_fields(key: &str, stored: Vec<(String, Vec<u8>)>) -> StoreResult<(FeatureRecord, String)> {
    let (mut record, mut revision) = (FeatureRecord::default(), String::new());
    for (field, bytes) in stored {
        match field.as_str() {
            "rev" => revision = number::<u64>(key, Some(&bytes))?.to_string(),
            "r" => record.refreshed = version(&bytes).map_err(|message| corrupt(key, message))?,
            "h" => record.features.prompt_hash = number(key, Some(&bytes))?,
            "emb" => record.features.embedding = bytes,
            name => {
                // A field of a later version is none of ours.
                let Some(group) = Group::parse(name) else { continue };
                let whole = Bytes::from(bytes);
                let kept = blob(group, &whole, |message| whole.slice_ref(message));
                record.features.groups.push(kept.map_err(|message| corrupt(key, message))?);
            }
        }
    }
    record.features.groups.sort_by_key(|blob| blob.group);
    record.features.refreshed_seq = record.refreshed.map(|version| version.seq);
    Ok((record, revision))
}

/// `seq turn`; empty = never refreshed.
fn version(bytes: &[u8]) -> CodecResult<Option<Version>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut parts = bytes.split(|byte| *byte == b' ');
    let mut next = || parts.next().map_or(Ok(0), digits);
    Ok(Some(Version { seq: next()?, turn: next()? }))
}

/// A group's header and its message, which `keep` makes the blob's own.
fn blob<'a>(group: Group, bytes: &'a [u8], keep: impl Fn(&'a [u8]) -> Bytes) -> CodecResult<GroupBlob> {
    let (header, message) = bytes.split_first_chunk::<HEADER>().ok_or("a group shorter than its header")?;
    let eight = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&header[at..at + 8]);
        word
    };
    Ok(GroupBlob {
        group,
        bytes: keep(message),
        tier: header[0],
        version: Version { seq: u64::from_be_bytes(eight(1)), turn: u64::from_be_bytes(eight(9)) },
        expires_at_ms: i64::from_be_bytes(eight(17)),
    })
}
