//! Clients of Kafka, for whoever reads or writes topics.
//!
//! In: `[kafka]`. Out: configurations, a producer, what a broker allows (`checkup`), [`KafkaError`]. Callers: `ingest::kafka`, `publish`, `cli`.

pub(crate) mod checkup;
pub mod client;

use thiserror::Error;

/// Why Kafka cannot be used at all; what passes by itself is retried and logged instead.
#[derive(Debug, Error)]
pub enum KafkaError {
    /// librdkafka refuses the configuration.
    #[error("kafka client: {message}; check kafka.brokers and kafka.properties")]
    Client {
        /// librdkafka's words.
        message: String,
    },
    /// A call failed (command-line tools; the service retries).
    #[error("kafka {operation}: {message}")]
    Call {
        /// What was being done.
        operation: &'static str,
        /// librdkafka's words, and what to do.
        message: String,
    },
}
