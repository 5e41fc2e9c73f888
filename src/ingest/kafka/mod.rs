//! Kafka → history, due queue and catalogue, at least once and harmlessly often (DESIGN 5.5).
//!
//! In: the events and items topics, as a member of a consumer group. Out: what [`crate::ingest::Ingest`] and the catalogue's
//! feed store; bad records in the dead-letter topic; offsets of what is safely stored. Callers: `cli::wiring` runs
//! [`KafkaIngest`], `cli::dlq` reads dead letters, `cli::restore` puts the group back after its store was.
//!
//! ```text
//! librdkafka ─► consumer ─► decode ─┬─► lanes (events, by user) ─► Ingest ─► store ─┐
//!                 │   ▲             ├─► items ─► catalogue overlay ─► store ────────┤ complete
//!                 │   │ pause, seek └─► dead letters ─► topic …dlq ─────────────────┤
//!                 ▼   │                                                             ▼
//!             rebalance callbacks ◄──────────── partitions (one ledger each) ──► offsets released, commit_delay late
//! ```
//!
//! | file | job |
//! |---|---|
//! | `ledger` | pure: what may be released of one partition |
//! | `partitions`, `shared` | the ledgers of a session and what is under way; store state |
//! | `consumer` | one session: poll, tick (release, rewind, pause), drain |
//! | `rebalance` | librdkafka's callbacks |
//! | `record`, `decode` | a record as it came; bytes → event, item or reason |
//! | `lanes`, `items`, `dead_letter` | where records end |
//! | `dlq` | reading and replaying dead letters |
//! | `rewind` | where the group begins again after its store was set back to a backup |
//! | `health` | readiness |

mod consumer;
pub(crate) mod dead_letter;
pub(crate) mod decode;
pub mod dlq;
mod health;
mod items;
mod lanes;
mod ledger;
mod partitions;
mod rebalance;
pub(crate) mod record;
pub mod rewind;
mod shared;
#[cfg(test)]
mod tests;

pub use health::LATCH as KAFKA_LATCH;

use super::Ingest;
use crate::backoff::Backoff;
use crate::config::KafkaSettings;
use crate::event::EventDecoder;
use crate::kafka::KafkaError;
use crate::kafka::client::{self, Producer};
use crate::live::Live;
use crate::store::FeatureStore;
use crate::telemetry::{Metrics, Readiness};
use consumer::{Session, SessionEnd};
use health::Health;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

/// What the ingest works with.
#[derive(Clone)]
pub struct KafkaParts {
    /// Asked for its incarnation; takes items.
    pub store: Arc<dyn FeatureStore>,
    /// Takes events.
    pub ingest: Arc<Ingest>,
    /// The same as HTTP's.
    pub decoder: EventDecoder,
    /// In which spaces users may be behind; which items there are, and whether there is room.
    pub live: Arc<Live>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Gets the latch [`health::LATCH`].
    pub readiness: Readiness,
    /// Rung when users became due.
    pub wake: Arc<Notify>,
    /// Longest drain.
    pub drain_limit: Duration,
}

/// The ingest of one process.
pub struct KafkaIngest {
    settings: KafkaSettings,
    parts: KafkaParts,
    producer: Producer,
    health: Arc<Health>,
}

impl KafkaIngest {
    /// Checks the configuration and holds the readiness latch; connects to nothing yet.
    pub fn new(settings: KafkaSettings, parts: KafkaParts) -> Result<KafkaIngest, KafkaError> {
        let producer = client::producer(&settings)?;
        let health = Arc::new(Health::new(parts.readiness.clone()));
        Ok(KafkaIngest { settings, parts, producer, health })
    }

    /// Runs until `stop` turns true and the drain is done. Blocks: librdkafka's callbacks wait for the store, and closing a
    /// consumer takes its time, so it has a thread of its own.
    pub fn run_blocking(self, runtime: &Handle, stop: watch::Receiver<bool>) {
        let mut backoff = Backoff::default();
        loop {
            let session = Session::new(&self.settings, &self.parts, self.producer.clone(), self.health.clone());
            match session.run_blocking(runtime, stop.clone()) {
                SessionEnd::Stopped => return,
                SessionEnd::Failed(message) => {
                    tracing::error!(target: "taiji::kafka", message, "the consumer ended; a new one is made");
                }
            }
            let mut stop = stop.clone();
            if runtime.block_on(backoff.wait_unless(&mut stop)) {
                return;
            }
        }
    }
}
