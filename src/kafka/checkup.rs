//! What the ingest and the producers need of a broker, one by one, for `taiji doctor`. Blocking.
//!
//! In: `[kafka]`. Out: what each topic and the group answer. Joins no group, commits nothing, makes no topic, and writes nothing: the right to
//! write is asked by a record with a number of acknowledgements that no broker grants, which it refuses after the look at the rights.

use super::client;
use crate::config::KafkaSettings;
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::producer::FutureRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A broker that says nothing for so long is not there.
const TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// A consumer of nothing, and what the broker said at the beginning.
pub(crate) struct Checkup {
    settings: KafkaSettings,
    consumer: BaseConsumer<Heard>,
    heard: Heard,
    metadata: Metadata,
}

/// The client's last complaint.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Option<String>>>);

impl ClientContext for Heard {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if (level as i32) <= RDKafkaLogLevel::Error as i32 {
            self.0.lock().get_or_insert(message.to_string());
        }
        client::log_line(level, facility, message);
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.0.lock().get_or_insert(reason.to_string());
    }
}

impl ConsumerContext for Heard {}

impl Heard {
    /// An error with what the client complained of.
    fn explain(&self, error: &KafkaError) -> String {
        match self.0.lock().take() {
            Some(heard) => format!("{error}: {heard}"),
            None => error.to_string(),
        }
    }
}

impl Checkup {
    /// Connects and reads which topics there are.
    pub fn connect(settings: &KafkaSettings) -> Result<Checkup, String> {
        let heard = Heard::default();
        let mut config = client::consumer_config(settings);
        config.set("enable.auto.commit", "false").set("enable.partition.eof", "true");
        let consumer: BaseConsumer<Heard> =
            config.create_with_context(heard.clone()).map_err(|error| format!("{error}; check kafka.properties"))?;
        let metadata = consumer.fetch_metadata(None, TIMEOUT).map_err(|error| {
            // What the client met comes to us when it is polled.
            let _ = consumer.poll(POLL);
            heard.explain(&error)
        })?;
        heard.0.lock().take();
        Ok(Checkup { settings: settings.clone(), consumer, heard, metadata })
    }

    /// How many brokers there are.
    pub fn brokers(&self) -> usize {
        self.metadata.brokers().len()
    }

    /// How many partitions a topic has, if it is there with a leader for each.
    pub fn topic(&self, name: &str) -> Result<usize, String> {
        let topic = self.metadata.topics().iter().find(|topic| topic.name() == name);
        let topic = topic.ok_or("it is not there, or we may not describe it")?;
        if let Some(error) = topic.error() {
            return Err(format!("{:?}", RDKafkaErrorCode::from(error)));
        }
        match topic.partitions().iter().filter(|partition| partition.leader() < 0).count() {
            0 => Ok(topic.partitions().len()),
            without => Err(format!("{without} of its partitions have no leader")),
        }
    }

    /// Whether we may read a topic that is there: from the end of its first partition on.
    pub fn may_read(&self, name: &str) -> Result<(), String> {
        let mut end = TopicPartitionList::new();
        end.add_partition_offset(name, 0, Offset::End).map_err(|error| error.to_string())?;
        self.consumer.assign(&end).map_err(|error| error.to_string())?;
        let until = Instant::now() + TIMEOUT;
        let mut answer = Err(format!("no answer within {TIMEOUT:?}"));
        while Instant::now() < until {
            answer = match self.consumer.poll(POLL) {
                None => continue,
                Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => Ok(()),
                Some(Err(error)) => Err(self.heard.explain(&error)),
            };
            break;
        }
        self.consumer.unassign().map_err(|error| error.to_string())?;
        answer
    }

    /// Whether the group's offsets of a topic may be asked for.
    pub fn may_use_group(&self, topic: &str) -> Result<(), String> {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, 0);
        self.consumer.committed_offsets(list, TIMEOUT).map(|_| ()).map_err(|error| self.heard.explain(&error))
    }

    /// Whether we may write into a topic that is there.
    pub fn may_write(&self, name: &str) -> Result<(), String> {
        let producer = client::probe(&self.settings).map_err(|error| error.to_string())?;
        let sent = producer.send_result(FutureRecord::<[u8], [u8]>::to(name).partition(0).payload(b"taiji doctor"));
        let sent = sent.map_err(|(error, _)| error.to_string())?;
        match futures::executor::block_on(sent) {
            // A broker that does not look at that number has taken it.
            Ok(Ok(_)) | Ok(Err((KafkaError::MessageProduction(RDKafkaErrorCode::InvalidRequiredAcks), _))) => Ok(()),
            Ok(Err((error, _))) => Err(error.to_string()),
            Err(_) => Err("the producer gave no answer".to_string()),
        }
    }
}
