//! What the parts of one session share: ledgers, topics, store, health, and what the store was last known to be.

use super::health::{Health, Part};
use super::partitions::{PartitionKey, Partitions, Place, Role};
use super::record::Topics;
use crate::backoff::Backoff;
use crate::store::{FeatureStore, StoreError};
use crate::telemetry::Metrics;
use crate::telemetry::kafka::{KafkaRetried, OffsetsHeld, Shown};
use parking_lot::Mutex;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// A store that takes longer than this to say who it is counts as away.
const INCARNATION_TIMEOUT: Duration = Duration::from_secs(2);
/// A store that takes longer than this to say what its replicas have said nothing.
const REPLICAS_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions about the replicas.
const REPLICAS_INTERVAL: Duration = Duration::from_millis(250);

/// What the store says about its acknowledged writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreState {
    /// All are there.
    Whole,
    /// It came back and may have lost the last of them; its new incarnation.
    MayHaveLost(u64),
    /// No answer.
    Away,
}

pub(super) struct Shared {
    pub partitions: Arc<Partitions>,
    pub topics: Topics,
    pub store: Arc<dyn FeatureStore>,
    pub metrics: Arc<Metrics>,
    pub health: Arc<Health>,
    /// The store's incarnation that all ledgers' generations began under.
    pub incarnation: AtomicU64,
    /// Partitions are paused.
    pub paused: AtomicBool,
    /// The drain has released what it could; librdkafka refuses stores while it closes.
    pub closing: AtomicBool,
    /// Records of each partition that were not delivered to us yet, by librdkafka's statistics.
    pub undelivered: Mutex<BTreeMap<PartitionKey, i64>>,
    /// Partitions whose lag stands in the metrics.
    pub shown: Mutex<Shown>,
}

impl Shared {
    /// Asks the store; a failure makes the process unready.
    pub async fn store_state(&self) -> StoreState {
        let answer = tokio::time::timeout(INCARNATION_TIMEOUT, self.store.incarnation()).await;
        let problem = match answer {
            Ok(Ok(incarnation)) => {
                self.health.well(Part::Check);
                let known = self.incarnation.load(Ordering::Acquire);
                return if incarnation == known { StoreState::Whole } else { StoreState::MayHaveLost(incarnation) };
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {INCARNATION_TIMEOUT:?}"),
        };
        KafkaRetried { what: "incarnation", error: &problem }.emit(&self.metrics);
        self.health.trouble(Part::Check, problem);
        StoreState::Away
    }

    /// Asks whether replicas have everything stored so far, and remembers it for what is released. Fewer of them than are wanted hold
    /// all offsets up, which a gauge and a line of the log say.
    pub async fn ask_replicas(&self) {
        // Taken first: what finishes after the question is not covered by its answer.
        let at = self.partitions.now();
        let replicas = match tokio::time::timeout(REPLICAS_TIMEOUT, self.store.replicas()).await {
            Ok(Ok(replicas)) => replicas,
            // The store is away, which holds everything up anyway.
            Ok(Err(error)) => return KafkaRetried { what: "replicas", error: &error }.emit(&self.metrics),
            Err(_) => {
                let problem = format!("no answer in {REPLICAS_TIMEOUT:?}");
                return KafkaRetried { what: "replicas", error: &problem }.emit(&self.metrics);
            }
        };
        OffsetsHeld { lacking: replicas.lacking.as_deref() }.emit(&self.metrics);
        // Another store than the one that has our records may answer, too.
        let is_ours = replicas.incarnation == self.incarnation.load(Ordering::Acquire);
        if is_ours && replicas.lacking.is_none() {
            self.partitions.confirm(at);
        }
    }

    /// Asks the replicas again and again until the session ends.
    pub async fn follow_replicas(self: Arc<Self>, mut ended: watch::Receiver<bool>) {
        loop {
            self.ask_replicas().await;
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                _ = tokio::time::sleep(REPLICAS_INTERVAL) => {}
            }
        }
    }

    /// A lane's store call failed: holds readiness and waits one pause, or until a store that was away answers again.
    /// False when trying again is worth nothing: the drain's time is over, or nobody counts these records any more.
    pub async fn wait_to_retry(
        &self,
        part: Part,
        error: &StoreError,
        places: &[Place],
        backoff: &mut Backoff,
        give_up: &mut watch::Receiver<bool>,
    ) -> bool {
        let answered = self.health.answered();
        // What replicas or the disk have not confirmed yet is slow; reads of this process are none the worse for it.
        if !matches!(error, StoreError::NotDurable { .. }) {
            self.health.trouble(part, error.to_string());
        }
        let is_over = tokio::select! {
            is_over = backoff.wait_unless(give_up) => is_over,
            () = answered => false,
        };
        let goes_on = !is_over && self.partitions.still_counts(places.iter().copied());
        if !goes_on {
            self.health.well(part);
        }
        goes_on
    }

    /// Counts records of a topic by what became of them.
    pub fn count(&self, role: Role, outcome: &str, records: u64) {
        if records > 0 {
            self.metrics.kafka_records.with_label_values(&[self.topics.name(role), outcome]).inc_by(records);
        }
    }

    /// A list for librdkafka. It must be gone before the consumer is: it holds the partitions.
    pub fn list(&self, offsets: &[(PartitionKey, i64)]) -> TopicPartitionList {
        let offsets = offsets.iter().map(|(key, offset)| {
            (self.topics.name(key.role).to_string(), key.partition, Offset::Offset((*offset).max(0)))
        });
        offsets.collect()
    }

    /// The same without offsets.
    pub fn names(&self, keys: &[PartitionKey]) -> TopicPartitionList {
        let mut list = TopicPartitionList::with_capacity(keys.len());
        for key in keys {
            list.add_partition(self.topics.name(key.role), key.partition);
        }
        list
    }

    /// Our partitions of a list.
    pub fn keys(&self, list: &TopicPartitionList) -> Vec<PartitionKey> {
        list.elements().iter().filter_map(|element| self.topics.key(element.topic(), element.partition())).collect()
    }
}
