//! The smallest handler, as a process, over a real Redis that stands still for a second.

use loadtest::arrivals::Law;
use loadtest::load::calls::{Peer, Prepared};
use loadtest::load::http;
use loadtest::load::open::{self, OpenLoad};
use loadtest::load::tally::quantile_ms;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use testkit::redis::RedisServer;

const PROGRAM: &str = env!("CARGO_BIN_EXE_taiji-loadtest");

/// Killed when dropped.
struct Handler {
    child: Child,
    address: String,
}

impl Handler {
    fn start(server: &RedisServer) -> Handler {
        let arguments = ["smallest", "--redis", &server.url()];
        let mut child = Command::new(PROGRAM).args(arguments).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on ").expect("its address").to_string();
        Handler { child, address }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_answers_the_bytes_that_redis_holds_and_shows_its_stall() {
    let server = RedisServer::with(&["--appendonly", "no", "--enable-debug-command", "yes"]);
    let answer = r#"{"users":["u"],"status":["PRESENT"]}"#;
    server.command(&["SET", "one:u", answer]);
    let handler = Handler::start(&server);
    let peer = Peer { address: handler.address.clone(), key: None };
    let soon = Duration::from_secs(10);
    let asked =
        |path: &str, body: &str| http::ask(&peer.address, &peer.request("POST", path, body), soon).expect("answer");
    assert_eq!(asked("/smallest/one:u", r#"{"users":["u"]}"#), (200, answer.as_bytes().to_vec()));
    assert_eq!(asked("/smallest/one:v", "{}").0, 404);

    let load = OpenLoad {
        address: handler.address.clone(),
        law: Law::Poisson,
        rate: 200.0,
        time: Duration::from_secs(2),
        bound: 1000,
        warm: 4,
        timeout: soon,
        threads: 1,
        seed: 5,
        phases: Vec::new(),
    };
    let requests = Arc::new(vec![peer.request("POST", "/smallest/one:u", r#"{"users":["u"]}"#)]);
    let found = std::thread::scope(|scope| {
        // Redis itself stands still, some time within the two seconds or at their end.
        scope.spawn(|| server.command(&["DEBUG", "SLEEP", "1"]));
        open::run(&load, 1, |thread| Ok(Box::new(Prepared::new(0, requests.clone(), 0.0, (1, thread))?)))
    });
    let found = found.expect("load").remove(0);
    assert_eq!(found.good(), found.meant());
    assert!(quantile_ms(&found.accepted, 0.99) > 700.0, "{}", quantile_ms(&found.accepted, 0.99));
}

#[test]
fn it_says_what_is_not_there() {
    let nowhere = format!("redis://{}", testkit::process::free_address());
    let ended = testkit::process::run_with(PROGRAM, &["smallest", "--redis", &nowhere], &[]).expect_code(69);
    assert!(ended.stderr.contains("is a server there?"), "{}", ended.stderr);
}
