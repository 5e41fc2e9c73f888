//! User ids of every kind, the whole way: in through Kafka and through HTTP, features, history, erasure; on every store.

use crate::kafka::{Topics, records};
use crate::worlds::{click, now_ms, write_lines};
use serde_json::{Value, json};
use testkit::process::{SOON, Server, call, percent, wait_until};
use testkit::redis::{RedisCluster, RedisServer};

fn users() -> Vec<String> {
    let longest = ["x".repeat(128), "é".repeat(64), "{%}".repeat(42), "😀".repeat(32)];
    [
        "{}",
        "{",
        "}",
        "{a}b",
        "}{",
        "%",
        "%7B",
        "%%7D",
        " ",
        " a b ",
        "😀 👩‍👩‍👧",
        "u:st",
        "taiji:{u}:st",
        "a/b",
        "..",
        "?x=1&y#z",
        "\"q\"",
        "back\\slash",
        "+",
        "0",
        "null",
        "ＦＵＬＬ",
        "e\u{301}",
        "\u{200b}",
        "\u{202e}abc",
    ]
    .into_iter()
    .map(String::from)
    .chain(longest)
    .collect()
}

fn delete(server: &Server, user: &str) -> u16 {
    call(server.public(), "DELETE", &format!("/v1/users/{}", percent(user)), &[], b"").expect("answer").status
}

/// Event `name` of every user, at this time.
fn clicks(users: &[String], name: &str, ts_ms: i64) -> Vec<Value> {
    users.iter().map(|user| click(user, name, ts_ms)).collect()
}

fn ids(history: &Value) -> Vec<&str> {
    let engagements = history["engagements"].as_array().expect("engagements");
    engagements.iter().map(|behaviour| behaviour["event_id"].as_str().expect("id")).collect()
}

fn whole_way(name: &str, store: Option<&str>) {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), name);
    let setup = topics.serve(folder.path());
    let mut server = store.map_or(setup.clone(), |url| setup.clone().on(url)).start();
    let (users, start) = (users(), now_ms() - 100_000);
    let count = users.len() as f64;

    let too_long = ["x".repeat(129), "é".repeat(65), String::new(), "a\nb".into()];
    let told =
        server.post("/v1/events", &json!({ "events": clicks(&too_long, "bad", start) })).expect_status(400).json();
    assert_eq!(told["rejected"].as_array().map(Vec::len), Some(too_long.len()), "{told}");
    let told = server.post("/v1/events", &json!({ "events": clicks(&users, "http", start) })).expect_status(202).json();
    assert_eq!(told["accepted"], json!(users.len()), "{told}");
    let file = folder.path().join("events.jsonl");
    let lines = [clicks(&too_long, "bad", start), clicks(&users, "kafka", start + 1), clicks(&users, "http", start)];
    write_lines(&file, lines.concat());
    topics.feed(&file);
    wait_until("all records", SOON, || {
        let by = |outcome| records(&server, &topics, outcome);
        let done = (by("accepted"), by("duplicate"), by("dead_letter"));
        (done == (count, count, too_long.len() as f64)).then_some(())
    });

    let columns = server.wait_for_features(&users, SOON);
    assert_eq!(columns["users"], json!(users));
    for user in &users {
        let history = server.history(user).expect("history");
        assert_eq!((&history["user_id"], ids(&history)), (&json!(user), vec!["kafka", "http"]), "{user:?}");
        assert_eq!(server.row(user, "intra")["status"], json!("PRESENT"), "{user:?}");
    }

    // One by one, so that an id that names another's keys shows.
    let (erased, left) = users.split_at(users.len() / 2);
    for user in erased {
        assert_eq!(delete(&server, user), 202, "{user:?}");
    }
    let gone = |server: &Server, user: &String| {
        server.history(user).is_none() && server.row(user, "intra")["status"] == json!("MISSING")
    };
    erased.iter().for_each(|user| assert!(gone(&server, user), "{user:?}"));
    for user in left {
        assert_eq!(ids(&server.history(user).expect("history")), ["kafka", "http"], "{user:?}");
    }
    left.iter().for_each(|user| assert_eq!(delete(&server, user), 202, "{user:?}"));
    users.iter().for_each(|user| assert!(gone(&server, user), "{user:?}"));
    // What was before the erasure stays away, by either way; what comes after it begins anew.
    let again =
        server.post("/v1/events", &json!({ "events": clicks(&users, "http", start) })).expect_status(202).json();
    assert_eq!(again["duplicates"], json!(users.len()), "{again}");
    write_lines(&file, clicks(&users, "after", now_ms() + 1000));
    topics.feed(&file);
    wait_until("everybody's return", SOON, || {
        let back = |user: &String| server.history(user).is_some_and(|history| ids(&history) == ["after"]);
        users.iter().all(back).then_some(())
    });
    server.wait_for_features(&users, SOON);
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

#[test]
fn any_user_id_goes_the_whole_way_on_the_embedded_store() {
    whole_way("odd-embedded", None);
}

#[test]
fn any_user_id_goes_the_whole_way_on_redis() {
    whole_way("odd-redis", Some(&RedisServer::start().url()));
}

#[test]
fn any_user_id_goes_the_whole_way_on_a_cluster() {
    whole_way("odd-cluster", Some(&RedisCluster::start().url()));
}
