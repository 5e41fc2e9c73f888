//! Reads over the wire: every encoding says the same, bodies that are none are refused, time that is over is told.

use crate::worlds::{click, data_plane_bundle, now_ms};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_ipc::reader::StreamReader;
use prost::Message;
use serde_json::{Value, json};
use std::time::Duration;
use taiji::proto::{FeaturesRequest, FeaturesResponse};
use tempfile::TempDir;
use testkit::in_repository;
use testkit::process::{Answer, Server, Setup, call, command, run, wait_until};

const JSON: &str = "application/json";
const MSGPACK: &str = "application/msgpack";
const PROTOBUF: &str = "application/x-protobuf";
const ARROW: &str = "application/vnd.apache.arrow.stream";
const SOON: Duration = Duration::from_secs(30);

struct Running {
    server: Server,
    // Removed after the server has ended.
    _folder: TempDir,
}

impl Running {
    /// With features of the user `u`.
    fn new(change: impl FnOnce(Setup) -> Setup) -> Running {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        let server = change(Setup::canned(&bundle, &folder.path().join("store"))).start();
        server.post("/v1/events", &click("u", "e", now_ms())).expect_status(202);
        server.wait_for_features(&["u".into()], SOON);
        Running { server, _folder: folder }
    }

    fn read(&self, sent: &str, accept: &str, body: &[u8]) -> Answer {
        let headers = [("content-type", sent), ("accept", accept)];
        call(self.server.public(), "POST", "/v1/features", &headers, body).expect("answer")
    }

    fn stop(mut self) {
        assert_eq!(self.server.stop(), Some(0));
        assert!(!self.server.stderr().contains("panicked"), "{}", self.server.stderr());
    }
}

fn asked() -> Value {
    json!({ "users": ["u", "nobody"], "groups": ["intra"] })
}

fn sparse_ids(answer: &Answer) -> Vec<Vec<u32>> {
    let of_value = |value: &Value| serde_json::from_value(value["features"]["intra.sparse_ids"].clone()).expect("ids");
    let kind = answer.head.lines().find_map(|line| line.strip_prefix("content-type: ")).expect("a content type");
    match kind {
        JSON => of_value(&answer.json()),
        MSGPACK => of_value(&rmp_serde::from_slice(&answer.body).expect("msgpack")),
        PROTOBUF => {
            let answer = FeaturesResponse::decode(answer.body.as_slice()).expect("protobuf");
            answer.users.into_iter().map(|user| user.intra.expect("intra").sparse_ids).collect()
        }
        ARROW => {
            let mut reader = StreamReader::try_new(answer.body.as_slice(), None).expect("arrow");
            let batch = reader.next().expect("a batch").expect("arrow");
            let column = batch.column_by_name("intra.sparse_ids").expect("column").as_list::<i32>();
            (0..2).map(|user| column.value(user).as_primitive::<UInt32Type>().values().to_vec()).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_read_says_the_same_in_every_encoding() {
    let running = Running::new(|setup| setup);
    let json = asked().to_string().into_bytes();
    let message = FeaturesRequest {
        users: vec!["u".into(), "nobody".into()],
        groups: vec!["intra".into()],
        ..Default::default()
    };
    let bodies = [
        (JSON, json.clone()),
        (MSGPACK, rmp_serde::to_vec_named(&asked()).expect("msgpack")),
        (PROTOBUF, message.encode_to_vec()),
    ];
    let expected = sparse_ids(&running.read(JSON, JSON, &json).expect_status(200));
    assert!(expected[0].iter().all(|id| *id > 0) && expected[1].iter().all(|id| *id == 0), "{expected:?}");
    for (sent, body) in &bodies {
        for accept in [JSON, MSGPACK, PROTOBUF, ARROW] {
            let answer = running.read(sent, accept, body).expect_status(200);
            assert_eq!(sparse_ids(&answer), expected, "{sent} → {accept}");
            assert!(answer.head.contains(&format!("content-type: {accept}")), "{}", answer.head);
        }
    }
    for accept in [JSON, MSGPACK, PROTOBUF, ARROW] {
        let headers = [("accept", accept)];
        let row =
            call(running.server.public(), "GET", "/v1/users/u/features?groups=intra", &headers, b"").expect("answer");
        assert!(row.expect_status(200).head.contains(&format!("content-type: {accept}")), "{accept}");
    }
    running.stop();
}

#[test]
fn bodies_that_are_none_are_refused_with_what_is_taken() {
    let running = Running::new(|setup| setup);
    let refused = |sent: &str, body: &[u8], status: u16, code: &str, part: &str| {
        let (found, found_code, message) = running.read(sent, JSON, body).error();
        assert_eq!((found, found_code.as_str()), (status, code), "{sent}: {message}");
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    };
    let pack = rmp_serde::to_vec_named(&asked()).expect("msgpack");
    refused("text/xml", b"<users/>", 415, "unsupported_media_type", MSGPACK);
    refused(MSGPACK, &pack[..pack.len() - 3], 400, "bad_request", "malformed msgpack");
    refused(MSGPACK, b"{\"users\":[\"u\"]}", 400, "bad_request", "must be a msgpack map");
    refused(PROTOBUF, &[0x0a, 0x7f, b'u'], 400, "bad_request", "malformed protobuf");
    refused(PROTOBUF, b"", 400, "bad_request", "users: is empty");
    refused(ARROW, b"ARROW1\0\0", 400, "bad_request", "malformed arrow stream");
    // A length of 2 GB announced, and a header that came.
    refused(ARROW, &[255, 255, 255, 255, 255, 255, 255, 127, 0, 0], 400, "bad_request", "announced");
    let none =
        call(running.server.public(), "POST", "/v1/features", &[("accept", "text/html")], b"{}").expect("answer");
    assert_eq!((none.error().0, none.error().1.as_str()), (406, "not_acceptable"));
    let twice = json!({ "users": ["u", "u"], "groups": ["intra"] }).to_string();
    let answer = running.read(JSON, JSON, twice.as_bytes()).expect_status(200).json();
    assert_eq!(
        answer["features"]["intra.sparse_ids"][0], answer["features"]["intra.sparse_ids"][1],
        "a user asked twice"
    );
    running.stop();
}

#[test]
fn features_whose_time_is_over_are_absent_in_every_form() {
    let running = Running::new(|setup| setup.env("TAIJI__REFRESH__TTL_MS", "1500"));
    let server = &running.server;
    let reason = || server.row("u", "intra")["groups"]["intra"]["reason"].clone();
    assert_eq!(
        wait_until("the end of the time", SOON, || Some(reason()).filter(|found| !found.is_null())),
        json!("expired")
    );
    let feast = json!({ "features": ["taiji_intra:sparse_ids", "taiji_intra:has_llm_feature"], "entities": { "user_id": ["u"] } });
    let answer = server.post("/get-online-features", &feast).expect_status(200).json();
    assert_eq!(
        answer["results"][1],
        json!({ "values": [null], "statuses": ["OUTSIDE_MAX_AGE"], "event_timestamps": ["1970-01-01T00:00:00.000Z"] })
    );
    assert_eq!(
        (&answer["results"][2]["values"], &answer["results"][2]["statuses"]),
        (&json!([0]), &json!(["PRESENT"]))
    );
    let bytes = running.read(JSON, PROTOBUF, asked().to_string().as_bytes()).expect_status(200).body;
    let user = FeaturesResponse::decode(bytes.as_slice()).expect("protobuf").users.swap_remove(0);
    assert_eq!((user.status.as_str(), user.missing["intra"].as_str()), ("MISSING", "expired"));
    running.stop();
}

/// `clients/feast` in the hands of Feast's client, and the same requests to Feast's own server.
#[test]
fn peers_feasts_own_client_and_server_agree_with_us() {
    let library = std::env::var("TAIJI_FEAST").expect("the folder of Feast: run `make peers`");
    let running = Running::new(|setup| setup);
    let work = tempfile::tempdir().expect("tempdir");
    let (url, feast) = (format!("http://{}", running.server.public()), work.path().join("feast").display().to_string());
    let (script, shipped) = (in_repository("tests/e2e/feast_client.py"), in_repository("clients/feast"));
    let (script, shipped) = (script.display().to_string(), shipped.display().to_string());
    let mut client = command("python3", &["-s", &script, &url, "u", &shipped, &feast]);
    client.env("PYTHONPATH", library).env("NO_PROXY", "127.0.0.1").env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = run(client).expect_code(0);
    assert_eq!(ended.stdout.lines().filter(|line| line.ends_with(": ok")).count(), 2, "{}", ended.stdout);
    print!("{}", ended.stdout);
    running.stop();
}
