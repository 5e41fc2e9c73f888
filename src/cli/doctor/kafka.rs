//! Kafka: the broker, the topics of this process's roles, and the rights on them.

use super::super::CommandError;
use super::report::{Finding, Report};
use crate::config::{KafkaSettings, Role, Settings};
use crate::kafka::checkup::Checkup;

const TOPICS: &str = "kafka topics";
const RIGHTS: &str = "kafka rights";

/// All checks of Kafka. Without a broker in the settings there are none.
pub(super) async fn check(settings: &Settings, report: &mut Report) -> Result<(), CommandError> {
    if !settings.kafka.is_on() {
        report.add(Finding::off("kafka", "kafka.brokers is not set"));
        return Ok(());
    }
    let settings = settings.clone();
    let found = tokio::task::spawn_blocking(move || look(&settings)).await;
    let found = found.map_err(|error| CommandError::Internal(format!("kafka: {error}")))?;
    report.findings.extend(found);
    Ok(())
}

/// Topics that are read and written by the roles of these settings.
struct Topics {
    read: Vec<String>,
    written: Vec<String>,
}

impl Topics {
    fn of(settings: &Settings) -> Topics {
        let kafka: &KafkaSettings = &settings.kafka;
        let (ingest, api) = (settings.server.has(Role::Ingest), settings.server.has(Role::Api));
        let named = |wanted: &[(bool, &String)]| {
            wanted.iter().filter(|(on, name)| *on && !name.is_empty()).map(|(_, name)| name.to_string()).collect()
        };
        Topics {
            read: named(&[(ingest, &kafka.events_topic), (ingest, &kafka.items_topic)]),
            // Features change in every role: who erases tells, too.
            written: named(&[
                (ingest, &kafka.dead_letter_topic),
                (true, &kafka.features_topic),
                (api, &kafka.served_topic),
            ]),
        }
    }
}

fn look(settings: &Settings) -> Vec<Finding> {
    let kafka = &settings.kafka;
    let checkup = match Checkup::connect(kafka) {
        Ok(checkup) => checkup,
        Err(error) => {
            let remedy = "start it, name it in kafka.brokers, or mend login and certificates in kafka.properties";
            return vec![
                Finding::failed("kafka", format!("{}: {error}", kafka.brokers), remedy),
                Finding::not_checked(TOPICS, "no connection to Kafka"),
                Finding::not_checked(RIGHTS, "no connection to Kafka"),
            ];
        }
    };
    let topics = Topics::of(settings);
    let brokers = format!("{}: {} brokers", kafka.brokers, checkup.brokers());
    vec![Finding::ok("kafka", brokers), are_there(&checkup, &topics), may_be_used(kafka, &checkup, &topics)]
}

fn are_there(checkup: &Checkup, topics: &Topics) -> Finding {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in topics.read.iter().chain(&topics.written) {
        match checkup.topic(name) {
            Ok(partitions) => found.push(format!("{name} ({partitions} partitions)")),
            Err(why) => missing.push(format!("{name}: {why}")),
        }
    }
    if missing.is_empty() {
        return Finding::ok(TOPICS, found.join(", "));
    }
    Finding::failed(TOPICS, missing.join("; "), "make the topics, and give the user DESCRIBE on them")
}

/// The rights on those that are there.
fn may_be_used(kafka: &KafkaSettings, checkup: &Checkup, topics: &Topics) -> Finding {
    let is_there = |name: &&String| checkup.topic(name).is_ok();
    let (mut allowed, mut refused) = (Vec::new(), Vec::new());
    let mut note = |what: String, answer: Result<(), String>| match answer {
        Ok(()) => allowed.push(what),
        Err(why) => refused.push(format!("{what}: {why}")),
    };
    for name in topics.read.iter().filter(is_there) {
        note(format!("read {name}"), checkup.may_read(name));
    }
    if let Some(name) = topics.read.iter().find(is_there) {
        note(format!("group {}", kafka.group), checkup.may_use_group(name));
    }
    for name in topics.written.iter().filter(is_there) {
        note(format!("write {name}"), checkup.may_write(name));
    }
    if !refused.is_empty() {
        let remedy = "kafka-acls --add: READ on what is read and on the group, WRITE on what is written";
        return Finding::failed(RIGHTS, refused.join("; "), remedy);
    }
    if allowed.is_empty() {
        return Finding::not_checked(RIGHTS, "none of the topics is there");
    }
    Finding::ok(RIGHTS, allowed.join(", "))
}
