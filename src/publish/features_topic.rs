//! The change feed: each user's features after a refresh → the features topic, keyed by user.
//!
//! In: users from [`ChangeFeed`]. Out: `taiji.v1.UserFeatures` (protobuf) as they stand in the store when they are published;
//! a null value for a user without features, so that a compacted topic forgets them. `text` is never published. Callers:
//! `cli::wiring`, where `kafka.features_topic` is set.

use super::ChangeFeed;
use crate::backoff::Backoff;
use crate::config::KafkaSettings;
use crate::feature::{DecodedGroup, Group};
use crate::kafka::KafkaError;
use crate::kafka::client::{self, Producer};
use crate::live::Live;
use crate::proto::UserFeatures;
use crate::store::{FeatureStore, RecordKind, StoreError, StoreResult, StoredFeatures};
use crate::telemetry::Metrics;
use crate::telemetry::kafka::{FeaturesPublished, KafkaRetried};
use prost::{DecodeError, Message};
use rdkafka::producer::FutureRecord;
use std::sync::Arc;
use tokio::sync::watch;

/// Users read and produced together.
const BATCH: usize = 200;
/// What the LLM wrote stays inside.
const PUBLISHED: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];

/// Publishes the space that answers are read from; one a process.
pub struct FeaturePublisher {
    producer: Producer,
    topic: String,
    live: Arc<Live>,
    store: Arc<dyn FeatureStore>,
    changes: Arc<ChangeFeed>,
    metrics: Arc<Metrics>,
}

impl FeaturePublisher {
    /// A publisher to `kafka.features_topic`; connects to nothing yet.
    pub fn new(
        settings: &KafkaSettings,
        live: Arc<Live>,
        store: Arc<dyn FeatureStore>,
        changes: Arc<ChangeFeed>,
        metrics: Arc<Metrics>,
    ) -> Result<FeaturePublisher, KafkaError> {
        let producer = client::producer(settings)?;
        Ok(FeaturePublisher { producer, topic: settings.features_topic.clone(), live, store, changes, metrics })
    }

    /// Runs until `stop` turns true. What failed is noted again, so a newer state goes out in its place.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        loop {
            let users = self.changes.take(BATCH);
            if users.is_empty() {
                tokio::select! {
                    _ = self.changes.added() => continue,
                    _ = stop.wait_for(|stop| *stop) => return,
                }
            }
            let Err(error) = self.publish(&users).await else {
                self.changes.told(&users);
                backoff = Backoff::default();
                continue;
            };
            KafkaRetried { what: "features", error: &error }.emit(&self.metrics);
            self.changes.give_back(&users);
            if backoff.wait_unless(&mut stop).await {
                return;
            }
        }
    }

    /// All of them are acknowledged when it returns, but those whose features cannot be read: the topic keeps their last state.
    async fn publish(&self, users: &[String]) -> Result<(), String> {
        let view = self.live.view();
        let stored = self.store.feature_groups_each(view.space(), users, &PUBLISHED).await;
        let stored = stored.map_err(|error| error.to_string())?;
        let mut sent = Vec::with_capacity(users.len());
        for (user, features) in users.iter().zip(stored) {
            let message = match features {
                Ok(features) => features.map(|features| self.message(user, &features)).transpose(),
                Err(error) if error.is_unreadable() => continue,
                Err(error) => return Err(error.to_string()),
            };
            let value = match message {
                Ok(message) => message.map(|message| message.encode_to_vec()),
                Err(error) => {
                    self.store.unreadable().note(RecordKind::Features, &error);
                    continue;
                }
            };
            let headers = client::protobuf_headers(view.space());
            let mut record = FutureRecord::<str, [u8]>::to(&self.topic).key(user).headers(headers);
            record.payload = value.as_deref();
            sent.push(self.producer.send_result(record).map_err(|(error, _)| self.failed(&error))?);
        }
        let published = sent.len();
        for delivery in sent {
            let delivered = delivery.await.map_err(|_| "the kafka client ended".to_string())?;
            delivered.map_err(|(error, _)| self.failed(&error))?;
        }
        FeaturesPublished { users: published as u64 }.emit(&self.metrics);
        Ok(())
    }

    fn message(&self, user: &str, stored: &StoredFeatures) -> StoreResult<UserFeatures> {
        let mut message = UserFeatures { user_id: user.into(), status: "PRESENT".into(), ..UserFeatures::default() };
        for blob in &stored.groups {
            let unreadable = |error: DecodeError| StoreError::Corrupt { key: user.into(), message: error.to_string() };
            match DecodedGroup::decode(blob).map_err(unreadable)? {
                DecodedGroup::Intra(group) => message.intra = Some(group),
                DecodedGroup::Cross(group) => message.cross = Some(group),
                DecodedGroup::Scid(group) => message.scid = Some(group),
                DecodedGroup::Text(_) => {}
            }
        }
        Ok(message)
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> String {
        client::not_written(&self.topic, error)
    }
}
