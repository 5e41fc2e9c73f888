//! What every Kafka client of this process is made of: properties, those that are ours alone, and its log.
//!
//! In: `[kafka]`. Out: client configurations. Callers: the consumer, the producers, `taiji dlq`, `taiji feed`.

use super::KafkaError;
use crate::config::KafkaSettings;
use crate::config::kafka_properties::property;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureProducer;
use rdkafka::util::DefaultRuntime;

/// Most bytes of a message our producers take; the broker's limit for the topic is the one that counts.
const MAX_MESSAGE_BYTES: &str = "104857600";

/// How long one produce may take before it counts as failed and is tried again, in ms.
const DELIVERY_TIMEOUT_MS: &str = "30000";

fn base(settings: &KafkaSettings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("client.id", "taiji").set("socket.keepalive.enable", "true").set("log_level", "5");
    for (name, value) in &settings.properties {
        config.set(property(name), value);
    }
    config.set("bootstrap.servers", &settings.brokers);
    config
}

/// The ingest's consumer.
pub(crate) fn consumer_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = base(settings);
    if !settings.properties.keys().any(|name| property(name) == "auto.commit.interval.ms") {
        config.set("auto.commit.interval.ms", "1000");
    }
    config
        .set("group.id", &settings.group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        // With `latest`, a partition taken away before its first stored offset would lose what was read.
        .set("auto.offset.reset", "earliest")
        // librdkafka commits what the ledger stored, never more.
        .set("enable.auto.commit", "true")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        // A topic made after the start is found within this time.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("statistics.interval.ms", "2000");
    config
}

/// A consumer that reads partitions to their end and belongs to no group's work (`taiji dlq`).
pub(crate) fn reader_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = base(settings);
    config
        .set("group.id", format!("{}-dlq", settings.group))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    config
}

/// One who looks at the ingest's group, and commits for it, without being its member (`taiji restore`).
pub(crate) fn group_config(settings: &KafkaSettings) -> ClientConfig {
    let mut config = base(settings);
    config
        .set("group.id", &settings.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("allow.auto.create.topics", "false");
    config
}

/// Any of our producers.
pub(crate) type Producer = FutureProducer<ClientLog>;

/// An idempotent producer that waits for all replicas.
pub(crate) fn producer(settings: &KafkaSettings) -> Result<Producer, KafkaError> {
    let mut config = base(settings);
    config
        .set("enable.idempotence", "true")
        .set("message.max.bytes", MAX_MESSAGE_BYTES)
        .set("message.timeout.ms", DELIVERY_TIMEOUT_MS);
    FutureProducer::<ClientLog, DefaultRuntime>::from_config_and_context(&config, ClientLog)
        .map_err(|error| KafkaError::Client { message: error.to_string() })
}

/// A producer whose records a broker refuses, after the look at the rights: for [`super::checkup`].
pub(crate) fn probe(settings: &KafkaSettings) -> Result<Producer, KafkaError> {
    let mut config = base(settings);
    config.set("enable.idempotence", "false").set("acks", "2").set("message.timeout.ms", "10000").set("retries", "0");
    FutureProducer::<ClientLog, DefaultRuntime>::from_config_and_context(&config, ClientLog)
        .map_err(|error| KafkaError::Client { message: error.to_string() })
}

/// Headers of our own messages: their form, and the space that they belong to.
pub(crate) fn protobuf_headers(space: &str) -> OwnedHeaders {
    [("content-type", "application/x-protobuf"), ("taiji.space", space)]
        .iter()
        .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }))
}

/// Why a record did not reach a topic, and what to look at.
pub(crate) fn not_written(topic: &str, error: &dyn std::fmt::Display) -> String {
    format!("topic {topic:?}: {error}; does it exist, and may we write to it?")
}

/// Sends a client's log lines to ours.
#[derive(Debug, Clone)]
pub(crate) struct ClientLog;

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::warn!(target: "taiji::kafka", %error, reason, "kafka client");
    }
}

/// One line of librdkafka's log.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        // Consumers and producers share the properties; each says which of them are the other's.
        _ if facility == "CONFWARN" => tracing::debug!(target: "taiji::kafka", facility, message),
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "taiji::kafka", facility, message);
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "taiji::kafka", facility, message),
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(target: "taiji::kafka", facility, message),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "taiji::kafka", facility, message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn settings(flags: &[(&str, &str)]) -> KafkaSettings {
        let flags: Vec<(&str, String)> = flags.iter().map(|(key, value)| (*key, value.to_string())).collect();
        load(None, std::iter::empty(), &flags).expect("settings").kafka
    }

    #[test]
    fn properties_pass_through_with_dots_or_underscores_and_ours_win() {
        let settings = settings(&[
            ("kafka.brokers", "b:9092"),
            ("kafka.properties.sasl_password", "p"),
            ("kafka.properties.client_id", "mine"),
            ("kafka.properties.auto_commit_interval_ms", "200"),
        ]);
        let config = consumer_config(&settings);
        for (name, value) in [
            ("sasl.password", "p"),
            ("client.id", "mine"),
            ("bootstrap.servers", "b:9092"),
            ("auto.commit.interval.ms", "200"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
    }
}
