//! A Redis that refuses us while Kafka's stream runs: it is held up, says why, and goes on when the cause is gone.

use crate::kafka::{Topics, records};
use crate::worlds::{click, write_lines};
use serde_json::{Value, json};
use std::path::Path;
use testkit::process::{SOON, Server, call, wait_until};
use testkit::redis::{RIGHTS, RedisServer};

const USERS: usize = 20;
/// Events of one turn, of all users.
const EVENTS: usize = 100;

/// Parts of a Redis command.
type Command = &'static [&'static str];

struct Stream<'t> {
    topics: &'t Topics,
    folder: &'t Path,
    sent: usize,
}

impl Stream<'_> {
    fn send(&mut self) {
        let file = self.folder.join("events.jsonl");
        let event = |n: usize| click(&format!("u{}", n % USERS), &format!("e{n:04}"), 1_700_000_000_000 + n as i64);
        write_lines(&file, (self.sent..self.sent + EVENTS).map(event));
        self.topics.feed(&file);
        self.sent += EVENTS;
    }

    /// Everything sent is stored, each once.
    fn wait_until_stored(&self, server: &Server) {
        wait_until("every event", SOON, || {
            let seq =
                |user: usize| server.history(&format!("u{user}")).map_or(json!(0), |history| history["seq"].clone());
            (0..USERS).all(|user| seq(user) == json!(self.sent / USERS)).then_some(())
        });
    }
}

fn kafka_latch(server: &Server) -> Option<String> {
    let answer = call(server.admin(), "GET", "/readyz", &[], b"").ok()?.json();
    let latch = answer["latches"].as_array()?.iter().find(|latch| latch["latch"] == "kafka")?.clone();
    (latch["ready"] == Value::Bool(false)).then(|| latch["reason"].to_string())
}

#[test]
fn a_redis_that_refuses_us_holds_the_stream_up_and_nothing_is_lost() {
    let redis = RedisServer::start();
    let rights: Vec<&str> = RIGHTS.split(' ').collect();
    redis.command(&[&["ACL", "SETUSER", "taiji", "on", ">hunter-22", "~taiji:*"], &rights[..]].concat());
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "refusals");
    let url = format!("redis://taiji:hunter-22@127.0.0.1:{}", redis.port);
    let mut server = topics.serve(folder.path()).on(&url).start();
    let mut stream = Stream { topics: &topics, folder: folder.path(), sent: 0 };
    stream.send();
    stream.wait_until_stored(&server);

    // Another program's key stands where a user's state should be: that user's events are set aside, the others' are not.
    redis.command(&["SET", "taiji:{foreign}:st", "theirs"]);
    let file = folder.path().join("foreign.jsonl");
    write_lines(&file, [click("foreign", "e", 1_700_000_000_000)]);
    topics.feed(&file);
    stream.send();
    stream.wait_until_stored(&server);
    wait_until("the dead letter", SOON, || (records(&server, &topics, "dead_letter") == 1.0).then_some(()));

    let troubles: [(&str, &[Command], Command); 4] = [
        ("read-only replica", &[&["REPLICAOF", "127.0.0.1", "1"]], &["REPLICAOF", "NO", "ONE"]),
        ("maxmemory", &[&["CONFIG", "SET", "maxmemory", "1"]], &["CONFIG", "SET", "maxmemory", "0"]),
        ("permission", &[&["ACL", "SETUSER", "taiji", "-fcall"]], &["ACL", "SETUSER", "taiji", "+fcall"]),
        (
            "password",
            &[&["ACL", "SETUSER", "taiji", "resetpass", ">other"], &["CLIENT", "KILL", "USER", "taiji"]],
            &["ACL", "SETUSER", "taiji", ">hunter-22"],
        ),
    ];
    for (reason, begin, end) in troubles {
        for command in begin {
            let answer = redis.command(command);
            assert!(!answer.starts_with('-'), "{command:?}: {answer}");
        }
        stream.send();
        let told = wait_until(reason, SOON, || kafka_latch(&server));
        assert!(told.contains(reason), "{told}");
        assert!(!told.contains("hunter"), "a password is told: {told}");
        redis.command(end);
        stream.wait_until_stored(&server);
        wait_until("readiness", SOON, || kafka_latch(&server).is_none().then_some(()));
    }
    let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
    server.wait_for_features(&users, SOON);
    // A Redis that was a replica meanwhile may have lost its tail, so records are read again, the bad one among them.
    let rewinds = server.metric("taiji_kafka_rewinds_total");
    assert!(rewinds >= 1.0 && records(&server, &topics, "dead_letter") <= 1.0 + rewinds, "nothing else was set aside");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}
