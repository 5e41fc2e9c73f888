//! Against a small HTTP server of our own that misbehaves as told.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::super::{Refusal, Refusals, sift};
use super::*;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// What the server does with one request.
#[derive(Clone)]
enum Does {
    /// Answers with a text.
    Says(&'static str),
    /// Status, headers, body.
    Sends(u16, &'static str, &'static str),
    /// Says nothing until the client hangs up.
    Hangs,
}

/// One request at a time, in the order of `script`; its last entry for all that follow. Remembers what it was asked.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    fn start(script: &[Does]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut script) = (asked.clone(), VecDeque::from(script.to_vec()));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let does = if script.len() > 1 { script.pop_front() } else { script.front().cloned() };
                serve(stream.unwrap(), does.unwrap(), &seen);
            }
        });
        Server { url, asked }
    }

    fn endpoint(&self) -> Endpoint {
        let more = "concurrency = 1\nattempts = 3\ntimeout_s = 0.5\nlongest_pause_s = 2.0\nprice = [1.0, 2.0]";
        toml::from_str(&format!("url = {:?}\nmodel = \"m\"\n{more}", self.url)).unwrap()
    }

    fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, does: Does, seen: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    seen.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
    let (status, headers, body) = match does {
        Does::Says(text) => {
            let usage = json!({ "prompt_tokens": 100, "completion_tokens": 10 });
            let message = json!({ "role": "assistant", "content": text });
            let body = json!({ "choices": [{ "index": 0, "message": message }], "usage": usage }).to_string();
            (200, "content-type: application/json\r\n", body)
        }
        Does::Sends(status, headers, body) => (status, headers, body.to_string()),
        Does::Hangs => {
            // Ends when the client closes its side.
            stream.read_to_end(&mut Vec::new()).ok();
            return;
        }
    };
    let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).ok();
}

fn origins(count: usize) -> Vec<Origin> {
    let origin = |number: usize| Origin {
        user_id: format!("u{number}"),
        prompt: format!("user: number {number}\nhistory:\nclick A > B: x\n<think>"),
        categories: vec!["Outdoor".into(), "Tents".into()],
        title: "red Veldt tent".into(),
        reasons: vec![],
    };
    (0..count).map(origin).collect()
}

const GOOD: Does = Does::Says("<think>They hike. So next comes Outdoor > Tents.</think>");

#[test]
fn each_prompt_is_asked_k_times_and_never_again() {
    let server = Server::start(&[GOOD]);
    let folder = tempfile::tempdir().unwrap();
    let (texts, spent) = server.endpoint().ask(&origins(2), 3, 40, folder.path(), &Progress::default()).unwrap();
    assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    let expected = Spent { replies: 6, asked_now: 6, prompt_tokens: 600, completion_tokens: 60, cost: 720.0 / 1e6 };
    assert_eq!(spent, expected);
    let asked = server.asked();
    let user = asked[0]["messages"][1]["content"].as_str().unwrap();
    assert_eq!(user, "user: number 0\nhistory:\nclick A > B: x\nbought next: Outdoor > Tents: red Veldt tent");
    assert_eq!(asked.iter().map(|one| one["seed"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    // The same again, with one prompt more: three new questions.
    let (again, spent) = server.endpoint().ask(&origins(3), 3, 40, folder.path(), &Progress::default()).unwrap();
    assert_eq!((again.len(), spent.asked_now, server.asked().len()), (3, 3, 9));
}

#[test]
fn a_busy_endpoint_is_asked_again_when_it_says() {
    let busy = Does::Sends(429, "retry-after: 1\r\n", "slow down");
    let server = Server::start(&[busy, Does::Sends(503, "", "not yet"), GOOD]);
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let (texts, _) = server.endpoint().ask(&origins(1), 1, 40, folder.path(), &Progress::default()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After was passed over");
    assert_eq!((texts.len(), server.asked().len()), (1, 3));
}

#[test]
fn one_that_times_out_is_given_up_and_the_next_run_goes_on() {
    let server = Server::start(&[GOOD, Does::Hangs, Does::Hangs, Does::Hangs, GOOD]);
    let folder = tempfile::tempdir().unwrap();
    let told = server.endpoint().ask(&origins(2), 1, 40, folder.path(), &Progress::default()).unwrap_err().to_string();
    assert!(told.contains(&server.url) && told.contains("3 attempts") && told.contains("Run again"), "{told}");
    // What a kill would leave: half a line.
    let path = folder.path().join(cache::ASKED_FILE);
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{whole}{{\"key\":\"ab")).unwrap();
    let (texts, spent) = server.endpoint().ask(&origins(2), 1, 40, folder.path(), &Progress::default()).unwrap();
    assert_eq!((texts.len(), spent.asked_now, server.asked().len()), (2, 1, 5));
}

#[test]
fn what_is_no_answer_is_an_error_that_names_the_endpoint() {
    let html = Does::Sends(200, "content-type: text/html\r\n", "<html><h1>Welcome</h1></html>");
    for (does, parts) in [
        (html, ["text/html", "<h1>Welcome", "/v1"]),
        (Does::Sends(200, "", "{\"choices\": []}"), ["choices[0].message.content", "{\"choices\"", "/v1"]),
        (Does::Sends(401, "", "{\"error\": \"no key\"}"), ["status 401", "no key", "/v1"]),
    ] {
        let server = Server::start(&[does]);
        let folder = tempfile::tempdir().unwrap();
        let told =
            server.endpoint().ask(&origins(1), 1, 40, folder.path(), &Progress::default()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        assert_eq!(server.asked().len(), 1, "such an answer is not asked for again");
    }
    let keyed = Endpoint { key_env: Some("TAIJI_NO_SUCH_KEY".into()), ..Server::start(&[GOOD]).endpoint() };
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(keyed.ask(&origins(1), 1, 40, folder.path(), &Progress::default()), Err(EndpointError::NoKey(_))));
}

#[test]
fn a_teacher_that_leaks_the_answer_is_refused_and_counted() {
    let server = Server::start(&[
        Does::Says("<think>They need the red Veldt tent.</think>"),
        Does::Says("<think>Since the true next item is a tent, they hike.</think>"),
        Does::Says("<think>They hike, and the reply was cut"),
        GOOD,
    ]);
    let folder = tempfile::tempdir().unwrap();
    let (texts, _) = server.endpoint().ask(&origins(1), 4, 40, folder.path(), &Progress::default()).unwrap();
    let mut refusals = Refusals::default();
    let kept = sift(&texts[0], "red Veldt tent", 0.9, &mut refusals);
    assert_eq!(kept, [(3, "They hike. So next comes Outdoor > Tents.".to_string())]);
    let expected = [Refusal::Title, Refusal::Told, Refusal::Tags].map(|refusal| (refusal, 1));
    assert_eq!(refusals.counts, expected.into_iter().collect());
}

#[test]
fn no_more_requests_go_out_than_a_minute_allows() {
    let server = Server::start(&[GOOD]);
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let limited = Endpoint { requests_per_minute: 300.0, concurrency: 4, ..server.endpoint() };
    limited.ask(&origins(6), 1, 40, folder.path(), &Progress::default()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?} for six at five a second", started.elapsed());
}
