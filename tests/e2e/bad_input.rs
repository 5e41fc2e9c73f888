//! Requests that are wrong are refused by field and reason; the process and what it holds stay.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use testkit::process::{Answer, Server, Setup, call, percent};

/// A server with one accepted event of the user `before`.
struct Running {
    server: Server,
    // Removed after the server has ended.
    _folder: TempDir,
}

impl Running {
    fn new() -> Running {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        let server = Setup::canned(&bundle, &folder.path().join("store")).start();
        server.post("/v1/events", &click("before", "kept", now_ms())).expect_status(202);
        Running { server, _folder: folder }
    }

    /// The process lives, keeps what it had accepted, and takes more.
    fn check_alive(mut self) {
        let history = self.server.history("before").expect("history");
        assert_eq!((&history["seq"], &history["engagements"][0]["event_id"]), (&json!(1), &json!("kept")));
        self.server.post("/v1/events", &click("after", "e", now_ms())).expect_status(202);
        self.server.wait_for_features(&["before".into(), "after".into()], Duration::from_secs(30));
        assert_eq!(self.server.stop(), Some(0));
        assert!(!self.server.stderr().contains("panicked"), "{}", self.server.stderr());
    }
}

/// Ends the test unless it is this error and its message names this.
fn refused(answer: &Answer, status: u16, code: &str, part: &str) {
    let (found, found_code, message) = answer.error();
    assert_eq!((found, found_code.as_str()), (status, code), "{message}");
    assert!(message.contains(part), "{part:?} is not in {message:?}");
}

/// A click with one field changed.
fn changed(field: &str, value: Value) -> Value {
    let mut event = click("someone", "e", now_ms());
    event[field] = value;
    event
}

#[test]
fn a_wrong_event_is_refused_by_field_and_reason() {
    let running = Running::new();
    let server = &running.server;
    let long = "x".repeat(129);
    for (field, event, reason) in [
        ("action", changed("action", json!("teleport")), "unknown"),
        ("user_id", changed("user_id", json!(long)), "128"),
        ("user_id", changed("user_id", json!("")), "empty"),
        ("user_id", changed("user_id", json!("a\nb")), "control"),
        ("user_id", changed("user_id", json!({"id": 1})), "string"),
        ("user_id", changed("user_id", Value::Null), "missing"),
        ("item_id", changed("item_id", json!(long)), "128"),
        ("item_id", changed("item_id", Value::Null), "missing"),
        ("event_id", changed("event_id", json!(long)), "128"),
        ("ts_ms", changed("ts_ms", json!(now_ms() + 2 * 86_400_000)), "future"),
        ("ts_ms", changed("ts_ms", json!(i64::MAX)), "future"),
        ("ts_ms", changed("ts_ms", json!(1_700_000_000)), "2000"),
        ("ts_ms", changed("ts_ms", json!("today")), "integer"),
        ("ts_ms", changed("ts_ms", json!(1.7e12 + 0.5)), "integer"),
        ("value", changed("value", json!("much")), "number"),
        ("domain", changed("domain", json!("moon")), "one of"),
        ("context", changed("context", json!([1])), "object"),
        ("colour", changed("colour", json!("red")), "unknown"),
        ("context.query", changed("action", json!("search")), "query"),
        ("context", changed("action", json!("profile")), "attribute"),
    ] {
        let answer = server.post("/v1/events", &json!({ "events": [event] })).expect_status(400).json();
        assert_eq!((&answer["accepted"], &answer["rejected"][0]["index"]), (&json!(0), &json!(0)), "{answer}");
        assert_eq!(answer["rejected"][0]["field"], json!(field), "{answer}");
        let found = answer["rejected"][0]["reason"].as_str().expect("reason");
        assert!(found.contains(reason), "{field}: {found}");
    }
    assert!(server.history("someone").is_none());
    running.check_alive();
}

#[test]
fn a_wrong_item_is_refused_by_field_and_reason() {
    let running = Running::new();
    for (field, item) in [
        ("title", json!({"id": "i", "title": " "})),
        ("title", json!({"id": "i", "title": "x".repeat(1025)})),
        ("categories", json!({"id": "i", "title": "t", "categories": ["a", "b", "c", "d"]})),
        ("price", json!({"id": "i", "title": "t", "price": -1.0})),
        ("id", json!({"id": "", "title": "t"})),
    ] {
        let answer = running.server.post("/v1/items", &json!({ "items": [item] })).expect_status(400).json();
        assert_eq!(answer["rejected"][0]["field"], json!(field), "{answer}");
    }
    let two =
        json!({ "items": [{"id": "i", "title": "good"}, {"id": "j"}, {"id": "k", "title": "t", "state": "gone"}] });
    let answer = running.server.post("/v1/items", &two).expect_status(202).json();
    assert_eq!((&answer["accepted"], answer["rejected"].as_array().map(Vec::len)), (&json!(1), Some(2)), "{answer}");
    assert_eq!(answer["rejected"][0]["index"], json!(1));
    running.check_alive();
}

#[test]
fn what_is_not_a_batch_is_refused_whole() {
    let running = Running::new();
    let server = &running.server;
    for path in ["/v1/events", "/v1/items"] {
        for body in ["", "{", "[1]", "3", "null", "{\"events\": 3, \"items\": 3}", "\u{0}", "{\"events\"", "<xml/>"] {
            let answer = server.post_bytes(path, body.as_bytes());
            assert_eq!((answer.error().0, answer.error().1.as_str()), (400, "bad_request"), "{path} {body:?}");
        }
        assert_eq!(server.post_bytes(path, &[0xff, 0xfe, b'{']).error().0, 400);
        // Nesting that would overflow a recursive parser's stack.
        assert_eq!(server.post_bytes(path, "[".repeat(200_000).as_bytes()).error().0, 400);
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(server.post_bytes(path, deep.as_bytes()).error().0, 400);
    }
    refused(&server.post_bytes("/v1/events", b"{\"events\": ["), 400, "bad_request", "malformed json");
    refused(&server.post("/v1/events", &json!({ "events": [] })), 400, "bad_request", "empty");
    refused(&server.post("/v1/events", &json!({ "events": [], "more": 1 })), 400, "bad_request", "more");
    running.check_alive();
}

#[test]
fn limits_are_said_with_their_number() {
    let running = Running::new();
    let server = &running.server;
    for path in ["/v1/events", "/v1/items", "/v1/features", "/get-online-features"] {
        let answer = server.post_bytes(path, &vec![b' '; 2 << 20]);
        refused(&answer, 413, "payload_too_large", "1048576");
    }
    let events: Vec<Value> = (0..1001).map(|n| click("many", &format!("e{n}"), now_ms())).collect();
    refused(&server.post("/v1/events", &json!({ "events": events })), 400, "bad_request", "1000");
    assert!(server.history("many").is_none(), "nothing of a refused batch is kept");
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    refused(&server.post_bytes("/v1/events", lines.join("\n").as_bytes()), 400, "bad_request", "1000");
    server.post("/v1/events", &json!({ "events": events[..1000] })).expect_status(202);

    let users: Vec<String> = (0..1001).map(|n| format!("u{n}")).collect();
    refused(&server.post("/v1/features", &json!({ "users": users })), 400, "bad_request", "1000");
    let feast = |users: &[String]| json!({"features": ["taiji_intra:sparse_ids"], "entities": {"user_id": users}});
    refused(&server.post("/get-online-features", &feast(&users)), 400, "bad_request", "1000");
    let answer = server.columns(&users[..1000]);
    assert_eq!(answer["users"].as_array().map(Vec::len), Some(1000));
    server.post("/get-online-features", &feast(&users[..1000])).expect_status(200);
    running.check_alive();
}

#[test]
fn a_read_that_asks_for_the_unknown_is_told_what_is_known() {
    let running = Running::new();
    let server = &running.server;
    let read = |body: Value| server.post("/v1/features", &body);
    refused(
        &read(json!({"users": ["u"], "groups": ["intra", "magic"]})),
        400,
        "bad_request",
        "intra, cross, scid, text",
    );
    refused(&read(json!({"users": []})), 400, "bad_request", "users");
    refused(&read(json!({"groups": ["intra"]})), 400, "bad_request", "users");
    refused(&read(json!({"users": "u"})), 400, "bad_request", "users");
    refused(&read(json!({"users": [7]})), 400, "bad_request", "users");
    refused(&read(json!({"users": ["u", ""]})), 400, "bad_request", "users[1]");
    refused(&read(json!({"users": ["x".repeat(129)]})), 400, "bad_request", "128");
    refused(&read(json!({"users": ["u"], "colour": 1})), 400, "bad_request", "colour");
    refused(&read(json!({"users": ["u"], "max_staleness_ms": "5"})), 400, "bad_request", "max_staleness_ms");
    refused(&read(json!({"users": ["u"], "spaces": ["s"]})), 400, "bad_request", "spaces");
    refused(&server.get("/v1/users//features"), 400, "bad_request", "user_id");
    refused(&server.get("/v1/users/u/features?groups=magic"), 400, "bad_request", "magic");
    refused(&server.get("/v1/users/u/features?colour=red"), 400, "bad_request", "colour");
    refused(&server.get(&format!("/v1/users/{}/features", "x".repeat(129))), 400, "bad_request", "128");

    let feast = |features: Value, entities: Value| {
        server.post("/get-online-features", &json!({ "features": features, "entities": entities }))
    };
    let users = json!({ "user_id": ["u"] });
    refused(&feast(json!(["taiji_magic:x"]), users.clone()), 400, "bad_request", "taiji_magic:x");
    refused(&feast(json!(["sparse_ids"]), users.clone()), 400, "bad_request", "sparse_ids");
    refused(&feast(json!([]), users), 400, "bad_request", "features");
    refused(&feast(json!(["taiji_intra:sparse_ids"]), json!({})), 400, "bad_request", "user_id");
    refused(&feast(json!(["taiji_intra:sparse_ids"]), json!({"item_id": ["i"]})), 400, "bad_request", "user_id");
    refused(&feast(json!(["taiji_intra:sparse_ids"]), json!({"user_id": [[1]]})), 400, "bad_request", "user_id");
    running.check_alive();
}

#[test]
fn unknown_paths_and_methods_are_json_on_both_ports() {
    let running = Running::new();
    let server = &running.server;
    let ask = |address: &str, method: &str, path: &str| call(address, method, path, &[], b"").expect("answer");
    for path in ["/", "/v1", "/v1/users", "/v2/events", "/v1/events/", "/%00", "/metrics"] {
        refused(&ask(server.public(), "GET", path), 404, "not_found", "");
    }
    for (method, path) in [
        ("GET", "/v1/events"),
        ("GET", "/v1/users/u"),
        ("DELETE", "/v1/features"),
        ("POST", "/v1/users/u/features"),
        ("PUT", "/get-online-features"),
        ("PATCH", "/v1/users/u/history"),
    ] {
        let answer = ask(server.public(), method, path);
        refused(&answer, 405, "method_not_allowed", method);
        assert!(answer.head.contains("\nallow:"), "{}", answer.head);
    }
    refused(&ask(server.public(), "GET", "/v1/users/nobody/history"), 404, "not_found", "nobody");
    refused(&ask(server.admin(), "GET", "/nowhere"), 404, "not_found", "");
    let large = call(server.public(), "POST", "/nowhere", &[], &vec![b'x'; 2 << 20]).expect("an answer, not a reset");
    refused(&large, 404, "not_found", "/nowhere");
    running.check_alive();
}

#[test]
fn a_wrong_method_on_the_operators_port_is_json() {
    let running = Running::new();
    let answer = call(running.server.admin(), "POST", "/metrics", &[], b"").expect("answer");
    refused(&answer, 405, "method_not_allowed", "POST");
}

#[test]
fn a_path_that_is_not_utf_8_is_refused_in_json() {
    let running = Running::new();
    for path in ["/v1/users/%FF/features", "/v1/users/%FF%FE/history"] {
        refused(&running.server.get(path), 400, "bad_request", "");
    }
    refused(&running.server.get("/v1/users/a%0Ab/features"), 400, "bad_request", "control");
    running.check_alive();
}

#[test]
fn what_nobody_serves_is_refused_with_what_is_served() {
    let running = Running::new();
    let accept = |kinds: &str, method: &str, path: &str, body: &str| {
        call(running.server.public(), method, path, &[("accept", kinds)], body.as_bytes()).expect("answer")
    };
    let feast = "{\"features\":[\"taiji_intra:sparse_ids\"],\"entities\":{\"user_id\":[\"u\"]}}";
    for (method, path, body, refused_kind) in [
        ("GET", "/v1/users/before/features", "", "text/html"),
        ("GET", "/v1/users/before/history", "", "application/x-protobuf"),
        ("POST", "/v1/features", "{\"users\":[\"u\"]}", "text/html"),
        ("POST", "/get-online-features", feast, "application/x-protobuf"),
    ] {
        refused(&accept(refused_kind, method, path, body), 406, "not_acceptable", "application/json");
        for kinds in ["*/*", "application/x-protobuf;q=0.4, application/json;q=0.5", "application/*"] {
            let answer = accept(kinds, method, path, body).expect_status(200);
            assert!(answer.head.contains("content-type: application/json"), "{path} {kinds}: {}", answer.head);
        }
    }
    running.check_alive();
}

#[test]
fn the_good_part_of_a_batch_is_accepted() {
    let running = Running::new();
    let server = &running.server;
    let good = |name: &str| click("partial", name, now_ms());
    let batch = json!({ "events": [good("a"), changed("action", json!("teleport")), good("b"), 7, good("a")] });
    let answer = server.post("/v1/events", &batch).expect_status(202).json();
    assert_eq!((&answer["accepted"], &answer["duplicates"]), (&json!(2), &json!(1)), "{answer}");
    let rejected = answer["rejected"].as_array().expect("rejected");
    assert_eq!(rejected.len(), 2);
    assert_eq!((&rejected[0]["index"], &rejected[0]["field"]), (&json!(1), &json!("action")));
    assert_eq!((&rejected[1]["index"], &rejected[1]["field"]), (&json!(3), &json!("event")));

    let lines = format!("{}\n{{oops\n\n{}\n", good("c"), good("d"));
    let answer = server.post_bytes("/v1/events", lines.as_bytes()).expect_status(202).json();
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["index"]), (&json!(2), &json!(1)), "{answer}");
    let reason = answer["rejected"][0]["reason"].as_str().expect("reason");
    assert!(reason.contains("malformed json"), "{reason}");

    let again = server.post("/v1/events", &json!({ "events": [good("a"), good("b")] })).expect_status(202).json();
    assert_eq!((&again["accepted"], &again["duplicates"]), (&json!(0), &json!(2)), "a batch of duplicates is fine");
    assert_eq!(server.history("partial").expect("history")["seq"], json!(4));
    running.check_alive();
}

#[test]
fn a_bad_first_line_does_not_lose_the_good_ones() {
    let running = Running::new();
    let lines = format!("{{oops\n{}\n", click("first-line", "e", now_ms()));
    let server = &running.server;
    // Without the content type it could as well be one broken object on two lines.
    refused(&server.post_bytes("/v1/events", lines.as_bytes()), 400, "bad_request", "malformed json");
    let headers = [("content-type", "application/x-ndjson")];
    let answer = call(server.public(), "POST", "/v1/events", &headers, lines.as_bytes()).expect("answer");
    let answer = answer.expect_status(202).json();
    assert_eq!((&answer["accepted"], &answer["rejected"][0]["index"]), (&json!(1), &json!(0)), "{answer}");
    running.check_alive();
}

#[test]
fn a_cloudevent_in_binary_mode_is_one_event_and_half_an_envelope_is_refused() {
    let running = Running::new();
    let server = &running.server;
    let mut whole = vec![
        ("content-type", "application/json"),
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/a%20shop"),
        ("ce-type", "click"),
        ("ce-time", "2024-11-24T10:00:00Z"),
    ];
    let data = json!({"user_id": "cloud", "item_id": "i1", "action": "click"}).to_string();
    let post = |headers: &[(&str, &str)], body: &str| {
        call(server.public(), "POST", "/v1/events", headers, body.as_bytes()).expect("answer")
    };
    let told = post(&whole, &data).expect_status(202).json();
    assert_eq!((&told["accepted"], &told["duplicates"]), (&json!(1), &json!(0)));
    let envelope = json!({"specversion": "1.0", "id": "7", "source": "/a shop", "type": "click",
        "time": "2024-11-24T10:00:00Z", "data": serde_json::from_str::<Value>(&data).expect("json")});
    let told =
        post(&[("content-type", "application/cloudevents+json")], &envelope.to_string()).expect_status(202).json();
    assert_eq!(told["duplicates"], json!(1), "the same event in structured mode");
    for (body, field) in [("{oops", "event"), ("[1]", "event"), ("{\"events\":[]}", "events"), ("{}", "user_id")] {
        let told = post(&whole, body).expect_status(400).json();
        assert_eq!(told["rejected"][0]["field"], json!(field), "{told}");
    }
    whole.remove(3);
    refused(&post(&whole, &data), 400, "bad_request", "ce-source: is missing");
    assert_eq!(server.history("cloud").expect("history")["seq"], json!(1));
    running.check_alive();
}

#[test]
fn any_id_of_1_to_128_bytes_works_everywhere() {
    let running = Running::new();
    let server = &running.server;
    let users: Vec<String> = [
        "with space",
        "🦀 crab",
        "a/b",
        "100%",
        "{braces}",
        "{}",
        "%7Bescaped%7D",
        "dots..",
        "..",
        "q?x=1&y#z",
        "ns:{u}:st",
        "Ünïcödé",
        "\"quoted\"",
        "back\\slash",
        "+",
        "plus+and space",
    ]
    .into_iter()
    .map(str::to_string)
    .chain(["x".repeat(128), "é".repeat(64), "1".into()])
    .collect();
    let events: Vec<Value> = users.iter().map(|user| click(user, "same-name", now_ms())).collect();
    let answer = server.post("/v1/events", &json!({ "events": events })).expect_status(202).json();
    assert_eq!(answer["accepted"], json!(users.len()), "{answer}");
    let columns = server.wait_for_features(&users, Duration::from_secs(30));
    assert_eq!(columns["users"], json!(users));
    for user in &users {
        let history = server.history(user).expect("history");
        assert_eq!((&history["user_id"], &history["seq"]), (&json!(user), &json!(1)));
        let row = server.row(user, "intra");
        assert_eq!((&row["user_id"], &row["status"]), (&json!(user), &json!("PRESENT")));
    }
    // A numeric id is its decimal text.
    let mut numeric = click("n", "numeric", now_ms());
    numeric["user_id"] = json!(1);
    server.post("/v1/events", &numeric).expect_status(202);
    assert_eq!(server.history("1").expect("history")["seq"], json!(2));
    assert_eq!(percent("a/b %"), "a%2Fb%20%25");
    running.check_alive();
}
