//! Happenings of the Kafka ingest: log line and counter together.

use super::Metrics;
use rdkafka::error::KafkaResult;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Instant;

/// A bad record stands in the dead-letter topic.
#[allow(missing_docs)]
pub struct DeadLetterWritten<'a> {
    pub reason: &'a str,
    pub message: &'a str,
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
}

impl DeadLetterWritten<'_> {
    /// Counts and logs. A producer gone wrong writes thousands: the topic has them all, the log one in a hundred.
    pub fn emit(&self, metrics: &Metrics) {
        let counter = metrics.kafka_dead_letters.with_label_values(&[self.reason]);
        counter.inc();
        let count = counter.get();
        let DeadLetterWritten { reason, message, topic, partition, offset } = *self;
        if count == 1 || count.is_multiple_of(100) {
            tracing::warn!(reason, message, topic, partition, offset, count, "bad record set aside");
        } else {
            tracing::debug!(reason, message, topic, partition, offset, "bad record set aside");
        }
    }
}

/// Something failed and is tried again, as often as ten times a second: the log has a line a minute of each.
#[allow(missing_docs)]
pub struct KafkaRetried<'a> {
    /// append, items, dead_letter, features, served, incarnation, replicas, flush, seek, pause, poll, store_offsets.
    pub what: &'a str,
    pub error: &'a dyn Display,
}

impl KafkaRetried<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_retries.with_label_values(&[self.what]).inc();
        let KafkaRetried { what, error } = *self;
        // The store's own calls have some of these names, too.
        match metrics.repeated.admit(&format!("kafka {what}"), Instant::now()) {
            Some(held_back) => tracing::warn!(target: "taiji::kafka", what, %error, held_back, "failed; tried again"),
            None => tracing::debug!(target: "taiji::kafka", what, %error, "failed; tried again"),
        }
    }
}

/// Partitions came or went.
#[allow(missing_docs)]
pub struct Rebalanced<'a> {
    /// assign, revoke, lost.
    pub kind: &'a str,
    pub partitions: usize,
}

impl Rebalanced<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_rebalances.with_label_values(&[self.kind]).inc();
        tracing::info!(target: "taiji::kafka", kind = self.kind, partitions = self.partitions, "rebalance");
    }
}

/// The store may have lost its tail: every partition goes back to what was released.
#[allow(missing_docs)]
pub struct Rewound {
    pub partitions: usize,
    pub incarnation: u64,
}

impl Rewound {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_rewinds.inc();
        let Rewound { partitions, incarnation } = *self;
        tracing::warn!(
            target: "taiji::kafka",
            partitions,
            incarnation,
            "the store came back and may have lost its last writes: reading again from the last offsets released"
        );
    }
}

/// Reading stopped or went on.
#[allow(missing_docs)]
pub struct PauseChanged {
    pub paused: bool,
    /// Because the store refuses, not because too much is under way.
    pub troubled: bool,
    pub records: usize,
}

impl PauseChanged {
    /// Sets the gauge and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_paused.set(i64::from(self.paused));
        let PauseChanged { paused, troubled, records } = *self;
        tracing::info!(target: "taiji::kafka", paused, troubled, records, "reading paused or resumed");
    }
}

/// Whether replicas lack what was stored, which holds all offsets up.
#[allow(missing_docs)]
pub struct OffsetsHeld<'a> {
    /// What they lack.
    pub lacking: Option<&'a str>,
}

impl OffsetsHeld<'_> {
    /// Sets the gauge and logs, a line a minute.
    pub fn emit(&self, metrics: &Metrics) {
        let was_held = metrics.kafka_offsets_held.get() == 1;
        metrics.kafka_offsets_held.set(i64::from(self.lacking.is_some()));
        match self.lacking {
            Some(lacking) => {
                if let Some(held_back) = metrics.repeated.admit("kafka replicas", Instant::now()) {
                    tracing::warn!(
                        target: "taiji::kafka",
                        lacking,
                        held_back,
                        "offsets stand still until replicas have what was stored (store.ack_replicas)"
                    );
                }
            }
            None if was_held => tracing::info!(target: "taiji::kafka", "replicas have what was stored: offsets go on"),
            None => {}
        }
    }
}

/// librdkafka committed offsets, or could not.
#[allow(missing_docs)]
pub struct OffsetsCommitted<'a> {
    pub result: &'a KafkaResult<()>,
    pub partitions: usize,
}

impl OffsetsCommitted<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        match self.result {
            Ok(()) => {
                metrics.kafka_commits.with_label_values(&["ok"]).inc();
                tracing::debug!(target: "taiji::kafka", partitions = self.partitions, "offsets committed");
            }
            Err(error) => {
                metrics.kafka_commits.with_label_values(&["failed"]).inc();
                tracing::warn!(target: "taiji::kafka", %error, "offsets not committed; a later commit covers them");
            }
        }
    }
}

/// Users' features went out to the change feed.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct FeaturesPublished {
    pub users: u64,
}

impl FeaturesPublished {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_features.with_label_values(&["published"]).inc_by(self.users);
        tracing::debug!(target: "taiji::kafka", users = self.users, "features published");
    }
}

/// Too many users wait for the change feed: this one's change is not published.
#[allow(missing_docs)]
pub struct ChangeDropped<'a> {
    pub user: &'a str,
}

impl ChangeDropped<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_features.with_label_values(&["dropped"]).inc();
        tracing::debug!(target: "taiji::kafka", user = self.user, "change feed full");
    }
}

/// What rankers were given went out to the served topic.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ServedPublished {
    pub records: u64,
}

impl ServedPublished {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_served.with_label_values(&["published"]).inc_by(self.records);
        tracing::debug!(target: "taiji::kafka", records = self.records, "served features published");
    }
}

/// What rankers were given is not told: a user's answer each.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ServedDropped {
    pub records: u64,
    pub reason: &'static str,
}

impl ServedDropped {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.kafka_served.with_label_values(&["dropped"]).inc_by(self.records);
        tracing::debug!(target: "taiji::kafka", records = self.records, reason = self.reason, "served features dropped");
    }
}

/// Partitions whose lag is shown.
pub type Shown = BTreeSet<(String, i32)>;

/// Shows (topic, partition, records, seconds) and nothing of partitions that were `shown` and are not ours any more. What stays is
/// never taken away in between: a scrape finds every partition.
pub fn observe_lag(metrics: &Metrics, lags: &[(&str, i32, i64, f64)], shown: &mut Shown) {
    let mut now = Shown::new();
    for (topic, partition, records, seconds) in lags {
        now.insert(((*topic).to_owned(), *partition));
        let partition = partition.to_string();
        metrics.kafka_lag_records.with_label_values(&[*topic, &partition]).set(*records);
        metrics.kafka_lag_seconds.with_label_values(&[*topic, &partition]).set(*seconds);
    }
    for (topic, partition) in shown.difference(&now) {
        let partition = partition.to_string();
        // An error says that it is gone already.
        let _ = metrics.kafka_lag_records.remove_label_values(&[topic.as_str(), partition.as_str()]);
        let _ = metrics.kafka_lag_seconds.remove_label_values(&[topic.as_str(), partition.as_str()]);
    }
    *shown = now;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn audit_08_a_lag_that_stays_ours_is_never_missing() {
        let metrics = Arc::new(Metrics::new().expect("register"));
        let mut shown = Shown::new();
        observe_lag(&metrics, &[("t", 0, 5, 1.0), ("t", 1, 6, 1.0)], &mut shown);
        let ended = Arc::new(AtomicBool::new(false));
        let scraper = std::thread::spawn({
            let (metrics, ended) = (metrics.clone(), ended.clone());
            move || {
                let mut missing = 0;
                while !ended.load(Ordering::SeqCst) {
                    let text = metrics.render().expect("render");
                    missing += usize::from(!text.contains("taiji_kafka_lag_records{partition=\"0\",topic=\"t\"}"));
                }
                missing
            }
        });
        for round in 0..5000 {
            observe_lag(&metrics, &[("t", 0, round, 1.0)], &mut shown);
        }
        ended.store(true, Ordering::SeqCst);
        assert_eq!(scraper.join().expect("scraper"), 0);
        let text = metrics.render().expect("render");
        assert!(!text.contains("partition=\"1\""), "{text}");
        observe_lag(&metrics, &[], &mut shown);
        assert!(!metrics.render().expect("render").contains("taiji_kafka_lag_seconds{"));
    }
}
