//! The consumer's callbacks: partitions come and go, offsets are committed, statistics arrive.
//!
//! librdkafka calls them inside a poll, on the consumer's own thread, which may therefore block for a bounded time.
//! DESIGN 5.5, on revoke: drop unstarted records, let started work finish, store only what is older than `commit_delay`.
//! Offsets are stored, never committed by hand: a commit inside a cooperative rebalance loses.

use super::partitions::PartitionKey;
use super::shared::{Shared, StoreState};
use crate::kafka::client::log_line;
use crate::telemetry::kafka::{OffsetsCommitted, Rebalanced};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::KafkaResult;
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long a revoke waits for started work. The group waits with us, so it is short; what is not done by then is read
/// again by the partition's next owner, which changes nothing.
const REVOKE_WAIT: Duration = Duration::from_secs(3);

/// How long a revoke waits for the store to say that it is whole.
const STORE_WAIT: Duration = Duration::from_secs(2);

/// Context of the group's consumer.
pub(super) struct GroupContext {
    pub shared: Arc<Shared>,
    pub runtime: Handle,
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.shared.health.client_failed(message);
        }
        log_line(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::warn!(target: "taiji::kafka", %error, reason, "kafka consumer");
    }

    fn stats(&self, statistics: Statistics) {
        let mut undelivered = self.shared.undelivered.lock();
        undelivered.clear();
        for (name, topic) in &statistics.topics {
            for (number, partition) in &topic.partitions {
                let end = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
                let position = partition.app_offset.max(partition.committed_offset);
                if let Some(key) = self.shared.topics.key(name, *number)
                    && end >= 0
                {
                    let from = if position >= 0 { position } else { partition.lo_offset.max(0) };
                    undelivered.insert(key, (end - from).max(0));
                }
            }
        }
    }
}

impl ConsumerContext for GroupContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            // The ledger must be there before the first record is.
            Rebalance::Assign(list) => self.shared.partitions.assign(&self.shared.keys(list)),
            Rebalance::Revoke(list) => self.revoke(consumer, list),
            Rebalance::Error(error) => tracing::error!(target: "taiji::kafka", %error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Assign(list) = rebalance else { return };
        let keys = self.shared.keys(list);
        Rebalanced { kind: "assign", partitions: keys.len() }.emit(&self.shared.metrics);
        if self.shared.paused.load(Ordering::Acquire)
            && let Err(error) = consumer.pause(list)
        {
            tracing::warn!(target: "taiji::kafka", %error, "new partitions could not be paused");
        }
        self.shared.health.assigned();
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        // librdkafka says "no offset" when there was nothing new to commit.
        let nothing = rdkafka::error::RDKafkaErrorCode::NoOffset;
        if result.as_ref().err().and_then(|error| error.rdkafka_error_code()) == Some(nothing) {
            return;
        }
        OffsetsCommitted { result: &result, partitions: offsets.count() }.emit(&self.shared.metrics);
    }
}

impl GroupContext {
    fn revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let shared = &self.shared;
        let keys = shared.keys(list);
        let lost = consumer.assignment_lost();
        Rebalanced { kind: if lost { "lost" } else { "revoke" }, partitions: keys.len() }.emit(&shared.metrics);
        shared.partitions.revoke(&keys);
        // Someone else may own lost partitions already, and a closing consumer takes no offsets: the drain stored them.
        if !lost && !shared.closing.load(Ordering::Acquire) {
            if !shared.partitions.wait_started(&keys, REVOKE_WAIT) {
                tracing::info!(target: "taiji::kafka", "appends under way at a revoke; the next owner repeats them");
            }
            self.release(consumer, &keys);
        }
        // A pause would otherwise outlive the assignment.
        if shared.paused.load(Ordering::Acquire)
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(target: "taiji::kafka", %error, "revoked partitions could not be resumed");
        }
        shared.partitions.remove(&keys);
    }

    fn release(&self, consumer: &BaseConsumer<Self>, keys: &[PartitionKey]) {
        let shared = &self.shared;
        let now = shared.partitions.now();
        // A store that came back without its tail must not see the offsets of that tail committed.
        if self.store_state() != StoreState::Whole {
            tracing::warn!(target: "taiji::kafka", "the store is not known to be whole: nothing is released at this revoke");
            return;
        }
        let offsets = shared.partitions.release(keys, now);
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = consumer.store_offsets(&shared.list(&offsets)) {
            tracing::warn!(target: "taiji::kafka", %error, "offsets could not be stored; their records are read again");
        }
    }

    /// Asks the store from this thread, which is inside the runtime already and must not block on it a second time.
    fn store_state(&self) -> StoreState {
        let (sender, receiver) = mpsc::channel();
        let shared = self.shared.clone();
        self.runtime.spawn(async move {
            // The receiver is gone when it waited long enough.
            let _ = sender.send(shared.store_state().await);
        });
        receiver.recv_timeout(STORE_WAIT).unwrap_or(StoreState::Away)
    }
}
