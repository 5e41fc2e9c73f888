//! Kafka from outside: `taiji feed --kafka`, `taiji serve --kafka`, `taiji dlq`, kills and drains.

use crate::worlds::{click, data_plane_bundle, now_ms, read_events, users_of, write_lines};
use prost::Message as _;
use rdkafka::message::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use taiji::event::Event;
use taiji::proto::Served;
use testkit::TAIJI;
use testkit::kafka::Broker;
use testkit::process::synth_files;
use testkit::process::{SOON, Server, Setup, call, run_with, wait_until};

/// Topics of a test's own, as a configuration file.
pub struct Topics {
    pub broker: &'static Broker,
    config: String,
    pub events: String,
}

impl Topics {
    /// Makes them.
    pub fn new(folder: &Path, name: &str) -> Topics {
        let broker = Broker::shared();
        let events = format!("{name}.events");
        for (topic, partitions) in [
            (events.clone(), 4),
            (format!("{name}.items"), 1),
            (format!("{name}.dlq"), 1),
            (format!("{name}.features"), 1),
            (format!("{name}.served"), 2),
        ] {
            broker.create_topic(&topic, partitions, &[]);
        }
        let config = folder.join("taiji.toml");
        let text = format!(
            "[kafka]\ngroup = \"{name}\"\nevents_topic = \"{events}\"\nitems_topic = \"{name}.items\"\n\
             dead_letter_topic = \"{name}.dlq\"\nfeatures_topic = \"{name}.features\"\n[kafka.properties]\n\
             \"session.timeout.ms\" = \"6000\"\n\"heartbeat.interval.ms\" = \"300\"\n"
        );
        std::fs::write(&config, text).expect("config");
        Topics { broker, config: config.display().to_string(), events }
    }

    /// A service that reads them.
    pub fn serve(&self, folder: &Path) -> Setup {
        let bundle = data_plane_bundle(folder);
        let setup = Setup::canned(&bundle, &folder.join("store"));
        setup.flag("--config", &self.config).flag("--kafka", self.broker.address())
    }

    /// Their configuration file.
    pub fn config(&self) -> String {
        self.config.clone()
    }

    /// `taiji feed` of a file.
    pub fn feed(&self, file: &Path) -> String {
        let file = file.display().to_string();
        self.taiji(&["feed", "--file", &file])
    }

    /// `taiji feed` of a file at so many events a second.
    pub fn feed_at(&self, file: &Path, rate: &str) -> String {
        let file = file.display().to_string();
        self.taiji(&["feed", "--file", &file, "--rate", rate])
    }

    /// A command of `taiji` with our brokers and topics.
    fn taiji(&self, arguments: &[&str]) -> String {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--kafka", self.broker.address(), "--config", &self.config]);
        run_with(&TAIJI, &arguments, &[]).expect_code(0).stdout
    }
}

/// Records of the events topic by outcome.
pub fn records(server: &Server, topics: &Topics, outcome: &str) -> f64 {
    server.metric(&format!("taiji_kafka_records_total{{outcome=\"{outcome}\",topic=\"{}\"}}", topics.events))
}

/// (kept events, latest 100) of each user by (ts, id), as the events must leave them.
fn expected(events: &[Event]) -> BTreeMap<String, Vec<String>> {
    let mut users: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
    for event in events.iter().filter(|event| !matches!(event.action.as_str(), "impression" | "search" | "profile")) {
        users.entry(event.user_id.clone()).or_default().push((event.ts_ms, event.event_id.clone()));
    }
    let latest = |mut kept: Vec<(i64, String)>| {
        kept.sort_by(|left, right| right.cmp(left));
        kept.into_iter().map(|(_, id)| id).take(100).collect()
    };
    users.into_iter().map(|(user, kept)| (user, latest(kept))).collect()
}

fn check_histories(server: &Server, events: &[Event]) {
    for (user, ids) in expected(events) {
        let history = server.history(&user).expect("history");
        let found = history["engagements"].as_array().expect("engagements").iter();
        let found: Vec<&str> = found.map(|behaviour| behaviour["event_id"].as_str().expect("id")).collect();
        assert_eq!(found, ids, "history of {user}");
    }
}

#[test]
fn events_fed_through_kafka_become_features_and_a_drained_start_reads_nothing_twice() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "way");
    synth_files(folder.path(), 40, 4245);
    let file = folder.path().join("events.jsonl");
    let events = read_events(&file);
    let mut server = topics.serve(folder.path()).start();
    let items = folder.path().join("items.jsonl").display().to_string();
    let said = topics.taiji(&["feed", "--file", &file.display().to_string(), "--items", &items, "--rate", "100000"]);
    assert!(said.contains(&format!("events: {} produced to way.events", events.len())), "{said}");
    let all = |server: &Server| records(server, &topics, "accepted") + records(server, &topics, "duplicate");
    wait_until("all events", SOON, || (all(&server) as usize == events.len()).then_some(()));
    let users = users_of(&events);
    let columns = server.wait_for_features(&users, SOON);
    assert_eq!(columns["status"], json!(vec!["PRESENT"; users.len()]));
    check_histories(&server, &events);
    wait_until("the change feed", SOON, || {
        let published = topics.broker.read_all("way.features", 1);
        let known = |user: &String| published.iter().any(|record| record.key() == Some(user.as_bytes()));
        users.iter().all(known).then_some(())
    });
    assert!(server.metric("taiji_catalogue_items") > 0.0);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());

    let again = server.start_again();
    let one = folder.path().join("one.jsonl");
    write_lines(&one, [click("late", "late-1", now_ms())]);
    topics.feed(&one);
    wait_until("the new event", SOON, || again.history("late"));
    assert_eq!((records(&again, &topics, "accepted"), records(&again, &topics, "duplicate")), (1.0, 0.0));
}

#[test]
fn a_killed_service_loses_nothing_and_counts_nothing_twice() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "kill");
    let events: Vec<Value> =
        (0..8000).map(|n| click(&format!("u{}", n % 90), &format!("e{n:05}"), 1_700_000_000_000 + n)).collect();
    let file = folder.path().join("events.jsonl");
    write_lines(&file, &events);
    let mut server = topics.serve(folder.path()).start();
    std::thread::scope(|scope| {
        // Events keep coming while the service dies twice; what it read the first time comes again.
        scope.spawn(|| topics.taiji(&["feed", "--file", &file.display().to_string(), "--rate", "3000"]));
        for _ in 0..2 {
            let seen = || records(&server, &topics, "accepted") + records(&server, &topics, "duplicate");
            wait_until("some events", SOON, || (seen() > 500.0).then_some(()));
            server.kill();
            server = server.start_again();
        }
    });
    let typed: Vec<Event> = events.iter().map(|event| serde_json::from_value(event.clone()).expect("event")).collect();
    let done = || {
        (0..90).all(|user| {
            server.history(&format!("u{user}")).is_some_and(|history| history["seq"] == json!(seq_of(user)))
        })
    };
    wait_until("every event", Duration::from_secs(90), || done().then_some(()));
    check_histories(&server, &typed);
}

/// Events of a user of the test above.
fn seq_of(user: usize) -> usize {
    8000 / 90 + usize::from(user < 8000 % 90)
}

/// What the ranker got is what the topic holds: each user of each answer once, by the answer's own name.
#[test]
fn what_is_served_stands_in_the_topic_as_the_ranker_got_it() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "served");
    let setup = topics.serve(folder.path()).env("TAIJI__KAFKA__SERVED_TOPIC", "served.served");
    let mut server = setup.env("TAIJI__KAFKA__SERVED_SAMPLE", "1.0").start();
    let users: Vec<String> = ["{a} %", "b"].map(String::from).to_vec();
    let events: Vec<Value> = users.iter().map(|user| click(user, &format!("e {user}"), now_ms())).collect();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    server.wait_for_features(&users, SOON);
    let asked = [users.clone(), vec!["nobody".to_string()]].concat();
    let body = json!({ "users": asked, "groups": ["intra", "cross"] }).to_string();
    let read = |id: &str| {
        let headers = [("x-request-id", id)];
        call(server.public(), "POST", "/v1/features", &headers, body.as_bytes()).expect("answer").expect_status(200)
    };
    let named = |answer: &testkit::process::Answer| {
        let line = answer
            .head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("x-request-id: ").map(String::from));
        line.expect("the answer's name")
    };
    let answer = read("page-7");
    assert_eq!(named(&answer), "page-7");
    let columns = answer.json();
    // What cannot be an event's request_id is no name; the answer has one of ours.
    let other = named(&read(&"x".repeat(129)));
    assert_eq!(other.len(), 32, "{other}");
    // Text is for admins only, and stays out.
    server.row("b", "text");
    let of = |id: &str| -> Vec<(String, Served)> {
        let records = topics.broker.read_all("served.served", 2);
        let decode = |record: &rdkafka::message::OwnedMessage| {
            let key = String::from_utf8(record.key().expect("key").to_vec()).expect("key");
            (key, Served::decode(record.payload().expect("value")).expect("message"))
        };
        records.iter().map(decode).filter(|(_, served)| served.request_id == id).collect()
    };
    let served = wait_until("the answer in the topic", SOON, || Some(of("page-7")).filter(|found| found.len() == 3));
    for (place, user) in asked.iter().enumerate() {
        let (_, served) = served.iter().find(|(key, _)| key == user).expect("every user");
        let features = served.features.as_ref().expect("features");
        let (intra, cross) = (features.intra.as_ref().expect("intra"), features.cross.as_ref().expect("cross"));
        let got = |name: &str| columns["features"][name][place].clone();
        assert_eq!(json!(features.user_id), json!(user));
        assert_eq!(json!(features.status), columns["status"][place]);
        assert_eq!(json!(intra.sparse_ids), got("intra.sparse_ids"));
        assert_eq!(json!(u8::from(intra.has_llm_feature)), got("intra.has_llm_feature"));
        assert_eq!(json!(cross.item_ids), got("cross.item_ids"));
        assert_eq!(json!(served.space), columns["space"]);
        let meta = intra.meta.clone().unwrap_or_default();
        assert_eq!(json!(meta.seq), columns["groups"]["intra"]["seq"][place]);
        let groups: Vec<(&str, Value)> =
            served.groups.iter().map(|group| (group.name.as_str(), json!(group.status))).collect();
        let status = |name: &str| columns["groups"][name]["status"][place].clone();
        assert_eq!(groups, [("intra", status("intra")), ("cross", status("cross"))]);
        assert!(served.arm.is_empty() && served.served_at_ms > 0);
    }
    wait_until("the other answer", SOON, || (of(&other).len() == 3).then_some(()));
    // A drain publishes what waits.
    for turn in 0..50 {
        read(&format!("last {turn}"));
    }
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!((0..50).all(|turn| of(&format!("last {turn}")).len() == 3));
}

#[test]
fn dead_letters_are_listed_and_sent_back_by_the_command() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "letters");
    let file = folder.path().join("events.jsonl");
    let foreign = json!({"user_id": "u", "item_id": "i1", "action": "waved", "ts_ms": 1_700_000_000_000_i64});
    std::fs::write(&file, format!("{}\nno json\n{foreign}\n", click("u", "e1", now_ms()))).expect("events");
    let setup = topics.serve(folder.path());
    let mut server = setup.start();
    topics.feed(&file);
    wait_until("two dead letters", SOON, || (server.metric("taiji_kafka_dead_letters_total") == 2.0).then_some(()));
    let said = topics.taiji(&["dlq", "list"]);
    assert!(said.contains("2 dead letters: field 1, json 1") && said.contains("action: unknown"), "{said}");
    let said = topics.taiji(&["dlq", "list", "--reason", "field", "--json"]);
    let letter: Value = serde_json::from_str(said.trim()).expect("one object");
    assert_eq!((&letter["reason"], &letter["value"]), (&json!("field"), &json!(foreign.to_string())));
    let said = topics.taiji(&["dlq", "replay", "--dry-run"]);
    assert!(said.starts_with("2 would be sent back"), "{said}");
    assert_eq!(server.stop(), Some(0));

    // The action is configured now, and the letter comes back as an event.
    let mut config = std::fs::read_to_string(&topics.config).expect("config");
    config.push_str("[events.actions]\nwaved = { class = \"engagement\", weight = 1.0 }\n");
    std::fs::write(&topics.config, config).expect("config");
    let server = setup.start();
    let said = topics.taiji(&["dlq", "replay", "--reason", "field"]);
    assert!(said.starts_with("1 sent back"), "{said}");
    wait_until("the event", SOON, || (records(&server, &topics, "accepted") == 1.0).then_some(()));
    let said = run_with(&TAIJI, &["dlq", "list"], &[]).expect_code(64).stderr;
    assert!(said.contains("--kafka"), "{said}");
}

/// The broker is not there yet: the service waits, unready, and says for what.
#[test]
fn without_a_broker_the_service_waits_unready_and_still_drains() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let address = testkit::process::free_address();
    let setup = Setup::canned(&bundle, &folder.path().join("store")).flag("--kafka", &address);
    let (mut server, _) = setup.start_unready("kafka", "waiting for the first assignment");
    server.post("/v1/events", &click("u", "e", now_ms())).expect_status(202);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}
