//! Where a consumer group must begin again after its store was set back to a backup, and putting it there.
//!
//! In: `[kafka]`, the time from which the store may lack records. Out: a [`Plan`], partition by partition; then commits of the
//! group. Callers: `cli::restore`. Blocking.
//!
//! Records are found by their timestamps. Where a topic has the broker's, they rise. Where it has the producers' (Kafka's
//! default), a record that came late may bear an early time: a dead letter sent back does. So a partition begins at the *newest* record
//! of before that time, not behind it: whatever was appended after that one is read again, however it is stamped. Reading too much
//! costs a look at each event, which then counts as duplicate; an offset never goes forward.

mod plan;

use super::record::Topics;
use crate::backoff::Backoff;
use crate::config::KafkaSettings;
use crate::kafka::KafkaError;
use crate::kafka::client;
pub use plan::{Partition, Plan};
use plan::{Sight, look_at};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use thiserror::Error;

/// A broker that says nothing for so long is not there.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);
/// The topic's setting that says whose timestamps its records have.
const STAMPED_BY: &str = "message.timestamp.type";

/// Why a group was not put back. Nothing was changed but where the error says so.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RewindError {
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    #[error(
        "group {group:?} has members: {members}; stop every process with the role ingest, then try again (one that was killed \
         is a member until its session ends, session.timeout.ms, 45 s unless kafka.properties says otherwise)"
    )]
    Members { group: String, members: String },
    #[error(
        "group {group:?} has committed nothing of {topics}: if that is the service's kafka.group, it reads everything that is \
         kept when it starts, and no rewind is needed; if not, name the right one in --config"
    )]
    NothingCommitted { group: String, topics: String },
    #[error("topic {topic:?} is not there: name the service's own with --config, or create it; nothing was changed")]
    NoTopic { topic: String },
    #[error(
        "topic {topic:?}, partition {partition}: the broker did not take offset {wanted}, it has {found}; run the command again"
    )]
    NotTaken { topic: String, partition: i32, wanted: i64, found: String },
}

/// A partition's name.
type Name = (String, i32);

/// The group's side of the broker, as one who is no member.
pub struct Rewinder<'a> {
    settings: &'a KafkaSettings,
    topics: Topics,
    consumer: BaseConsumer,
}

impl<'a> Rewinder<'a> {
    /// Connects to nothing yet.
    pub fn new(settings: &'a KafkaSettings) -> Result<Rewinder<'a>, RewindError> {
        let consumer = client::group_config(settings)
            .create()
            .map_err(|error| KafkaError::Client { message: error.to_string() })?;
        Ok(Rewinder { settings, topics: Topics::new(settings), consumer })
    }

    /// Says where every partition of the topics that the service reads must begin for records of `since_ms` (unix ms) and later.
    /// An error while the group has members: they would commit over it.
    pub fn plan(&self, since_ms: i64) -> Result<Plan, RewindError> {
        self.refuse_members()?;
        let names = self.partitions()?;
        let committed = self.committed(&names)?;
        if committed.values().all(Option::is_none) {
            let topics = self.topics.names().join(", ");
            return Err(RewindError::NothingCommitted { group: self.settings.group.clone(), topics });
        }
        let first = self.first_of(names.iter().map(|name| (name.clone(), since_ms)))?;
        let newest_before = self.newest_before(&names, since_ms, &first)?;
        let mut partitions = Vec::new();
        for name in &names {
            let (low, high) = self
                .consumer
                .fetch_watermarks(&name.0, name.1, BROKER_TIMEOUT)
                .map_err(|error| failed("read ends", &name.0, &error))?;
            let found = |of: &BTreeMap<Name, Option<i64>>| of.get(name).copied().flatten();
            let sight =
                Sight { committed: found(&committed), low, high, since: found(&first), before: found(&newest_before) };
            partitions.push(look_at(name, &sight));
        }
        let by_producers = self.topics.names().into_iter().filter(|topic| !self.is_stamped_by_broker(topic));
        let by_producers = by_producers.map(String::from).collect();
        Ok(Plan { group: self.settings.group.clone(), since_ms, partitions, by_producers })
    }

    /// Commits what the plan says, for the partitions that move, and looks whether the broker has it. The broker refuses it where
    /// somebody has joined the group meanwhile.
    pub fn apply(&self, plan: &Plan) -> Result<(), RewindError> {
        let mut list = TopicPartitionList::new();
        let moving: Vec<(Name, i64)> = plan
            .partitions
            .iter()
            .filter_map(|part| Some(((part.topic.clone(), part.partition), part.moves_to()?)))
            .collect();
        if moving.is_empty() {
            return Ok(());
        }
        for ((topic, partition), offset) in &moving {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(|error| failed("commit", topic, &error))?;
        }
        match patiently(|| self.consumer.commit(&list, CommitMode::Sync)) {
            Ok(()) => {}
            Err(ClientError::ConsumerCommit(
                Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress,
            )) => {
                self.refuse_members()?;
                return Err(RewindError::Members { group: plan.group.clone(), members: "one just joined".to_string() });
            }
            Err(error) => return Err(failed("commit", &format!("of group {}", plan.group), &error)),
        }
        let names: Vec<Name> = moving.iter().map(|(name, _)| name.clone()).collect();
        let committed = self.committed(&names)?;
        for (name, wanted) in moving {
            let found = committed.get(&name).copied().flatten();
            if found != Some(wanted) {
                let found = found.map_or("none".to_string(), |offset| offset.to_string());
                return Err(RewindError::NotTaken { topic: name.0, partition: name.1, wanted, found });
            }
        }
        Ok(())
    }

    fn refuse_members(&self) -> Result<(), RewindError> {
        let group = &self.settings.group;
        let list = patiently(|| self.consumer.fetch_group_list(Some(group), BROKER_TIMEOUT))
            .map_err(|error| failed("describe group", group, &error))?;
        let found = list.groups().iter().filter(|found| found.name() == group);
        let members: Vec<String> = found
            .flat_map(|found| found.members())
            .map(|member| format!("{} at {}", member.client_id(), member.client_host().trim_start_matches('/')))
            .collect();
        if members.is_empty() {
            return Ok(());
        }
        Err(RewindError::Members { group: group.clone(), members: members.join(", ") })
    }

    /// Every partition of the service's topics.
    fn partitions(&self) -> Result<Vec<Name>, RewindError> {
        let mut names = Vec::new();
        for topic in self.topics.names() {
            let metadata = self
                .consumer
                .fetch_metadata(Some(topic), BROKER_TIMEOUT)
                .map_err(|error| failed("find", topic, &error))?;
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            let partitions = found.map(|found| found.partitions()).unwrap_or_default();
            match found.and_then(|found| found.error()).map(Code::from) {
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) | None if partitions.is_empty() => {
                    return Err(RewindError::NoTopic { topic: topic.to_string() });
                }
                Some(code) => return Err(failed("find", topic, &code)),
                None => names.extend(partitions.iter().map(|part| (topic.to_string(), part.id()))),
            }
        }
        names.sort();
        Ok(names)
    }

    fn committed(&self, names: &[Name]) -> Result<BTreeMap<Name, Option<i64>>, RewindError> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in names {
            list.add_partition(topic, *partition);
        }
        let group = format!("of group {}", self.settings.group);
        let found = patiently(|| self.consumer.committed_offsets(list.clone(), BROKER_TIMEOUT))
            .map_err(|error| failed("read commits", &group, &error))?;
        offsets(&found, "read commits")
    }

    /// The first record of each partition with that time or a later one.
    fn first_of(&self, times: impl Iterator<Item = (Name, i64)>) -> Result<BTreeMap<Name, Option<i64>>, RewindError> {
        let mut list = TopicPartitionList::new();
        for ((topic, partition), time_ms) in times {
            list.add_partition_offset(&topic, partition, Offset::Offset(time_ms))
                .map_err(|error| failed("find times", &topic, &error))?;
        }
        let found = self
            .consumer
            .offsets_for_times(list, BROKER_TIMEOUT)
            .map_err(|error| failed("find times", &self.topics.names().join(", "), &error))?;
        offsets(&found, "find times")
    }

    /// The first record with the newest time before `since_ms` among those that stand before `first`: times are halved, all
    /// partitions at once, until that time is known.
    fn newest_before(
        &self,
        names: &[Name],
        since_ms: i64,
        first: &BTreeMap<Name, Option<i64>>,
    ) -> Result<BTreeMap<Name, Option<i64>>, RewindError> {
        let end_of = |name: &Name| first.get(name).copied().flatten().unwrap_or(i64::MAX);
        // A time with such a record, where one is known, and one without.
        let mut between: BTreeMap<Name, (Option<i64>, i64)> =
            names.iter().map(|name| (name.clone(), (None, since_ms))).collect();
        let mut newest: BTreeMap<Name, Option<i64>> = BTreeMap::new();
        loop {
            let open = between.iter().filter(|(_, (with, without))| without - with.unwrap_or(-1) > 1);
            let asked: BTreeMap<Name, i64> =
                open.map(|(name, (with, without))| (name.clone(), plan::middle(*with, *without))).collect();
            if asked.is_empty() {
                return Ok(newest);
            }
            let found = self.first_of(asked.clone().into_iter())?;
            for (name, time_ms) in asked {
                let Some(bounds) = between.get_mut(&name) else { continue };
                match found.get(&name).copied().flatten().filter(|offset| *offset < end_of(&name)) {
                    Some(offset) => {
                        bounds.0 = Some(time_ms);
                        newest.insert(name, Some(offset));
                    }
                    None => bounds.1 = time_ms,
                }
            }
        }
    }

    /// False where it may not be asked, too: then it is not known.
    fn is_stamped_by_broker(&self, topic: &str) -> bool {
        let admin: Result<AdminClient<DefaultClientContext>, ClientError> =
            client::group_config(self.settings).create();
        let Ok(admin) = admin else { return false };
        let options = AdminOptions::new().request_timeout(Some(BROKER_TIMEOUT));
        let resource = ResourceSpecifier::Topic(topic);
        let Ok(answers) = futures::executor::block_on(admin.describe_configs([&resource], &options)) else {
            return false;
        };
        let stamped_by = answers.into_iter().flatten().find_map(|found| found.get(STAMPED_BY)?.value.clone());
        stamped_by.as_deref() == Some("LogAppendTime")
    }
}

/// Tries again while the group's coordinator is not known or not ready: a broker just started, a first group ever.
fn patiently<T>(mut attempt: impl FnMut() -> Result<T, ClientError>) -> Result<T, ClientError> {
    let (mut backoff, begun) = (Backoff::default(), Instant::now());
    let passes = |error: &ClientError| {
        matches!(
            error.rdkafka_error_code(),
            Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress)
        )
    };
    loop {
        match attempt() {
            Err(error) if passes(&error) && begun.elapsed() < BROKER_TIMEOUT => std::thread::sleep(backoff.pause()),
            ended => return ended,
        }
    }
}

/// What a list says of each partition: an offset, or that there is none.
fn offsets(list: &TopicPartitionList, operation: &'static str) -> Result<BTreeMap<Name, Option<i64>>, RewindError> {
    let mut found = BTreeMap::new();
    for element in list.elements() {
        element.error().map_err(|error| failed(operation, element.topic(), &error))?;
        let offset = match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        found.insert((element.topic().to_string(), element.partition()), offset);
    }
    Ok(found)
}

fn failed(operation: &'static str, of: &str, error: &dyn std::fmt::Display) -> RewindError {
    RewindError::Kafka(KafkaError::Call {
        operation,
        message: format!(
            "{of}: {error}; look at kafka.brokers, kafka.properties and the rights, which are those of the ingest: READ on the group \
             and on the topics"
        ),
    })
}
