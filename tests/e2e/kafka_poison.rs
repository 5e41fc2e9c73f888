//! Records that cannot be read on the ways to and from Kafka: items of the topic and of the stored feed, users of the change feed.

use crate::kafka::Topics;
use crate::worlds::{click, data_plane_bundle, now_ms};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use testkit::kafka::Broker;
use testkit::process::{SOON, Server, Setup, call, wait_until};
use testkit::redis::RedisServer;

/// The stored feed of items: members by id, their values, the last id.
const ITEMS: [&str; 3] = ["taiji:items:{items}", "taiji:items:{items}:v", "taiji:items:{items}:n"];

fn produce(broker: &Broker, topic: &str, records: &[(&str, &str)]) {
    let producer: BaseProducer = broker.client().create().expect("producer");
    for (key, value) in records {
        producer.send(BaseRecord::to(topic).key(*key).payload(*value)).map_err(|(error, _)| error).expect("send");
    }
    producer.flush(SOON).expect("flush");
}

fn item(id: &str) -> String {
    json!({ "id": id, "title": format!("The {id}") }).to_string()
}

fn wait_for_overlay(server: &Server, items: f64) {
    wait_until(&format!("{items} items"), SOON, || {
        (server.metric("taiji_catalogue_items{part=\"overlay\"}") == items).then_some(())
    });
}

/// Puts an entry into the stored feed as its owner would.
fn plant(redis: &RedisServer, member: &str, value: &str) {
    let id = redis.command(&["INCR", ITEMS[2]]);
    redis.command(&["ZADD", ITEMS[0], id.trim_start_matches(':').trim(), member]);
    redis.command(&["HSET", ITEMS[1], member, value]);
}

#[test]
fn audit_02_the_item_lane_of_kafka_passes_over_what_cannot_be_read() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (topics, redis) = (Topics::new(folder.path(), "poisoned"), RedisServer::start());
    let setup = topics.serve(folder.path()).on(&redis.url());
    let mut server = setup.start();
    let send = |records: &[(&str, &str)]| produce(topics.broker, "poisoned.items", records);
    let unknown_field = "{\"id\": \"b\", \"title\": \"The b\", \"later\": 1}";
    send(&[
        ("a", &item("a")),
        ("x", "no json"),
        ("x", "{\"id\": \"cut"),
        ("b", unknown_field),
        ("x", "{\"id\": 7, \"title\": \"a number\"}"),
        ("x", "[\"their\", \"own\"]"),
        ("c", &item("c")),
    ]);
    wait_for_overlay(&server, 2.0);
    wait_until("dead letters", SOON, || (server.metric("taiji_kafka_dead_letters_total") == 5.0).then_some(()));
    let letters = topics.broker.read_all("poisoned.dlq", 1);
    assert!(letters.iter().any(|letter| letter.payload() == Some(unknown_field.as_bytes())), "to be sent again");

    // Of what is stored an unknown field is a later version's, everything else is passed over.
    plant(&redis, "d", "{\"id\": \"d\", \"title\": \"The d\", \"later\": 1}");
    for (nth, value) in ["no json", "", "{\"id\": \"cut", "\u{1}\u{2}\u{FFFD}"].into_iter().enumerate() {
        plant(&redis, &format!("bad-{nth}"), value);
    }
    send(&[("e", &item("e"))]);
    wait_for_overlay(&server, 4.0);
    let unreadable = || server.metric("taiji_store_unreadable_total{kind=\"item\"}");
    wait_until("a count", SOON, || (unreadable() >= 4.0).then_some(()));
    assert_eq!(redis.command(&["ZCARD", ITEMS[0]]), ":4\r\n", "a, c, d, e");

    // A key of another type holds up the lane alone, and says so; what came meanwhile is there once it is right again.
    redis.command(&["RENAME", ITEMS[1], "kept"]);
    redis.command(&["RPUSH", ITEMS[1], "theirs"]);
    send(&[("f", &item("f"))]);
    let told = wait_until("the key's name", SOON, || {
        let told = call(server.admin(), "GET", "/readyz", &[], b"").ok()?.text();
        told.contains(ITEMS[1]).then_some(told)
    });
    assert!(told.contains("list"), "{told}");
    server.get("/v1/users/nobody/features").expect_status(200);
    server.post("/v1/events", &click("u", "e1", now_ms())).expect_status(202);
    redis.command(&["DEL", ITEMS[1]]);
    redis.command(&["RENAME", "kept", ITEMS[1]]);
    wait_for_overlay(&server, 5.0);
    println!("audit 02: item lane: 5 bad records of 7 and 4 bad entries of the stored feed passed over and counted");

    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    plant(&redis, "bad-last", "no json");
    let again = server.start_again();
    wait_for_overlay(&again, 5.0);
    send(&[("g", &item("g"))]);
    wait_for_overlay(&again, 6.0);
}

#[test]
fn audit_02_the_change_feed_passes_over_a_user_that_cannot_be_read() {
    let Some(mut broker) = Broker::start_if_real() else { return };
    broker.create_topic("changes", 1, &[]);
    let folder = tempfile::tempdir().expect("tempdir");
    let (bundle, redis) = (data_plane_bundle(folder.path()), RedisServer::start());
    let setup = Setup::canned(&bundle, folder.path()).on(&redis.url()).flag("--roles", "api,infer");
    let setup = setup.flag("--kafka", broker.address()).env("TAIJI__KAFKA__FEATURES_TOPIC", "changes");
    let mut server = setup.start();
    let refresh = |names: &[&str], event: &str| -> Value {
        let users: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let events: Vec<Value> = users.iter().map(|user| click(user, &format!("{event} {user}"), now_ms())).collect();
        server.post("/v1/events", &json!({ "events": events })).expect_status(202);
        server.wait_for_features(&users, SOON)
    };
    let told = |broker: &Broker, user: &str| -> Vec<bool> {
        let records = broker.read_all("changes", 1);
        let of_user = records.iter().filter(|record| record.key() == Some(user.as_bytes()));
        of_user.map(|record| record.payload().is_some()).collect()
    };
    let space = refresh(&["first"], "one")["space"].as_str().expect("space").to_string();
    wait_until("the first user", SOON, || (told(&broker, "first") == [true]).then_some(()));

    // While its record cannot be delivered the others wait, and one of them goes bad.
    broker.kill();
    refresh(&["first"], "two");
    refresh(&["bad", "good"], "one");
    let key = format!("taiji:{{bad}}:f:{space}");
    redis.command(&["DEL", &key]);
    redis.command(&["SET", &key, "theirs"]);
    broker.start_again();
    wait_until("the good user", SOON, || (told(&broker, "good") == [true]).then_some(()));
    assert!(told(&broker, "bad").is_empty(), "what cannot be read is not told");
    assert!(server.metric("taiji_store_unreadable_total{kind=\"features\"}") >= 1.0);
    refresh(&["after"], "one");
    wait_until("the next user", SOON, || (told(&broker, "after") == [true]).then_some(()));
    call(server.public(), "DELETE", "/v1/users/bad", &[], b"").expect("answer").expect_status(202);
    wait_until("an erasure", SOON, || (told(&broker, "bad").last() == Some(&false)).then_some(()));
    println!("audit 02: change feed: a user that cannot be read is passed over and counted, the others are told");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}
