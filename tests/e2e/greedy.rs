//! Slow and greedy clients, with plain sockets: what they do harms nobody but themselves, and what is refused is refused in words.

use crate::worlds::{click, data_plane_bundle, now_ms};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use testkit::is_audit;
use testkit::process::{Answer, Server, Setup, call, connect, head, read_answer, wait_until};

/// What one test's attack is made of.
#[derive(Clone, Copy)]
struct Scale {
    idle: usize,
    heads: usize,
    bodies: usize,
    /// Connections of HTTP/2, of 100 streams each.
    multiplexed: usize,
    windows: usize,
    window: Duration,
}

/// As the bar of `make audit` wants it.
const WHOLE: Scale =
    Scale { idle: 2000, heads: 1000, bodies: 1200, multiplexed: 50, windows: 20, window: Duration::from_secs(5) };
/// Quick.
const SMALL: Scale =
    Scale { idle: 300, heads: 150, bodies: 1100, multiplexed: 12, windows: 4, window: Duration::from_secs(1) };

fn server(folder: &tempfile::TempDir) -> Setup {
    Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"))
}

/// Connections that want as much as they can get. Bodies come by a byte every [`DRIP`].
struct Attack {
    /// Idle ones, half heads, and such of HTTP/2.
    still: Vec<TcpStream>,
    bodies: usize,
    /// Lets the thread that sends the bodies go when it is dropped.
    _drip: mpsc::Sender<()>,
}

const DRIP: Duration = Duration::from_secs(3);

impl Attack {
    fn begin(address: &str, scale: &Scale) -> Attack {
        let open = |count: usize, bytes: &[u8]| -> Vec<TcpStream> {
            (0..count)
                .map(|_| {
                    let mut stream = connect(address).expect("connect");
                    stream.write_all(bytes).expect("write");
                    stream
                })
                .collect()
        };
        let half_head = format!("POST /v1/events HTTP/1.1\r\nhost: {address}\r\nx-half: ");
        let slow = [head(address, "POST", "/v1/events", &[], 4096), b"{".to_vec()].concat();
        // The bodies first: the thread keeps them going while the others are opened.
        let mut bodies = open(scale.bodies, &slow);
        let (drip, ends) = mpsc::channel();
        std::thread::spawn(move || {
            while ends.recv_timeout(DRIP) == Err(RecvTimeoutError::Timeout) {
                for body in &mut bodies {
                    // One that the server closed shows in the count of connections.
                    let _ = body.write_all(b" ");
                }
            }
        });
        let still = [
            open(scale.idle, b""),
            open(scale.heads, half_head.as_bytes()),
            open(scale.multiplexed, &half_posts(address, 100)),
        ];
        Attack { still: still.into_iter().flatten().collect(), bodies: scale.bodies, _drip: drip }
    }

    fn connections(&self) -> usize {
        self.still.len() + self.bodies
    }
}

/// HTTP/2: preface, settings, and posts whose bodies have begun.
fn half_posts(address: &str, streams: u32) -> Vec<u8> {
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }
    let text = |index: u8, value: &str| [&[index, value.len() as u8], value.as_bytes()].concat();
    // POST and http out of the static table; path and authority as literals.
    let block = [vec![0x83, 0x86], text(0x04, "/v1/events"), text(0x01, address)].concat();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for stream in (1..).step_by(2).take(streams as usize) {
        bytes.extend(frame(1, 4, stream, &block));
        bytes.extend(frame(0, 0, stream, b"{"));
    }
    bytes
}

/// Times of reads, in ms: half of them on a connection of their own, at a pace of 200 a second.
fn read_for(server: &Server, time: Duration) -> Vec<f64> {
    let body = json!({ "users": ["u"], "groups": ["intra"] }).to_string();
    let kept = String::from_utf8(head(server.public(), "POST", "/v1/features", &[], body.len())).expect("text");
    let kept = kept.replace("connection: close\r\n", "") + &body;
    let mut connection = connect(server.public()).expect("connect");
    let (until, mut times) = (Instant::now() + time, Vec::new());
    while Instant::now() < until {
        let began = Instant::now();
        if times.len() % 2 == 0 {
            let answer = call(server.public(), "POST", "/v1/features", &[], body.as_bytes()).expect("a read");
            assert_eq!(answer.status, 200, "{}", answer.text());
        } else {
            connection.write_all(kept.as_bytes()).expect("a read");
            read_one(&mut connection);
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(Duration::from_millis(5).saturating_sub(began.elapsed()));
    }
    times
}

/// One answer of a connection that stays open.
fn read_one(stream: &mut TcpStream) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "closed");
        bytes.extend_from_slice(&buffer[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if bytes.len() == end + 4 + length.expect("length") {
            return;
        }
    }
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * share) as usize]
}

/// The slowest `/livez` until the flag turns true, in ms.
fn watch_livez(admin: &str, done: &AtomicBool) -> f64 {
    let mut slowest: f64 = 0.0;
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        assert_eq!(call(admin, "GET", "/livez", &[], b"").expect("livez").status, 200);
        slowest = slowest.max(began.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(Duration::from_millis(50));
    }
    slowest
}

#[test]
fn audit_05_slow_and_greedy_clients_wait_for_themselves_alone() {
    rlimit::increase_nofile_limit(20_000).expect("open files");
    let scale = if is_audit() { WHOLE } else { SMALL };
    let folder = tempfile::tempdir().expect("tempdir");
    // However slow the machine is that opens them, all of them are held at once.
    let minutes = "600000";
    let server = server(&folder)
        .env("TAIJI__SERVER__HEADER_TIMEOUT_MS", minutes)
        .env("TAIJI__SERVER__BODY_TIMEOUT_MS", minutes)
        .start();
    server.post("/v1/events", &click("u", "e", now_ms())).expect_status(202);
    server.wait_for_features(&["u".to_string()], Duration::from_secs(60));
    read_for(&server, scale.window / 2);
    let (mut ratios, mut attacked, mut slowest_livez) = (Vec::new(), Vec::new(), 0.0f64);
    for _ in 0..scale.windows / 2 {
        let mut quiet = read_for(&server, scale.window);
        let attack = Attack::begin(server.public(), &scale);
        let held = attack.connections();
        wait_until("the connections", Duration::from_secs(30), || {
            (server.metric("taiji_connections{port=\"public\"}") >= held as f64).then_some(())
        });
        let done = AtomicBool::new(false);
        let mut greedy = std::thread::scope(|scope| {
            let livez = scope.spawn(|| watch_livez(server.admin(), &done));
            let times = read_for(&server, scale.window);
            done.store(true, Ordering::Relaxed);
            slowest_livez = slowest_livez.max(livez.join().expect("livez"));
            times
        });
        drop(attack);
        let (quiet, greedy) = (quantile(&mut quiet, 0.99), quantile(&mut greedy, 0.99));
        ratios.push(greedy / quiet);
        attacked.push(greedy);
    }
    let (ratio, p99) = (quantile(&mut ratios, 0.5), quantile(&mut attacked, 0.5));
    println!(
        "audit 05: reads beside {} idle, {} half heads, {} slow bodies, {} x 100 h2 streams: p99 {p99:.1} ms, {ratio:.2} x without; \
         slowest /livez {slowest_livez:.0} ms",
        scale.idle, scale.heads, scale.bodies, scale.multiplexed
    );
    assert_eq!(server.metric("taiji_http_shed_total"), 0.0, "no read was refused");
    if is_audit() {
        assert!(ratio <= 2.0 || p99 <= 10.0, "p99 {p99} ms, {ratio} x without");
        assert!(slowest_livez <= 100.0, "{slowest_livez} ms");
    }
    assert!(p99 <= 1000.0 && slowest_livez <= 5000.0, "p99 {p99} ms, livez {slowest_livez} ms");
}

/// Waits until the server closes; what it sent before, and how long it took.
fn until_closed(mut stream: TcpStream) -> (Vec<u8>, Duration) {
    let (began, mut bytes) = (Instant::now(), Vec::new());
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    (bytes, began.elapsed())
}

#[test]
fn audit_05_many_who_connect_at_once_are_all_let_in_at_once() {
    rlimit::increase_nofile_limit(20_000).expect("open files");
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder).start();
    // As fast as one thread can; who finds the queue of the port full tries again after a second.
    let (mut connections, mut second_tries) = (Vec::new(), 0);
    for _ in 0..2000 {
        let began = Instant::now();
        connections.push(connect(server.public()).expect("connect"));
        second_tries += usize::from(began.elapsed() >= Duration::from_millis(900));
    }
    println!("audit 05: 2000 connections at once, {second_tries} of them let in at a later try");
    assert!(second_tries <= 1, "{second_tries} had to try again");
}

/// A connection is counted just after it is closed.
fn counted(server: &Server, reason: &str, least: f64) {
    let name = format!("taiji_connections_closed_total{{port=\"public\",reason=\"{reason}\"}}");
    wait_until(&name, Duration::from_secs(20), || (server.metric(&name) >= least).then_some(()));
}

#[test]
fn audit_05_who_keeps_the_server_waiting_is_left() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder)
        .env("TAIJI__SERVER__HEADER_TIMEOUT_MS", "1000")
        .env("TAIJI__SERVER__IDLE_TIMEOUT_MS", "3000")
        .env("TAIJI__SERVER__BODY_TIMEOUT_MS", "2000")
        .start();
    let sent = |bytes: &[u8]| {
        let mut stream = connect(server.public()).expect("connect");
        stream.write_all(bytes).expect("write");
        stream
    };
    let half = head(server.public(), "POST", "/v1/events", &[], 100);
    let soon = Duration::from_secs(20);
    let silent = sent(b"");
    let half_head = sent(&half[..half.len() / 2]);
    let whole = format!("GET /v1/users/u/features HTTP/1.1\r\nhost: {}\r\n\r\n", server.public());
    let mut idle = sent(whole.as_bytes());
    read_one(&mut idle);
    let mut dripping = sent(&half);
    let dripped = std::thread::scope(|scope| {
        let dripped = scope.spawn(move || {
            // A byte a time never pauses for long, and never ends.
            while dripping.write_all(b" ").is_ok() && dripping.peek(&mut [0]).is_err() {
                dripping.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
            }
            read_answer(&mut dripping).expect("an answer")
        });
        for (stream, least) in [(silent, 0), (half_head, 0), (idle, 1)] {
            let (bytes, took) = until_closed(stream);
            assert!(bytes.is_empty() && took < soon && took >= Duration::from_secs(least), "{took:?}");
        }
        dripped.join().expect("drip")
    });
    let (status, code, message) = dripped.error();
    assert_eq!((status, code.as_str()), (408, "timeout"), "{message}");
    assert!(dripped.head.contains("x-request-id: "), "{}", dripped.head);
    counted(&server, "header_timeout", 2.0);
    counted(&server, "idle_timeout", 1.0);
    println!("audit 05: a silent, a half-sent, an idle and a dripping client are left after 1, 1, 3 and 2 s");
}

#[test]
fn audit_05_a_full_port_sends_away_who_waits_longest() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder).env("TAIJI__SERVER__MAX_CONNECTIONS", "8").start();
    let idle: Vec<TcpStream> = (0..20).map(|_| connect(server.public()).expect("connect")).collect();
    for _ in 0..5 {
        server.get("/v1/users/u/features").expect_status(200);
    }
    counted(&server, "port_full", 5.0);
    assert!(server.metric("taiji_connections{port=\"public\"}") <= 8.0);
    drop(idle);
}

#[test]
fn audit_05_open_files_are_raised_and_some_are_kept_for_the_operators() {
    let folder = tempfile::tempdir().expect("tempdir");
    let raised = server(&folder).under("ulimit -Sn 256").start();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", raised.pid())).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("open files");
    let numbers: Vec<&str> = line.split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers[0], numbers[1], "soft is hard: {line}");
    drop(raised);

    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder).under("ulimit -n 200").start();
    let idle: Vec<TcpStream> = (0..600).map(|_| connect(server.public()).expect("connect")).collect();
    for path in ["/livez", "/readyz", "/metrics"] {
        let began = Instant::now();
        assert_eq!(call(server.admin(), "GET", path, &[], b"").expect(path).status, 200);
        assert!(began.elapsed() < Duration::from_secs(5), "{path} took {:?}", began.elapsed());
    }
    server.get("/v1/users/u/features").expect_status(200);
    assert!(server.metric("taiji_connections{port=\"public\"}") <= 200.0);
    assert!(server.stderr().contains("open files allow fewer connections"), "{}", server.stderr());
    drop(idle);
}

/// Sends these bytes alone; the answer, with the body and the id that every refusal has.
fn refused(server: &Server, bytes: &[u8], status: u16, code: &str) -> Answer {
    let mut stream = connect(server.public()).expect("connect");
    // A server that refuses early may stop reading.
    let _ = stream.write_all(bytes);
    let answer = read_answer(&mut stream).expect("an answer");
    let (found, found_code, message) = answer.error();
    assert_eq!((found, found_code.as_str()), (status, code), "{message}");
    assert!(answer.head.contains("x-request-id: "), "{}", answer.head);
    answer
}

#[test]
fn audit_05_every_refusal_has_a_body_and_an_id() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder).start();
    let address = server.public();
    let get = |path: &str| head(address, "GET", path, &[], 0);
    refused(&server, b"no http at all\r\n\r\n", 400, "bad_request");
    refused(&server, &get(&format!("/{}", "x".repeat(100 << 10))), 414, "uri_too_long");
    let many: Vec<(String, String)> = (0..2000).map(|n| (format!("x-{n}"), "v".to_string())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    refused(&server, &head(address, "GET", "/", &many, 0), 431, "header_fields_too_large");
    refused(&server, &get("/nowhere"), 404, "not_found");
    refused(&server, &get("/v1/events"), 405, "method_not_allowed");
    refused(&server, &get("/v1/users/%/features"), 400, "bad_request");
    refused(&server, &get("/v1/users/%zz/features"), 400, "bad_request");
    let packed = [head(address, "POST", "/v1/events", &[("content-encoding", "gzip")], 3), b"abc".to_vec()].concat();
    refused(&server, &packed, 415, "unsupported_encoding");
    // Nothing was sent but the head, and nothing was asked for.
    let asking = [("expect", "100-continue")];
    for length in [2 << 20, 100 << 20] {
        let answer = refused(&server, &head(address, "POST", "/v1/events", &asking, length), 413, "payload_too_large");
        assert!(answer.head.starts_with("http/1.1 413"), "{}", answer.head);
    }
    refused(&server, &head(address, "POST", "/v1/events", &[], 99_999_999_999), 413, "payload_too_large");
    let admin = call(server.admin(), "GET", "/nowhere", &[], b"").expect("admin");
    assert_eq!(admin.error().0, 404);
    assert!(admin.head.contains("x-request-id: "), "{}", admin.head);
}

#[test]
fn audit_05_a_key_that_stands_twice_is_refused_by_its_field() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = server(&folder).start();
    let event = |user: &str| click(user, "e", now_ms()).to_string();
    let twice = format!("{}{}", r#"{"user_id":"other","#, &event("u")[1..]);
    let body = format!(r#"{{"events":[{},{twice}]}}"#, event("good"));
    let answer = server.post_bytes("/v1/events", body.as_bytes()).expect_status(202).json();
    assert_eq!(answer["accepted"], json!(1), "{answer}");
    assert_eq!((&answer["rejected"][0]["index"], &answer["rejected"][0]["field"]), (&json!(1), &json!("user_id")));
    let alone = server.post_bytes("/v1/events", twice.as_bytes()).expect_status(400).json();
    assert_eq!(alone["rejected"][0]["field"], json!("user_id"), "{alone}");
}
