//! A Redis that is set back to a backup, and the consumer group with it: what the backup lacks is read again, each event once.

use crate::kafka::{Topics, records};
use crate::worlds::{click, now_ms};
use rdkafka::message::ToBytes;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use taiji::ingest::kafka::rewind::{RewindError, Rewinder};
use testkit::TAIJI;
use testkit::kafka::Broker;
use testkit::process::{Ended, SOON, Server, run_with, wait_until};
use testkit::redis::RedisServer;

const USERS: usize = 10;
const PARTITIONS: i32 = 4;

/// Produces clicks of all users in turn, each under its user's key.
struct Sender<'a> {
    producer: BaseProducer,
    topic: &'a str,
    sent: Vec<(String, String)>,
}

impl<'a> Sender<'a> {
    fn new(broker: &Broker, topic: &'a str) -> Sender<'a> {
        Sender { producer: broker.client().create().expect("producer"), topic, sent: Vec::new() }
    }

    /// The records bear times from `stamped_ms` on, a ms apart.
    fn send(&mut self, count: usize, stamped_ms: i64) {
        for stamped_ms in (stamped_ms..).take(count) {
            let place = self.sent.len();
            let (user, id) = (format!("u{}", place % USERS), format!("e{place:04}"));
            let event = click(&user, &id, now_ms() - 10_000_000 + place as i64).to_string();
            let record = BaseRecord::to(self.topic).key(user.as_str()).payload(event.to_bytes()).timestamp(stamped_ms);
            self.producer.send(record).map_err(|(error, _)| error).expect("a record");
            self.sent.push((user, id));
        }
        self.producer.flush(Duration::from_secs(30)).expect("flush");
    }

    fn wait_until_stored(&self, server: &Server) {
        let by_user = self.by_user();
        let seq = |user: &str| server.history(user).map_or(0, |history| history["seq"].as_u64().expect("seq"));
        wait_until("all events", SOON, || {
            by_user.iter().all(|(user, ids)| seq(user) >= ids.len() as u64).then_some(())
        });
    }

    fn by_user(&self) -> BTreeMap<String, Vec<String>> {
        let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (user, id) in &self.sent {
            users.entry(user.clone()).or_default().push(id.clone());
        }
        users
    }

    /// Every event is there once, and was counted once.
    fn check(&self, server: &Server) {
        for (user, ids) in self.by_user() {
            let history = server.history(&user).expect("history");
            let kept = history["engagements"].as_array().expect("engagements").iter();
            let mut kept: Vec<&str> = kept.map(|event| event["event_id"].as_str().expect("id")).collect();
            kept.sort_unstable();
            assert_eq!(kept, ids, "{user}");
            assert_eq!(history["seq"], Value::from(ids.len()), "{user}");
        }
    }
}

/// A copy of all that the Redis holds now, as `BGSAVE` writes it.
fn back_up(redis: &RedisServer) -> PathBuf {
    assert!(redis.command(&["BGSAVE"]).starts_with('+'));
    wait_until("a backup", SOON, || {
        redis.command(&["INFO", "persistence"]).contains("rdb_bgsave_in_progress:0").then_some(())
    });
    let backup = redis.folder.path().join("backup.rdb");
    std::fs::copy(redis.folder.path().join("dump.rdb"), &backup).expect("a copy");
    backup
}

fn lose_and_restore(redis: &mut RedisServer, backup: &Path) {
    redis.kill();
    std::fs::copy(backup, redis.folder.path().join("dump.rdb")).expect("the backup");
    redis.restart();
}

/// `taiji restore rewind` with the tests' topics.
struct Rewind<'a> {
    config: &'a str,
    broker: &'a str,
}

impl Rewind<'_> {
    fn run(&self, to: &str, more: &[&str]) -> Ended {
        let arguments = ["restore", "rewind", "--config", self.config, "--kafka", self.broker, "--to", to];
        run_with(&TAIJI, &[&arguments, more].concat(), &[])
    }
}

fn config_with(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("config");
    path.display().to_string()
}

#[test]
fn after_a_restore_of_redis_the_rewound_group_reads_every_lost_event_again_and_none_counts_twice() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "restore");
    if !topics.broker.is_real_or_skip() {
        return;
    }
    let mut redis = RedisServer::with(&["--appendonly", "no"]);
    let setup = topics.serve(folder.path()).on(&redis.url()).env("TAIJI__KAFKA__COMMIT_DELAY_MS", "2000");
    let mut server = setup.start();
    let mut sender = Sender::new(topics.broker, &topics.events);
    let committed = || topics.broker.committed("restore", &topics.events, PARTITIONS);
    let all_committed = || -> Vec<Option<i64>> {
        topics.broker.ends(&topics.events, PARTITIONS).into_iter().map(|end| (end > 0).then_some(end)).collect()
    };

    let long_ago = now_ms() - 7_200_000;
    sender.send(100, long_ago);
    sender.send(50, now_ms() - 1000);
    sender.wait_until_stored(&server);
    let to = now_ms();
    let backup = back_up(&redis);
    // As dead letters that were sent back: they bear an old time, and come before all that bear one of after the backup.
    sender.send(10, long_ago);
    sender.send(80, now_ms());
    sender.wait_until_stored(&server);
    wait_until("commits of everything", SOON, || (committed() == all_committed()).then_some(()));
    let before = committed();

    let config = topics.config();
    let rewind = Rewind { config: &config, broker: topics.broker.address() };
    let to = to.to_string();
    let exactly = ["--margin", "0"];
    let refused = rewind.run(&to, &[]).expect_code(69).stderr;
    assert!(refused.contains("has members: taiji at") && refused.contains("role ingest"), "{refused}");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    lose_and_restore(&mut redis, &backup);

    let dry = rewind.run(&to, &[&exactly[..], &["--dry-run"]].concat()).expect_code(0).stdout;
    assert!(dry.contains("dry run: nothing was changed") && dry.contains("producers' times"), "{dry}");
    assert!(dry.contains("restore.items, partition 0: nothing is committed"), "{dry}");
    assert_eq!(committed(), before);
    let done = rewind.run(&to, &exactly).expect_code(0).stdout;
    let rewound = committed();
    let again: i64 = before.iter().flatten().sum::<i64>() - rewound.iter().flatten().sum::<i64>();
    assert!(done.contains(&format!("at most {again} records are read again")), "{done}");
    let with_records = before.iter().flatten().count() as i64;
    assert_eq!(again, 90 + with_records, "what came since, and of each partition the newest of before: {done}");
    // Never forward.
    let later = rewind.run(&now_ms().to_string(), &exactly).expect_code(0).stdout;
    assert!(later.contains("0 of 5 partitions seek back"), "{later}");
    assert_eq!(committed(), rewound);

    let server = setup.start();
    sender.wait_until_stored(&server);
    wait_until("all records again", SOON, || {
        let taken = records(&server, &topics, "accepted") + records(&server, &topics, "duplicate");
        (taken as i64 == again).then_some(())
    });
    assert_eq!(records(&server, &topics, "accepted"), 90.0);
    sender.check(&server);
    somebody_who_joins_meanwhile_is_not_committed_over(&config, topics.broker, server);
}

/// Between the plan and its commits a process starts.
fn somebody_who_joins_meanwhile_is_not_committed_over(config: &str, broker: &Broker, mut server: Server) {
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    let flags = [("kafka.brokers", broker.address().to_string())];
    let settings = taiji::config::load(Some(Path::new(config)), std::iter::empty(), &flags).expect("settings").kafka;
    let rewinder = Rewinder::new(&settings).expect("a client");
    let plan = rewinder.plan(1_000_000_000_000).expect("a plan");
    assert!(plan.moving() > 0);
    let server = server.start_again();
    let refused = rewinder.apply(&plan).expect_err("a member has joined");
    assert!(matches!(refused, RewindError::Members { .. }), "{refused}");
    drop(server);
}

#[test]
fn a_rewind_that_cannot_be_meant_is_refused_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("tempdir");
    let broker = Broker::shared();
    broker.create_topic("wrong.events", 2, &[]);
    let kafka = |group: &str, events: &str| {
        format!("[kafka]\ngroup = \"{group}\"\nevents_topic = \"{events}\"\nitems_topic = \"\"\n")
    };
    let config = config_with(folder.path(), "whole.toml", &kafka("wrong", "wrong.events"));
    let rewind = Rewind { config: &config, broker: broker.address() };
    let now = now_ms();
    for (to, code, part) in [
        ((now + 3_600_000).to_string(), 64, "lies in the future"),
        ((now / 1000).to_string(), 64, "is it in seconds?"),
        ("yesterday".to_string(), 64, "RFC 3339"),
        (now.to_string(), 69, "group \"wrong\" has committed nothing of wrong.events"),
    ] {
        let said = rewind.run(&to, &[]).expect_code(code).stderr;
        assert!(said.contains(part), "{to}: {said}");
    }
    let config = config_with(folder.path(), "missing.toml", &kafka("wrong", "absent.events"));
    let said = Rewind { config: &config, ..rewind }.run(&now.to_string(), &[]).expect_code(69).stderr;
    assert!(said.contains("topic \"absent.events\" is not there"), "{said}");
    let said = run_with(&TAIJI, &["restore", "rewind", "--to", &now.to_string()], &[]).expect_code(64).stderr;
    assert!(said.contains("no broker is named"), "{said}");
}
