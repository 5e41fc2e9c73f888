//! The OpenAI-compatible port: OpenAI's own client library against the demo's models, and the wire itself.

use crate::worlds::data_plane_bundle;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;
use testkit::demo_bundle;
use testkit::in_repository;
use testkit::process::{Answer, Server, Setup, call, command, connect, free_address, head, run, wait_until};

const ADMIN: &str = "admin-key-0123456789";
const READ: &str = "read-key-0123456789";

/// A server with the port on.
struct Running {
    server: Server,
    openai: String,
    // Removed after the server has ended.
    _folder: TempDir,
}

impl Running {
    /// `setup` of a bundle and a store.
    fn start(setup: impl Fn(&Path, &Path) -> Setup) -> Running {
        let folder = tempfile::tempdir().expect("tempdir");
        let openai = free_address();
        let server = setup(folder.path(), &folder.path().join("store"))
            .env("TAIJI__OPENAI__LISTEN", &openai)
            .env("TAIJI__AUTH__ADMIN_KEYS", ADMIN)
            .env("TAIJI__AUTH__READ_KEYS", READ)
            .env("TAIJI__ENGINE__QUEUE_LIMIT", "1000")
            .start();
        Running { server, openai, _folder: folder }
    }

    /// The demo's models.
    fn demo() -> Running {
        Running::start(|_, store| Setup::onnx(&demo_bundle(), store).env("TAIJI__OPENAI__TEMPLATE", "plain"))
    }

    /// Canned answers; no chat template.
    fn canned() -> Running {
        Running::start(|folder, store| Setup::canned(&data_plane_bundle(folder), store))
    }

    fn call(&self, method: &str, path: &str, key: &str, body: &str) -> Answer {
        let headers = [("authorization", key)];
        call(&self.openai, method, path, &headers, body.as_bytes()).expect("answer")
    }

    /// Posts and reads the first event of the stream that comes back; the rest is left on the socket.
    fn open_stream(&self, path: &str, body: &Value) -> (BufReader<TcpStream>, String) {
        let body = body.to_string();
        let mut stream = connect(&self.openai).expect("connect");
        let key = format!("Bearer {ADMIN}");
        let head = head(&self.openai, "POST", path, &[("authorization", &key)], body.len());
        stream.write_all(&head).and_then(|()| stream.write_all(body.as_bytes())).expect("request");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).expect("a line") > 0, "the answer ended before its first event");
        }
        (reader, line)
    }
}

/// A long answer of the demo's model to the head of a prompt, so that both together are within its limit.
fn long_request(n: usize) -> Value {
    let probe = probe_prompt();
    let prompt = &probe.as_array().expect("tokens")[..100];
    json!({"prompt": prompt, "max_tokens": 300, "ignore_eos": true, "stream": true, "n": n})
}

/// Token ids of a prompt the demo's model was made for.
fn probe_prompt() -> Value {
    let text = std::fs::read_to_string(demo_bundle().join("probe.json")).expect("probe");
    serde_json::from_str::<Value>(&text).expect("json")["llm"][0]["prompt"].clone()
}

#[test]
fn peers_openais_own_client_library_finds_everything_as_it_expects() {
    let library =
        std::env::var("TAIJI_OPENAI_CLIENT").expect("the folder of OpenAI's client library: run `make peers`");
    let running = Running::demo();
    let script = in_repository("tests/e2e/openai_client.py").display().to_string();
    let (url, probe) = (format!("http://{}/v1", running.openai), probe_prompt().to_string());
    let mut client = command("python3", &["-s", &script, &url, ADMIN, &probe]);
    client.env("PYTHONPATH", library).env("NO_PROXY", "127.0.0.1").env("PYTHONDONTWRITEBYTECODE", "1");
    let ended = run(client).expect_code(0);
    assert_eq!(ended.stdout.lines().filter(|line| line.ends_with(": ok")).count(), 10, "{}", ended.stdout);
    assert!(running.server.metric("taiji_llm_tokens_total") > 0.0);
}

#[test]
fn a_stream_is_one_line_of_data_an_event_and_ends_with_done() {
    let running = Running::demo();
    let body = json!({"prompt": probe_prompt(), "max_tokens": 8, "temperature": 0, "stream": true});
    let answer = running.call("POST", "/v1/completions", &format!("Bearer {ADMIN}"), &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.head.contains("content-type: text/event-stream") && answer.head.contains("cache-control: no-cache"));
    let events = unchunk(&answer.body);
    let events: Vec<&str> = events.strip_suffix("\n\n").expect("ends whole").split("\n\n").collect();
    let (done, chunks) = events.split_last().expect("events");
    assert_eq!(*done, "data: [DONE]");
    for chunk in chunks {
        let data: Value = serde_json::from_str(chunk.strip_prefix("data: ").expect("data")).expect("json");
        assert_eq!(data["object"], json!("text_completion"));
    }
}

/// The body of a chunked answer.
fn unchunk(mut body: &[u8]) -> String {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").expect("chunk head");
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).expect("hex"), 16).expect("hex");
        if length == 0 {
            return String::from_utf8(whole).expect("utf-8");
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + length]);
        body = &body[end + 2 + length + 2..];
    }
}

#[test]
fn a_client_that_hangs_up_frees_its_place_and_the_engine() {
    let running = Running::demo();
    let streams = [long_request(100), long_request(100)].map(|body| running.open_stream("/v1/completions", &body));
    drop(streams);
    wait_until("nothing under way", Duration::from_secs(20), || {
        let under_way = ["taiji_http_requests_in_flight", "taiji_llm_queue_requests", "taiji_llm_rows"];
        under_way.iter().all(|name| running.server.metric(name) == 0.0).then_some(())
    });
    let metrics = running.server.metrics();
    let cancelled =
        metrics.lines().find_map(|line| line.strip_prefix("taiji_llm_requests_total{result=\"cancelled\"} "));
    // Of 200 answers a few may have been whole before their client was gone.
    assert!(cancelled.expect("a counter").parse::<usize>().expect("a number") > 100, "{cancelled:?}");
    let body = json!({"prompt": probe_prompt(), "max_tokens": 2}).to_string();
    let answer = running.call("POST", "/v1/completions", &format!("Bearer {ADMIN}"), &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn open_streams_finish_while_the_process_drains() {
    let mut running = Running::demo();
    let (mut rest, first) = running.open_stream("/v1/completions", &long_request(4));
    assert!(first.contains("text_completion"));
    running.server.signal("TERM");
    let mut events = String::new();
    rest.read_to_string(&mut events).expect("the rest of the stream");
    assert!(events.contains("data: [DONE]"), "{events}");
    assert_eq!(running.server.wait(Duration::from_secs(20)), Some(0), "{}", running.server.stderr());
    assert!(connect(&running.openai).is_err());
}

#[test]
fn wrong_requests_are_answered_in_openais_shape() {
    let running = Running::canned();
    let admin = format!("Bearer {ADMIN}");
    let (read, none) = (format!("Bearer {READ}"), String::new());
    let large = json!({ "prompt": "x".repeat(2 << 20) }).to_string();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]}).to_string();
    for (method, path, key, body, status, code) in [
        ("POST", "/v1/completions", &none, "{}", 401, "invalid_api_key"),
        ("POST", "/v1/completions", &read, "{}", 401, "invalid_api_key"),
        ("GET", "/v1/models", &read, "", 401, "invalid_api_key"),
        ("POST", "/v1/completions", &admin, "{\"prompt\":", 400, ""),
        ("POST", "/v1/completions", &admin, "[]", 400, ""),
        ("POST", "/v1/completions", &admin, &large, 413, "payload_too_large"),
        ("POST", "/v1/chat/completions", &admin, &chat, 400, "chat_template"),
        ("DELETE", "/v1/models", &admin, "", 405, "method_not_allowed"),
        ("GET", "/v1/features", &admin, "", 404, "not_found"),
    ] {
        let answer = running.call(method, path, key, body);
        let error = &answer.json()["error"];
        let found = (answer.status, error["code"].as_str().unwrap_or(""));
        assert_eq!(found, (status, code), "{method} {path}: {error}");
        assert!(error["message"].is_string() && error["type"].is_string() && error.get("param").is_some());
    }
    let answer = running.call("POST", "/v1/completions", &admin, &json!({"prompt": "tea"}).to_string());
    assert_eq!(answer.json()["object"], json!("text_completion"), "canned answers work, too");
    assert_eq!(running.call("GET", "/health", "", "").status, 200);
}

#[test]
fn the_port_is_off_by_default_and_its_errors_end_the_start() {
    let folder = tempfile::tempdir().expect("tempdir");
    let setup = Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"));
    let server = setup.start();
    assert!(!server.stderr().contains("OpenAI"), "{}", server.stderr());
    assert_eq!(server.get("/v1/models").status, 404);

    let other = Setup::canned(&folder.path().join("bundle"), &folder.path().join("other"));
    let taken = other.clone().env("TAIJI__OPENAI__LISTEN", server.public()).run().expect_code(69);
    assert!(taken.stderr.contains("openai.listen") && taken.stderr.contains("choose another"), "{}", taken.stderr);
    let on = other.env("TAIJI__OPENAI__LISTEN", &free_address());
    let ended = on.env("TAIJI__OPENAI__TEMPLATE", "/nowhere/chat.jinja").run().expect_code(69);
    assert!(ended.stderr.contains("/nowhere/chat.jinja"), "{}", ended.stderr);
}

/// A stream that nobody reads must not hold the drain beyond its limit.
#[test]
fn a_reader_that_stands_still_does_not_hold_the_drain_beyond_its_limit() {
    let mut running =
        Running::start(|_, store| Setup::onnx(&demo_bundle(), store).env("TAIJI__SERVER__DRAIN_TIMEOUT_MS", "1000"));
    // More than the sockets take: an answer of some 10 MB.
    let stuck = running.open_stream("/v1/completions", &long_request(128));
    assert_eq!(running.server.stop(), Some(0), "{}", running.server.stderr());
    drop(stuck);
}
