//! How records look as bytes inside a store. In: the types of [`super::types`]. Out: bytes, and back.
//!
//! Fixed little-endian fields in a fixed order, lengths as varints, the protobuf of `proto/taiji.proto` where a record
//! holds a message. Each kind starts with a format byte: a reader that meets another one says so instead of guessing.
//! A later version may add to the end of a record of the same format; what is behind the last known field is passed over.
//! Callers: the stores. The kept lists of a history have their own file, [`super::kept`].

use super::rehearsal::{self, extend_record};
use super::types::{Erasure, FreshVector, IdlePlan, StoredFeatures, UserState};
use crate::feature::{Group, GroupBlob, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Format byte of every record written by this version, but a user's.
const FORMAT: u8 = 1;
/// Format byte of a [`UserRecord`]; the first had no erasures.
const USER_FORMAT: u8 = 2;

/// What is wrong with a record; the store adds the key.
pub type CodecResult<T> = Result<T, String>;

/// A user's counters together with what was refreshed in each space, so that an append reads one small record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UserRecord {
    /// The counters.
    pub state: UserState,
    /// Version of the last tier-1 write or skip, by space.
    pub refreshed: BTreeMap<String, Version>,
    /// Highest id of an erasure that was applied, 0 = none.
    pub erasure_id: u64,
}

impl UserRecord {
    /// The lowest `seq` refreshed in these spaces; `None` where one of them has none.
    pub fn least_refreshed(&self, spaces: &[String]) -> Option<u64> {
        spaces.iter().map(|space| self.refreshed.get(space).map(|version| version.seq)).min().flatten()
    }
}

/// One profile attribute: its value and the event that set it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileAttribute {
    /// Time of the newest event that named it.
    pub ts_ms: i64,
    /// That event; breaks the tie of equal times, whatever order the events arrive in.
    pub event_id: String,
    /// As sent.
    pub value: serde_json::Value,
}

/// Profile as stored.
pub type Profile = BTreeMap<String, ProfileAttribute>;

/// Bytes of a [`UserRecord`].
pub fn encode_user(record: &UserRecord) -> Vec<u8> {
    let mut bytes = vec![USER_FORMAT];
    let state = &record.state;
    put_u64(&mut bytes, state.seq);
    put_u64(&mut bytes, state.weight.to_bits());
    put_i64(&mut bytes, state.last_refresh_ms);
    put_u64(&mut bytes, state.era);
    put_i64(&mut bytes, state.erased_before_ms);
    put_length(&mut bytes, record.refreshed.len());
    for (space, version) in &record.refreshed {
        put_bytes(&mut bytes, space.as_bytes());
        put_version(&mut bytes, *version);
    }
    put_u64(&mut bytes, state.erased_seq);
    put_u64(&mut bytes, record.erasure_id);
    extend_record(bytes)
}

/// The [`UserRecord`] of these bytes.
pub fn decode_user(bytes: &[u8]) -> CodecResult<UserRecord> {
    let mut reader = Reader::new(bytes);
    let format = reader.u8()?;
    if !(FORMAT..=USER_FORMAT).contains(&format) {
        return Err(format!("record format {format}, this version reads up to {USER_FORMAT}"));
    }
    let mut state = UserState {
        seq: reader.u64()?,
        weight: f64::from_bits(reader.u64()?),
        last_refresh_ms: reader.i64()?,
        era: reader.u64()?,
        erased_before_ms: reader.i64()?,
        erased_seq: 0,
    };
    let mut refreshed = BTreeMap::new();
    for _ in 0..reader.length()? {
        let space = reader.text()?.to_string();
        refreshed.insert(space, reader.version()?);
    }
    let mut erasure_id = 0;
    if format == USER_FORMAT {
        state.erased_seq = reader.u64()?;
        erasure_id = reader.u64()?;
    }
    Ok(UserRecord { state, refreshed, erasure_id })
}

/// Bytes of an [`Erasure`]; its user is the key.
pub fn encode_erasure(erasure: &Erasure) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    put_u64(&mut bytes, erasure.id);
    bytes.push(u8::from(erasure.finished_era.is_some()));
    put_u64(&mut bytes, erasure.finished_era.unwrap_or(0));
    extend_record(bytes)
}

/// The [`Erasure`] of these bytes.
pub fn decode_erasure(user: &str, bytes: &[u8]) -> CodecResult<Erasure> {
    let mut reader = Reader::of_record(bytes)?;
    let id = reader.u64()?;
    let finished = reader.u8()? == 1;
    let era = reader.u64()?;
    Ok(Erasure { user: user.to_string(), id, finished_era: finished.then_some(era) })
}

/// What is kept of an erasure of an idle user beside its id, as JSON.
pub fn encode_plan(plan: &IdlePlan) -> CodecResult<Vec<u8>> {
    rehearsal::json(plan).map_err(|error| error.to_string())
}

/// Id and plan of `id plan`.
pub fn decode_plan(bytes: &[u8]) -> CodecResult<(u64, IdlePlan)> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let (id, plan) = text.split_once(' ').ok_or("no plan of an erasure")?;
    let id = id.parse().map_err(|_| format!("{id:?} is no number"))?;
    Ok((id, serde_json::from_str(plan).map_err(|error| error.to_string())?))
}

/// Features as stored: what readers get, and the full version behind `refreshed_seq`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FeatureRecord {
    /// What readers get.
    pub features: StoredFeatures,
    /// `refreshed_seq` with its turn.
    pub refreshed: Option<Version>,
}

/// Bytes of a [`FeatureRecord`].
pub fn encode_features(record: &FeatureRecord) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    put_optional_version(&mut bytes, record.refreshed);
    put_u64(&mut bytes, record.features.prompt_hash);
    put_bytes(&mut bytes, &record.features.embedding);
    put_length(&mut bytes, record.features.groups.len());
    for blob in &record.features.groups {
        bytes.push(group_number(blob.group));
        bytes.push(blob.tier);
        put_version(&mut bytes, blob.version);
        put_i64(&mut bytes, blob.expires_at_ms);
        put_bytes(&mut bytes, &blob.bytes);
    }
    extend_record(bytes)
}

/// The [`FeatureRecord`] of these bytes.
pub fn decode_features(bytes: &[u8]) -> CodecResult<FeatureRecord> {
    let mut reader = Reader::of_record(bytes)?;
    let refreshed = reader.optional_version()?;
    let prompt_hash = reader.u64()?;
    let embedding = reader.bytes()?.to_vec();
    let mut groups = Vec::new();
    for _ in 0..reader.length()? {
        let number = reader.u8()?;
        let (tier, version, expires_at_ms) = (reader.u8()?, reader.version()?, reader.i64()?);
        let bytes = reader.bytes()?;
        // A group of a later version is none of ours.
        if let Some(group) = group_of(number) {
            groups.push(GroupBlob { group, tier, version, expires_at_ms, bytes: bytes.to_vec().into() });
        }
    }
    let refreshed_seq = refreshed.map(|version| version.seq);
    Ok(FeatureRecord { features: StoredFeatures { groups, refreshed_seq, prompt_hash, embedding }, refreshed })
}

/// Bytes of an entry of the vector feed.
pub fn encode_vector(vector: &FreshVector) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    put_bytes(&mut bytes, vector.user.as_bytes());
    put_u64(&mut bytes, vector.era);
    put_version(&mut bytes, vector.version);
    bytes.push(u8::from(vector.vector.is_some()));
    put_bytes(&mut bytes, vector.vector.as_deref().unwrap_or_default());
    extend_record(bytes)
}

/// The entry of these bytes.
pub fn decode_vector(bytes: &[u8]) -> CodecResult<FreshVector> {
    let mut reader = Reader::of_record(bytes)?;
    let user = reader.text()?.to_string();
    let era = reader.u64()?;
    let version = reader.version()?;
    let present = reader.u8()? == 1;
    let vector = reader.bytes()?.to_vec();
    Ok(FreshVector { user, era, version, vector: present.then_some(vector) })
}

/// Bytes of a place in the due queue.
pub fn encode_due(class: u8, due_ms: i64) -> Vec<u8> {
    let mut bytes = vec![FORMAT, class];
    put_i64(&mut bytes, due_ms);
    extend_record(bytes)
}

/// (class, due_ms) of these bytes.
pub fn decode_due(bytes: &[u8]) -> CodecResult<(u8, i64)> {
    let mut reader = Reader::of_record(bytes)?;
    let due = (reader.u8()?, reader.i64()?);
    Ok(due)
}

fn group_number(group: Group) -> u8 {
    match group {
        Group::Intra => 1,
        Group::Cross => 2,
        Group::Scid => 3,
        Group::Text => 4,
    }
}

fn group_of(number: u8) -> Option<Group> {
    Group::ALL.into_iter().find(|group| group_number(*group) == number)
}

fn put_u64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_i64(bytes: &mut Vec<u8>, value: i64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn put_length(bytes: &mut Vec<u8>, length: usize) {
    prost::encoding::encode_varint(length as u64, bytes);
}

pub(super) fn put_bytes(bytes: &mut Vec<u8>, part: &[u8]) {
    put_length(bytes, part.len());
    bytes.extend_from_slice(part);
}

fn put_version(bytes: &mut Vec<u8>, version: Version) {
    put_u64(bytes, version.seq);
    put_u64(bytes, version.turn);
}

fn put_optional_version(bytes: &mut Vec<u8>, version: Option<Version>) {
    bytes.push(u8::from(version.is_some()));
    put_version(bytes, version.unwrap_or_default());
}

/// Takes a record apart from front to back; every step says what is missing.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over bytes without a format byte.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    fn of_record(bytes: &'a [u8]) -> CodecResult<Self> {
        let mut reader = Reader::new(bytes);
        match reader.u8()? {
            FORMAT => Ok(reader),
            other => Err(format!("record format {other}, this version reads {FORMAT}")),
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, count: usize) -> CodecResult<&'a [u8]> {
        if count > self.rest.len() {
            return Err(format!("{count} bytes expected, {} left", self.rest.len()));
        }
        let (part, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> CodecResult<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> CodecResult<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u64(&mut self) -> CodecResult<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> CodecResult<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn length(&mut self) -> CodecResult<usize> {
        let length = prost::encoding::decode_varint(&mut self.rest).map_err(|error| error.to_string())?;
        usize::try_from(length).map_err(|error| error.to_string())
    }

    pub(super) fn bytes(&mut self) -> CodecResult<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn text(&mut self) -> CodecResult<&'a str> {
        std::str::from_utf8(self.bytes()?).map_err(|error| error.to_string())
    }

    fn version(&mut self) -> CodecResult<Version> {
        Ok(Version { seq: self.u64()?, turn: self.u64()? })
    }

    fn optional_version(&mut self) -> CodecResult<Option<Version>> {
        let present = self.u8()? == 1;
        let version = self.version()?;
        Ok(present.then_some(version))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_come_back_as_they_went_in() {
        let version = Version { seq: 7, turn: 2 };
        let user = UserRecord {
            state: UserState { seq: 9, weight: 1.5, last_refresh_ms: -1, era: 3, erased_before_ms: 4, erased_seq: 5 },
            refreshed: BTreeMap::from([("s1".to_string(), version), (String::new(), Version::default())]),
            erasure_id: 6,
        };
        assert_eq!(decode_user(&encode_user(&user)).unwrap(), user);
        let blob = GroupBlob { group: Group::Scid, bytes: vec![1; 300].into(), tier: 1, version, expires_at_ms: 77 };
        let features = FeatureRecord {
            features: StoredFeatures {
                groups: vec![blob],
                refreshed_seq: Some(7),
                prompt_hash: 8,
                embedding: vec![0; 2048],
            },
            refreshed: Some(version),
        };
        assert_eq!(decode_features(&encode_features(&features)).unwrap(), features);
        for vector in [None, Some(vec![]), Some(vec![1, 2])] {
            let entry = FreshVector { user: "ü".into(), era: 1, version, vector };
            assert_eq!(decode_vector(&encode_vector(&entry)).unwrap(), entry);
        }
        assert_eq!(decode_due(&encode_due(3, -5)).unwrap(), (3, -5));
        for finished_era in [None, Some(4)] {
            let erasure = Erasure { user: "ü".into(), id: 9, finished_era };
            assert_eq!(decode_erasure("ü", &encode_erasure(&erasure)).unwrap(), erasure);
        }
    }

    #[test]
    fn a_user_written_before_erasures_were_is_read() {
        let state = UserState { seq: 9, weight: 1.5, era: 0, ..UserState::default() };
        let user = UserRecord { state, ..UserRecord::default() };
        let mut bytes = encode_user(&user);
        bytes[0] = FORMAT;
        bytes.truncate(bytes.len() - 16);
        assert_eq!(decode_user(&bytes).unwrap(), user);
    }

    #[test]
    fn audit_02_what_a_later_version_adds_to_a_record_is_passed_over() {
        let later = |record: Vec<u8>| [record, b"later".to_vec()].concat();
        let user = UserRecord { erasure_id: 6, ..UserRecord::default() };
        assert_eq!(decode_user(&later(encode_user(&user))).unwrap(), user);
        assert_eq!(decode_due(&later(encode_due(3, -5))).unwrap(), (3, -5));
        let erasure = Erasure { user: "u".into(), id: 9, finished_era: Some(1) };
        assert_eq!(decode_erasure("u", &later(encode_erasure(&erasure))).unwrap(), erasure);
        let fresh = FreshVector { user: "u".into(), era: 1, version: Version::default(), vector: Some(vec![1]) };
        assert_eq!(decode_vector(&later(encode_vector(&fresh))).unwrap(), fresh);
        let blob =
            |group| GroupBlob { group, bytes: vec![1].into(), tier: 1, version: Version::default(), expires_at_ms: 0 };
        let groups = vec![blob(Group::Intra), blob(Group::Cross)];
        let features = StoredFeatures { groups, ..StoredFeatures::default() };
        let mut bytes = encode_features(&FeatureRecord { features, refreshed: None });
        let at = bytes.len() - 28;
        assert_eq!(bytes[at], group_number(Group::Cross));
        bytes[at] = 9;
        let read = decode_features(&later(bytes)).unwrap().features;
        assert_eq!(read.groups, [blob(Group::Intra)], "a group of a later version is left out");
    }

    #[test]
    fn damaged_records_are_errors_not_panics() {
        let whole = encode_user(&UserRecord::default());
        for length in 0..whole.len() {
            assert!(decode_user(&whole[..length]).is_err(), "cut at {length}");
        }
        assert!(decode_user(&[3]).unwrap_err().contains("record format 3"));
        let huge = [vec![FORMAT], vec![0; 25], vec![0xff; 9], vec![1]].concat();
        assert!(decode_features(&huge).is_err());
    }
}
