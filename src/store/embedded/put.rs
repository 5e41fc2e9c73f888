//! Writing and reading features (DESIGN 5.2, Put and Skip), and noting who shows whom.
//!
//! In: one refresh's result. Out: written or refused. The rules are [`decide`], a function of values without a store.
//!
//! Groups are judged one by one. What belongs to the record as a whole (`refreshed_seq`, `prompt_hash`, the vector,
//! and the user's weight) moves only with a tier-1 version that is not below the one it stands at.

use super::EmbeddedStore;
use super::engine::failed;
use super::keys::{self, Kind};
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{CrossGroup, GroupMeta, IntraGroup, ScidGroup, TextGroup};
use crate::store::codec::{self, FeatureRecord, UserRecord};
use crate::store::{
    Each, FeaturePut, Features, PutBody, PutOutcome, PutRefusal, RecordKind, StoreResult, StoredFeatures,
    unless_all_failed,
};
use async_trait::async_trait;
use fjall::Readable;
use prost::{DecodeError, Message};

#[async_trait]
impl Features for EmbeddedStore {
    async fn feature_groups_each(
        &self,
        space: &str,
        users: &[String],
        groups: &[Group],
    ) -> StoreResult<Each<Option<StoredFeatures>>> {
        // A record is one value: the rest is read with it, and left here.
        let only = |features: Option<StoredFeatures>| features.map(|features| features.only(groups));
        unless_all_failed(self.read_features(space, users).map(|stored| stored.map(only)).collect())
    }

    async fn features(&self, space: &str, users: &[String]) -> StoreResult<Vec<Option<StoredFeatures>>> {
        self.read_features(space, users).collect()
    }

    async fn put(&self, space: &str, put: FeaturePut) -> StoreResult<PutOutcome> {
        self.write(|inner| {
            let _user = inner.user_locks.lock(&put.user);
            let snapshot = inner.engine.database.snapshot();
            let known = inner.engine.user_record(&snapshot, &put.user)?;
            let is_new = known.is_none();
            let mut user = known.unwrap_or_default();
            if put.era != user.state.era {
                return Ok(PutOutcome::Refused(PutRefusal::Era));
            }
            if put.version.seq > user.state.seq {
                return Ok(PutOutcome::Refused(PutRefusal::FutureSeq));
            }
            let key = keys::of_user_in_space(&put.user, Kind::Features, space);
            let stored = inner.engine.read(&snapshot, &inner.engine.users, &key, codec::decode_features);
            let stored = inner.unreadable.skip(RecordKind::Features, stored)?.flatten();
            let now_ms = inner.now_ms();
            let record = match decide(stored.unwrap_or_default(), &put, now_ms) {
                Ok(record) => record,
                Err(refusal) => return Ok(PutOutcome::Refused(refusal)),
            };
            if put.tier >= 1 && record.refreshed == Some(put.version) {
                note_refresh(&mut user, space, put.version, now_ms);
            }
            let mut batch = inner.engine.batch();
            batch.insert(&inner.engine.users, key, codec::encode_features(&record));
            inner.engine.write_user_record(&mut batch, &put.user, &user);
            inner.engine.commit("put", batch)?;
            inner.count_new_users(usize::from(is_new));
            Ok(PutOutcome::Written { current_seq: user.state.seq })
        })
    }

    async fn add_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<usize> {
        self.write(|inner| {
            let _neighbour = inner.user_locks.lock(neighbour);
            let (known, count) = inner.referrer(space, neighbour, user)?;
            if known {
                return Ok(count as usize);
            }
            let mut batch = inner.engine.batch();
            batch.insert(&inner.engine.users, keys::of_referrer(neighbour, space, user), []);
            inner.write_referrer_count(&mut batch, space, neighbour, count + 1);
            inner.engine.commit("add referrer", batch)?;
            Ok(count as usize + 1)
        })
    }

    async fn remove_referrer(&self, space: &str, neighbour: &str, user: &str) -> StoreResult<()> {
        self.write(|inner| {
            let _neighbour = inner.user_locks.lock(neighbour);
            let (known, count) = inner.referrer(space, neighbour, user)?;
            if !known {
                return Ok(());
            }
            let mut batch = inner.engine.batch();
            batch.remove(&inner.engine.users, keys::of_referrer(neighbour, space, user));
            inner.write_referrer_count(&mut batch, space, neighbour, count.saturating_sub(1));
            inner.engine.commit("remove referrer", batch)
        })
    }

    async fn referrer_counts_each(&self, space: &str, neighbours: &[String]) -> StoreResult<Each<usize>> {
        let inner = &self.inner;
        let snapshot = inner.engine.database.snapshot();
        let count = |neighbour: &String| Ok(inner.referrer_count(&snapshot, space, neighbour)? as usize);
        unless_all_failed(neighbours.iter().map(count).collect())
    }

    async fn referrers(&self, space: &str, neighbour: &str) -> StoreResult<Vec<String>> {
        let inner = &self.inner;
        let prefix = keys::of_user_in_space(neighbour, Kind::Referrer, space);
        let snapshot = inner.engine.database.snapshot();
        let mut users = Vec::new();
        for entry in snapshot.prefix(&inner.engine.users, &prefix) {
            let key = entry.key().map_err(|error| failed("read referrers", &error))?;
            // What is no key of ours is nobody.
            users.extend(keys::parse_user(&key[prefix.len()..]).map(String::from));
        }
        Ok(users)
    }
}

impl EmbeddedStore {
    fn read_features(
        &self,
        space: &str,
        users: &[String],
    ) -> impl Iterator<Item = StoreResult<Option<StoredFeatures>>> {
        let inner = &self.inner;
        let snapshot = inner.engine.database.snapshot();
        users.iter().map(move |user| {
            let key = keys::of_user_in_space(user, Kind::Features, space);
            let record = inner.engine.read(&snapshot, &inner.engine.users, &key, codec::decode_features);
            Ok(inner.unreadable.watch(RecordKind::Features, record)?.map(|record| record.features))
        })
    }
}

/// Weight is kept when events arrived after the refresh read: which share of it they brought is not recorded, and too
/// much weight only brings the next refresh forward, while too little could hold it back until `max_interval`.
fn note_refresh(user: &mut UserRecord, space: &str, version: Version, now_ms: i64) {
    user.state.last_refresh_ms = now_ms;
    if user.state.seq == version.seq {
        user.state.weight = 0.0;
    }
    user.refreshed.insert(space.to_string(), version);
}

/// The record after the put, or why it is refused.
pub(in crate::store) fn decide(
    stored: FeatureRecord,
    put: &FeaturePut,
    now_ms: i64,
) -> Result<FeatureRecord, PutRefusal> {
    match &put.body {
        PutBody::Write { groups, prompt_hash, embedding } => {
            write_groups(stored, put, groups, (*prompt_hash, embedding), now_ms)
        }
        PutBody::Skip { source_ts_ms } => skip(stored, put, *source_ts_ms, now_ms),
    }
}

fn write_groups(
    mut record: FeatureRecord,
    put: &FeaturePut,
    groups: &[GroupBlob],
    (prompt_hash, embedding): (u64, &[u8]),
    now_ms: i64,
) -> Result<FeatureRecord, PutRefusal> {
    let features = &mut record.features;
    let may_touch_record = match put.tier {
        0 => features.groups.iter().all(|blob| blob.tier == 0 || blob.is_expired(now_ms)),
        _ => record.refreshed <= Some(put.version),
    };
    let mut written = 0;
    for blob in groups {
        // The put's own tier and version are what the store compares later, whatever the blob was labelled with.
        let blob = GroupBlob { tier: put.tier, version: put.version, ..blob.clone() };
        match features.groups.iter_mut().find(|old| old.group == blob.group) {
            None => features.groups.push(blob),
            Some(old) if may_replace(old, put, now_ms) => *old = blob,
            Some(_) => continue,
        }
        written += 1;
    }
    if written == 0 && !(groups.is_empty() && may_touch_record) {
        return Err(PutRefusal::Stale);
    }
    features.groups.sort_by_key(|blob| blob.group);
    if may_touch_record {
        features.embedding = embedding.to_vec();
    }
    // Only a tier-1 prompt may be skipped later; and a record that now mixes in an older or a quick answer must not
    // be declared fresh by a skip.
    features.prompt_hash = if put.tier >= 1 && may_touch_record { prompt_hash } else { 0 };
    if put.tier >= 1 && may_touch_record {
        record.refreshed = Some(put.version);
        features.refreshed_seq = Some(put.version.seq);
    }
    Ok(record)
}

/// Tier 1 replaces tier 0, and tier 1 of a lower or equal version; tier 0 replaces tier 0 likewise, and what is expired.
/// "Never let older overwrite newer" holds within tier 0, too.
fn may_replace(old: &GroupBlob, put: &FeaturePut, now_ms: i64) -> bool {
    match (old.tier, put.tier) {
        (0, 0) => old.version <= put.version || old.is_expired(now_ms),
        (_, 0) => old.is_expired(now_ms),
        (0, _) => true,
        _ => old.version <= put.version,
    }
}

/// A skip says that everything stored is still what this refresh would write. So everything must be there, alive,
/// decodable, written by tier 1, and not cleared by an erasure of the neighbour.
fn skip(
    mut record: FeatureRecord,
    put: &FeaturePut,
    source_ts_ms: i64,
    now_ms: i64,
) -> Result<FeatureRecord, PutRefusal> {
    let features = &mut record.features;
    let keepable = |blob: &GroupBlob| blob.tier >= 1 && !blob.is_expired(now_ms);
    let something_to_keep = put.tier >= 1
        && features.prompt_hash != 0
        && !features.groups.is_empty()
        && features.groups.iter().all(keepable);
    if !something_to_keep {
        return Err(PutRefusal::NothingToSkip);
    }
    if record.refreshed > Some(put.version) {
        return Err(PutRefusal::Stale);
    }
    for blob in &mut features.groups {
        let moved = move_marks(blob, put.version, source_ts_ms).map_err(|_| PutRefusal::NothingToSkip)?;
        blob.bytes = moved.into();
        blob.version = put.version;
    }
    record.refreshed = Some(put.version);
    features.refreshed_seq = Some(put.version.seq);
    Ok(record)
}

/// The blob with `seq`, `turn` and `source_ts_ms` of its meta replaced.
fn move_marks(blob: &GroupBlob, version: Version, source_ts_ms: i64) -> Result<Vec<u8>, DecodeError> {
    let moved = |meta: Option<GroupMeta>| {
        Some(GroupMeta { seq: version.seq, turn: version.turn, source_ts_ms, ..meta.unwrap_or_default() })
    };
    let bytes = &blob.bytes[..];
    match blob.group {
        Group::Intra => IntraGroup::decode(bytes)
            .map(|group| IntraGroup { meta: moved(group.meta.clone()), ..group }.encode_to_vec()),
        Group::Cross => CrossGroup::decode(bytes)
            .map(|group| CrossGroup { meta: moved(group.meta.clone()), ..group }.encode_to_vec()),
        Group::Scid => {
            ScidGroup::decode(bytes).map(|group| ScidGroup { meta: moved(group.meta.clone()), ..group }.encode_to_vec())
        }
        Group::Text => {
            TextGroup::decode(bytes).map(|group| TextGroup { meta: moved(group.meta.clone()), ..group }.encode_to_vec())
        }
    }
}
