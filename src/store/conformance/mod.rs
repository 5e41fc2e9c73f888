//! What every [`FeatureStore`] must do, as checks that know nothing of what is underneath.
//!
//! In: a [`Subject`], a fresh store with a clock that can be moved. Out: a panic that names what is wrong. Callers: the
//! tests of each store run [`check_all`] and [`model::check`]. Every check uses users and spaces of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod append;
pub mod erase;
mod feeds;
pub mod model;
mod put;
pub mod queue;

use super::{
    AppendOutcome, FeaturePut, FeatureStore, PutBody, PutOutcome, Record, RecordBody, StoredFeatures, UserBatch,
    UserHistory,
};
use crate::event::ActionClass;
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{Behaviour, CrossGroup, GroupMeta, IntraGroup};
use prost::Message;
use std::sync::Arc;

/// The store under test.
pub struct Subject {
    /// Empty when the checks begin.
    pub store: Arc<dyn FeatureStore>,
    /// Moves the store's clock forward by so many ms.
    pub advance: Box<dyn Fn(i64) + Send + Sync>,
}

/// Runs every check.
pub async fn check_all(subject: &Subject) {
    append::check(subject).await;
    put::check(subject).await;
    queue::check(subject).await;
    feeds::check(subject).await;
    erase::check(subject).await;
}

pub(super) fn engagement(ts_ms: i64, event_id: &str, item: &str) -> Record {
    behaviour(ActionClass::Engagement, ts_ms, event_id, item)
}

pub(super) fn impression(ts_ms: i64, event_id: &str, item: &str) -> Record {
    behaviour(ActionClass::Impression, ts_ms, event_id, item)
}

fn behaviour(class: ActionClass, ts_ms: i64, event_id: &str, item: &str) -> Record {
    let behaviour = Behaviour {
        ts_ms,
        event_id: event_id.into(),
        item_id: item.into(),
        action: "click".into(),
        value: Some(0.5),
        domain: "shop".into(),
        request_id: "r".into(),
    };
    Record {
        ts_ms,
        event_id: event_id.into(),
        former_id: None,
        weight: 1.0,
        body: RecordBody::Behaviour { class, behaviour },
    }
}

pub(super) fn query(ts_ms: i64, event_id: &str) -> Record {
    Record {
        ts_ms,
        event_id: event_id.into(),
        former_id: None,
        weight: 2.0,
        body: RecordBody::Query(format!("query {event_id}")),
    }
}

pub(super) fn profile(ts_ms: i64, event_id: &str, attributes: &[(&str, i64)]) -> Record {
    let attributes = attributes.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
    Record { ts_ms, event_id: event_id.into(), former_id: None, weight: 4.0, body: RecordBody::Profile(attributes) }
}

pub(super) async fn append(subject: &Subject, user: &str, records: &[Record]) -> AppendOutcome {
    let batch = UserBatch { user: user.into(), records: records.to_vec() };
    subject.store.append(&["space".into()], &[batch]).await.unwrap().remove(0)
}

pub(super) async fn history(subject: &Subject, user: &str) -> UserHistory {
    subject.store.histories(&[user.to_string()]).await.unwrap().remove(0).expect("a known user")
}

/// The whole record; what readers get of it must agree.
pub(super) async fn features(subject: &Subject, space: &str, user: &str) -> Option<StoredFeatures> {
    let users = [user.to_string()];
    let whole = subject.store.features(space, &users).await.unwrap().remove(0);
    for groups in [&[Group::Cross][..], &Group::ALL] {
        let light = subject.store.feature_groups(space, &users, groups).await.unwrap().remove(0);
        assert_eq!(light, whole.clone().map(|features| features.only(groups)));
    }
    whole
}

pub(super) fn meta(version: Version) -> GroupMeta {
    GroupMeta {
        seq: version.seq,
        turn: version.turn,
        generated_at_ms: 11,
        source_ts_ms: 12,
        epoch: 3,
        ..GroupMeta::default()
    }
}

/// A group whose content tells which put wrote it.
pub(super) fn blob(group: Group, put_number: u32, version: Version, tier: u8, expires_at_ms: i64) -> GroupBlob {
    let meta = Some(meta(version));
    let bytes = match group {
        Group::Intra => IntraGroup { meta, sparse_ids: vec![put_number], ..IntraGroup::default() }.encode_to_vec(),
        _ => CrossGroup { meta, item_scids: vec![put_number], ..CrossGroup::default() }.encode_to_vec(),
    };
    GroupBlob { group, bytes: bytes.into(), tier, version, expires_at_ms }
}

pub(super) fn write_put(user: &str, version: Version, tier: u8, hash: u64, groups: Vec<GroupBlob>) -> FeaturePut {
    let body = PutBody::Write { groups, prompt_hash: hash, embedding: vec![hash as u8; 4] };
    FeaturePut { user: user.into(), era: 0, version, tier, body }
}

pub(super) fn skip_put(user: &str, version: Version, source_ts_ms: i64) -> FeaturePut {
    FeaturePut { user: user.into(), era: 0, version, tier: 1, body: PutBody::Skip { source_ts_ms } }
}

pub(super) async fn put(subject: &Subject, space: &str, put: FeaturePut) -> PutOutcome {
    subject.store.put(space, put).await.unwrap()
}
