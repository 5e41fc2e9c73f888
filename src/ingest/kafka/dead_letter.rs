//! Bad records → the dead-letter topic, as they came, with the reason in headers of Kafka Connect's vocabulary.
//!
//! In: [`DeadLetter`]s. Out: acknowledged records; only then the bad record is finished. Callers: [`super::consumer`] and the
//! lanes send; `taiji dlq` reads the headers.

use super::decode::BadRecord;
use super::record::{Body, Record};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::kafka::client::{self, Producer};
use crate::telemetry::kafka::{DeadLetterWritten, KafkaRetried};
use futures::StreamExt;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Prefix of Kafka Connect's headers.
pub(crate) const CONNECT_PREFIX: &str = "__connect.errors.";
/// Source topic.
pub(crate) const TOPIC_HEADER: &str = "__connect.errors.topic";
/// Source partition.
pub(crate) const PARTITION_HEADER: &str = "__connect.errors.partition";
/// Source offset.
pub(crate) const OFFSET_HEADER: &str = "__connect.errors.offset";
/// [`crate::event::BadReason`].
pub(crate) const REASON_HEADER: &str = "__connect.errors.exception.class.name";
/// What is wrong and what would be right.
pub(crate) const MESSAGE_HEADER: &str = "__connect.errors.exception.message";
/// How often the record was replayed.
pub(crate) const REPLAYS_HEADER: &str = "taiji.dlq.replays";
/// On a replayed record: `partition/offset` of the letter it was. If it fails again, that letter is superseded by the new one.
pub(crate) const REPLAYED_FROM_HEADER: &str = "taiji.dlq.replayed_from";
/// Set when the value was too large for the dead-letter topic: its size. The value stands in the source topic only.
pub(crate) const DROPPED_HEADER: &str = "taiji.dlq.value_dropped_bytes";

/// Dead letters on their way at once.
const CONCURRENCY: usize = 256;

/// How much of a record stands in its letter: less whenever the topic says that it is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Whole,
    WithoutValue,
    /// Neither key, value nor the record's own headers: where it came from and why it is here.
    ReasonOnly,
}

impl Kept {
    fn less(self) -> Option<Kept> {
        match self {
            Kept::Whole => Some(Kept::WithoutValue),
            Kept::WithoutValue => Some(Kept::ReasonOnly),
            Kept::ReasonOnly => None,
        }
    }
}

/// A record to be set aside.
pub(super) struct DeadLetter {
    pub record: Record,
    pub bad: BadRecord,
}

/// The part that writes them; one a session.
pub(super) struct DeadLetters {
    pub producer: Producer,
    pub topic: String,
    pub shared: Arc<Shared>,
    /// Turns true when the drain's time is over.
    pub give_up: watch::Receiver<bool>,
}

impl DeadLetters {
    /// Runs until all senders are gone.
    pub async fn run(self, mut receiver: mpsc::UnboundedReceiver<DeadLetter>) {
        let letters = futures::stream::poll_fn(|context| receiver.poll_recv(context));
        letters.for_each_concurrent(CONCURRENCY, |letter| self.write(letter)).await;
    }

    async fn write(&self, letter: DeadLetter) {
        let place = letter.record.place;
        let started = self.shared.partitions.start(vec![place], |place| *place);
        if started.is_empty() {
            self.shared.count(place.key.role, "dropped", 1);
            return;
        }
        if self.until_acknowledged(&letter).await {
            self.shared.partitions.complete([place]);
            self.shared.count(place.key.role, "dead_letter", 1);
        } else {
            self.shared.partitions.abandon([place]);
        }
    }

    /// False when it was given up.
    async fn until_acknowledged(&self, letter: &DeadLetter) -> bool {
        let place = letter.record.place;
        let source = self.shared.topics.name(place.key.role);
        let mut backoff = Backoff::default();
        let mut kept = Kept::Whole;
        let mut give_up = self.give_up.clone();
        loop {
            let headers = headers(letter, source, kept);
            let failed = self.send(&letter.record.body, headers, kept).await;
            // The topic takes no record of this size, today or tomorrow.
            if let Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge)) = failed
                && let Some(less) = kept.less()
            {
                kept = less;
                let topic = &self.topic;
                tracing::warn!(
                    topic,
                    ?kept,
                    "a dead letter is larger than its topic takes; the rest stays in the source topic"
                );
                continue;
            }
            match failed {
                Ok(()) => {
                    DeadLetterWritten {
                        reason: letter.bad.reason.as_str(),
                        message: &letter.bad.message,
                        topic: source,
                        partition: place.key.partition,
                        offset: letter.record.offset,
                    }
                    .emit(&self.shared.metrics);
                    return true;
                }
                Err(error) => {
                    let error = client::not_written(&self.topic, &error);
                    KafkaRetried { what: "dead_letter", error: &error }.emit(&self.shared.metrics);
                    if backoff.wait_unless(&mut give_up).await {
                        return false;
                    }
                    if !self.shared.partitions.still_counts([place]) {
                        return false;
                    }
                }
            }
        }
    }

    async fn send(&self, body: &Body, headers: OwnedHeaders, kept: Kept) -> Result<(), KafkaError> {
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic).headers(headers);
        record.key = body.key.as_deref().filter(|_| kept != Kept::ReasonOnly);
        record.payload = body.value.as_deref().filter(|_| kept == Kept::Whole);
        record.timestamp = body.timestamp.to_millis();
        self.producer.send(record, Duration::ZERO).await.map(|_| ()).map_err(|(error, _)| error)
    }
}

/// The record's own headers, then why it is here. A record that comes a second time says why it came the second time.
fn headers(letter: &DeadLetter, source: &str, kept: Kept) -> OwnedHeaders {
    let body = &letter.record.body;
    let partition = letter.record.place.key.partition.to_string();
    let offset = letter.record.offset.to_string();
    let mut headers = match kept {
        Kept::ReasonOnly => OwnedHeaders::new(),
        _ => body.headers_without(|name| name.starts_with(CONNECT_PREFIX) || name == DROPPED_HEADER),
    };
    for (name, value) in [
        (TOPIC_HEADER, source),
        (PARTITION_HEADER, partition.as_str()),
        (OFFSET_HEADER, offset.as_str()),
        ("__connect.errors.connector.name", "taiji"),
        ("__connect.errors.task.id", "0"),
        ("__connect.errors.stage", letter.bad.reason.stage()),
        ("__connect.errors.class.name", "taiji::ingest::kafka"),
        (REASON_HEADER, letter.bad.reason.as_str()),
        (MESSAGE_HEADER, letter.bad.message.as_str()),
    ] {
        headers = headers.insert(Header { key: name, value: Some(value) });
    }
    if body.header(REPLAYS_HEADER).is_none() {
        headers = headers.insert(Header { key: REPLAYS_HEADER, value: Some("0") });
    }
    if kept != Kept::Whole {
        let size = body.value.as_ref().map_or(0, Vec::len).to_string();
        headers = headers.insert(Header { key: DROPPED_HEADER, value: Some(&size) });
    }
    headers
}
