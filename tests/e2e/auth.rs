//! Keys and scopes over HTTP.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::{Value, json};
use testkit::process::{Server, Setup, call};

const READ: &str = "read-key-0123456789";
const READ_NEXT: &str = "read-key-9876543210";
const WRITE: &str = "write-key-0123456789";
const ADMIN: &str = "admin-key-0123456789";

/// (method, path, body, keys that open it).
fn doors() -> Vec<(&'static str, &'static str, Value, Vec<&'static str>)> {
    let features = json!({"features": ["taiji_intra:sparse_ids"], "entities": {"user_id": ["u"]}});
    let readers = vec![READ, READ_NEXT, ADMIN];
    vec![
        ("POST", "/v1/events", click("u", "e1", now_ms()), vec![WRITE, ADMIN]),
        ("POST", "/v1/items", json!({"id": "i1", "title": "One"}), vec![WRITE, ADMIN]),
        ("POST", "/v1/features", json!({"users": ["u"]}), readers.clone()),
        ("POST", "/v1/features", json!({"users": ["u"], "groups": ["intra", "text"]}), vec![ADMIN]),
        ("POST", "/get-online-features", features, readers.clone()),
        ("GET", "/v1/users/u/features", Value::Null, readers),
        ("GET", "/v1/users/u/features?groups=text", Value::Null, vec![ADMIN]),
        ("GET", "/v1/users/u/history", Value::Null, vec![ADMIN]),
        ("POST", "/v1/users/u/refresh", json!({}), vec![WRITE, ADMIN]),
        ("DELETE", "/v1/users/someone%20else", Value::Null, vec![ADMIN]),
    ]
}

fn knock(server: &Server, method: &str, path: &str, body: &Value, authorization: Option<&str>) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let headers: Vec<(&str, &str)> = authorization.map(|value| ("authorization", value)).into_iter().collect();
    let answer = call(server.public(), method, path, &headers, body.as_bytes()).expect("answer");
    if answer.status == 401 {
        let (_, code, message) = answer.error();
        assert!(code == "unauthorized" && message.contains("scope"), "{message}");
    }
    (answer.status, answer.text())
}

#[test]
fn each_door_opens_with_the_keys_of_its_scope_only() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let server = Setup::canned(&bundle, &folder.path().join("store"))
        .env("TAIJI__AUTH__READ_KEYS", &format!("{READ},{READ_NEXT}"))
        .env("TAIJI__AUTH__WRITE_KEYS", WRITE)
        .env("TAIJI__AUTH__ADMIN_KEYS", ADMIN)
        .start();
    for (method, path, body, opens) in doors() {
        for key in [READ, READ_NEXT, WRITE, ADMIN] {
            let (status, text) = knock(&server, method, path, &body, Some(&format!("Bearer {key}")));
            let wanted = opens.contains(&key);
            assert_eq!(status != 401, wanted, "{method} {path} with {key}: {status} {text}");
            assert!(!wanted || status < 300, "{method} {path} with {key}: {status} {text}");
        }
        for wrong in [None, Some("Bearer "), Some("Bearer read-key"), Some(ADMIN), Some("Basic YTpi")] {
            assert_eq!(knock(&server, method, path, &body, wrong).0, 401, "{method} {path} with {wrong:?}");
        }
    }
    // The operators' port has no keys: probes and scrapers must reach it.
    assert!(server.metrics().contains("taiji_http_requests_total"));
    for key in [READ, READ_NEXT, WRITE, ADMIN] {
        assert!(!server.stderr().contains(key), "a key is in the log");
    }
}

#[test]
fn a_large_body_without_a_key_gets_its_401_and_not_a_reset() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let server = Setup::canned(&bundle, &folder.path().join("store")).env("TAIJI__AUTH__ADMIN_KEYS", ADMIN).start();
    for size in [100_000, 2 << 20] {
        let answer = call(server.public(), "POST", "/v1/events", &[], &vec![b'x'; size]);
        assert_eq!(answer.expect("an answer").error().0, 401, "{size} bytes");
    }
}

#[test]
fn an_open_port_is_said_in_the_log_and_short_keys_are_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bundle = data_plane_bundle(folder.path());
    let setup = Setup::canned(&bundle, &folder.path().join("store"));
    let server = setup.start();
    assert!(server.stderr().contains("no key is configured"), "{}", server.stderr());
    let told = setup.env("TAIJI__AUTH__READ_KEYS", "short").run().expect_code(64).stderr;
    assert!(told.contains("auth.read_keys"), "{told}");
}
