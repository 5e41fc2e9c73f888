//! Reading the dead-letter topic, and sending its records back to where they came from.
//!
//! In: `[kafka]`, a [`LetterFilter`]. Out: [`Letter`]s in order within each partition; replayed records, each with one more in
//! the header that counts replays, so that a loop ends at the cap. Letters stay where they are until the topic's retention
//! removes them; one whose replay failed is superseded by the letter of that failure and not sent again. A replay that is
//! repeated is harmless, since an event counts once. Callers: `cli::dlq`. Blocking.

use super::dead_letter::{
    CONNECT_PREFIX, DROPPED_HEADER, MESSAGE_HEADER, OFFSET_HEADER, PARTITION_HEADER, REASON_HEADER,
    REPLAYED_FROM_HEADER, REPLAYS_HEADER, TOPIC_HEADER,
};
use super::record::Body;
use crate::config::KafkaSettings;
use crate::kafka::KafkaError;
use crate::kafka::client::{self, Producer};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as ClientError;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::FutureRecord;
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

/// A broker that says nothing for so long is not there.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);

/// Replayed records on their way at once.
const MAX_UNACKNOWLEDGED: usize = 1000;

/// Which letters are meant; an empty filter means all.
#[derive(Debug, Clone, Default)]
pub struct LetterFilter {
    /// Record timestamps (the source record's) from here on, unix ms.
    pub from_ms: Option<i64>,
    /// And before this, unix ms.
    pub to_ms: Option<i64>,
    /// [`crate::event::BadReason`]'s name.
    pub reason: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

impl LetterFilter {
    fn takes(&self, letter: &Letter) -> bool {
        let time = letter.timestamp_ms;
        self.from_ms.is_none_or(|from| time.is_some_and(|time| time >= from))
            && self.to_ms.is_none_or(|to| time.is_some_and(|time| time < to))
            && self.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
    }
}

/// One dead letter.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Where it stands in the dead-letter topic.
    pub partition: i32,
    /// Likewise.
    pub offset: i64,
    /// The source record's, unix ms.
    pub timestamp_ms: Option<i64>,
    /// Why it is here: [`crate::event::BadReason`]'s name.
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Topic, partition and offset it came from.
    pub source: (String, String, String),
    /// How often it was replayed before it came here.
    pub replays: u32,
    /// The letter it was when it was replayed, as `partition/offset`.
    pub replayed_from: Option<String>,
    /// Its value was too large to be kept: it cannot be replayed.
    pub is_value_dropped: bool,
    body: Body,
}

impl Letter {
    fn of(message: &BorrowedMessage<'_>) -> Letter {
        Letter::of_body(message.partition(), message.offset(), Body::of(message))
    }

    /// The letter that a record of the dead-letter topic is.
    pub(crate) fn of_body(partition: i32, offset: i64, body: Body) -> Letter {
        let text = |name: &str| body.header_text(name).unwrap_or_default();
        Letter {
            partition,
            offset,
            timestamp_ms: body.timestamp.to_millis(),
            reason: text(REASON_HEADER),
            message: text(MESSAGE_HEADER),
            source: (text(TOPIC_HEADER), text(PARTITION_HEADER), text(OFFSET_HEADER)),
            replays: text(REPLAYS_HEADER).parse().unwrap_or(0),
            replayed_from: body.header_text(REPLAYED_FROM_HEADER),
            is_value_dropped: body.header(DROPPED_HEADER).is_some(),
            body,
        }
    }

    /// `partition/offset` in the dead-letter topic.
    pub fn name(&self) -> String {
        format!("{}/{}", self.partition, self.offset)
    }

    /// The record's own headers, with one replay more and the name of this letter.
    pub(crate) fn replay_headers(&self) -> OwnedHeaders {
        let count = self.replays.saturating_add(1).to_string();
        let ours =
            |name: &str| name.starts_with(CONNECT_PREFIX) || name == REPLAYS_HEADER || name == REPLAYED_FROM_HEADER;
        self.body
            .headers_without(ours)
            .insert(Header { key: REPLAYS_HEADER, value: Some(&count) })
            .insert(Header { key: REPLAYED_FROM_HEADER, value: Some(&self.name()) })
    }

    /// The record's key.
    pub fn key(&self) -> Option<&[u8]> {
        self.body.key.as_deref()
    }

    /// The record's value.
    pub fn value(&self) -> Option<&[u8]> {
        self.body.value.as_deref()
    }
}

/// Hands every letter that is there now and passes the filter to `each`, until it breaks.
pub fn read_letters(
    settings: &KafkaSettings,
    filter: &LetterFilter,
    mut each: impl FnMut(Letter) -> ControlFlow<()>,
) -> Result<(), KafkaError> {
    let topic = &settings.dead_letter_topic;
    let consumer: BaseConsumer =
        client::reader_config(settings).create().map_err(|error| KafkaError::Client { message: error.to_string() })?;
    // What comes while we read is left out: a replay must not chase the letters of its own failures.
    let mut ends = assign_everything(&consumer, topic)?;
    let mut taken = 0;
    while !ends.is_empty() && filter.limit.is_none_or(|limit| taken < limit) {
        let message = match consumer.poll(BROKER_TIMEOUT) {
            Some(Ok(message)) => message,
            Some(Err(ClientError::PartitionEOF(partition))) => {
                ends.remove(&partition);
                continue;
            }
            Some(Err(error)) => return Err(failed("read", topic, &error)),
            None => return Err(failed("read", topic, &"the broker does not answer")),
        };
        let Some(end) = ends.get(&message.partition()).copied() else { continue };
        if message.offset() >= end - 1 {
            ends.remove(&message.partition());
        }
        let letter = Letter::of(&message);
        if message.offset() >= end || !filter.takes(&letter) {
            continue;
        }
        taken += 1;
        if each(letter).is_break() {
            return Ok(());
        }
    }
    Ok(())
}

/// Stands at the beginning of every partition; returns where each ends now.
fn assign_everything(consumer: &BaseConsumer, topic: &str) -> Result<BTreeMap<i32, i64>, KafkaError> {
    let read_failed = |error: ClientError| failed("read", topic, &error);
    let metadata = consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).map_err(read_failed)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in found.map(|found| found.partitions()).unwrap_or_default() {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), BROKER_TIMEOUT).map_err(read_failed)?;
        ends.insert(partition.id(), end);
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(read_failed)?;
    }
    if ends.is_empty() {
        return Err(failed("read", topic, &"there is no such topic; set kafka.dead_letter_topic, or create it"));
    }
    consumer.assign(&list).map_err(read_failed)?;
    Ok(ends)
}

/// What a replay did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Sent back to their topics, or, in a dry run, would be.
    pub sent: u64,
    /// Left out: replayed `max_replays` times already.
    pub capped: u64,
    /// Left out: replayed before, and its failure has a letter of its own.
    pub superseded: u64,
    /// Left out: their value was not kept.
    pub without_value: u64,
    /// Left out: they do not say where they came from.
    pub without_source: u64,
}

/// Sends the letters that pass the filter back; `max_replays` is the cap on how often one record may come back.
pub fn replay(
    settings: &KafkaSettings,
    filter: &LetterFilter,
    max_replays: u32,
    is_dry_run: bool,
) -> Result<Replayed, KafkaError> {
    let mut superseded = BTreeSet::new();
    read_letters(settings, &LetterFilter::default(), |letter| {
        superseded.extend(letter.replayed_from);
        ControlFlow::Continue(())
    })?;
    let producer = client::producer(settings)?;
    let mut outcome = Replayed::default();
    let mut sent: Vec<DeliveryFuture> = Vec::new();
    let mut failure = None;
    read_letters(settings, filter, |letter| {
        if letter.replays >= max_replays {
            outcome.capped += 1;
        } else if superseded.contains(&letter.name()) {
            outcome.superseded += 1;
        } else if letter.is_value_dropped {
            outcome.without_value += 1;
        } else if letter.source.0.is_empty() {
            outcome.without_source += 1;
        } else {
            outcome.sent += 1;
            let done = if is_dry_run { Ok(()) } else { send_back(&producer, &letter, &mut sent) };
            if let Err(error) = done {
                failure = Some(error);
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    acknowledge(&mut sent)?;
    Ok(outcome)
}

fn send_back(producer: &Producer, letter: &Letter, sent: &mut Vec<DeliveryFuture>) -> Result<(), KafkaError> {
    let topic = &letter.source.0;
    let mut record = FutureRecord::<[u8], [u8]>::to(topic).headers(letter.replay_headers());
    record.key = letter.key();
    record.payload = letter.value();
    record.timestamp = letter.timestamp_ms;
    let delivery = producer.send_result(record).map_err(|(error, _)| failed("replay", topic, &error))?;
    sent.push(delivery);
    if sent.len() >= MAX_UNACKNOWLEDGED { acknowledge(sent) } else { Ok(()) }
}

/// Waits until the broker has all of them.
fn acknowledge(sent: &mut Vec<DeliveryFuture>) -> Result<(), KafkaError> {
    for delivery in sent.drain(..) {
        let delivered = futures::executor::block_on(delivery).map_err(|_| failed("replay", "", &"the client ended"))?;
        delivered.map_err(|(error, message)| failed("replay", message.topic(), &error))?;
    }
    Ok(())
}

fn failed(operation: &'static str, topic: &str, error: &dyn std::fmt::Display) -> KafkaError {
    KafkaError::Call { operation, message: format!("topic {topic:?}: {error}") }
}
