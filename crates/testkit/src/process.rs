//! Starts the binaries, waits for conditions, speaks HTTP/1.1 over plain sockets.

use crate::ports::free_port;
use crate::program::{TAIJI, TRAINER};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything that should happen soon.
pub const SOON: Duration = Duration::from_secs(60);
/// Every user with news is refreshed at once.
pub const EAGER: [(&str, &str); 4] = [
    ("TAIJI__REFRESH__WEIGHT_THRESHOLD", "0"),
    ("TAIJI__REFRESH__MIN_INTERVAL_MS", "0"),
    ("TAIJI__REFRESH__MAX_INTERVAL_MS", "0"),
    ("TAIJI__REFRESH__POLL_MS", "20"),
];

/// Looks again and again until there is something to see; fails with `what` after `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command without settings from the environment of whoever runs the tests.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TAIJI_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a command that ends by itself ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` = by a signal.
    pub code: Option<i32>,
    /// What it wrote.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
}

impl Ended {
    /// Ends the test unless the exit code is this one and nothing panicked.
    pub fn expect_code(self, code: i32) -> Ended {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Runs a command to its end; kills it after two minutes.
pub fn run(mut command: Command) -> Ended {
    let mut child = command.spawn().expect("spawn");
    let pid = child.id();
    let waiter = std::thread::spawn({
        let stdout = child.stdout.take().expect("stdout");
        let stderr = child.stderr.take().expect("stderr");
        move || {
            let errors = std::thread::spawn(move || text_of(stderr));
            (text_of(stdout), errors.join().expect("stderr reader"))
        }
    });
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("kill");
            child.wait().expect("wait");
            panic!("{command:?} (process {pid}) did not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = waiter.join().expect("reader");
    Ended { code: status.code(), stdout, stderr }
}

fn text_of(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a program with arguments and further environment variables.
pub fn run_with(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = command(program, arguments);
    command.envs(environment.iter().copied());
    run(command)
}

/// An address nobody listens at.
pub fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// What a server is started with.
#[derive(Clone)]
pub struct Setup {
    program: String,
    bundle: PathBuf,
    /// `store.url`.
    store: String,
    engine: &'static str,
    flags: Vec<String>,
    environment: Vec<(String, String)>,
    listen: String,
    admin: String,
    /// Shell words that run first.
    under: String,
}

impl Setup {
    /// Canned answers over a bundle; every user with news is refreshed at once.
    pub fn canned(bundle: &Path, store: &Path) -> Setup {
        Setup::canned_of(&TAIJI, bundle, store)
    }

    /// The same by a program that lies anywhere, for whoever does not run among the tests.
    pub fn canned_of(program: &str, bundle: &Path, store: &Path) -> Setup {
        let setup = Setup {
            program: program.to_string(),
            bundle: bundle.to_path_buf(),
            store: format!("embedded:{}", store.display()),
            engine: "null",
            flags: Vec::new(),
            environment: Vec::new(),
            listen: free_address(),
            admin: free_address(),
            under: String::new(),
        };
        let setup = setup.env("TAIJI__SERVER__DRAIN_DELAY_MS", "0");
        EAGER.iter().fold(setup, |setup, (name, value)| setup.env(name, value))
    }

    /// The bundle's own models.
    pub fn onnx(bundle: &Path, store: &Path) -> Setup {
        Setup { engine: "onnx", ..Setup::canned(bundle, store) }
    }

    /// Keeps everything there instead of in a folder.
    pub fn on(self, store_url: &str) -> Setup {
        Setup { store: store_url.to_string(), ..self }
    }

    /// Another build of the program.
    pub fn of(self, program: &str) -> Setup {
        Setup { program: program.to_string(), ..self }
    }

    /// A setting by its environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.to_string(), value.to_string()));
        self
    }

    /// A further flag.
    pub fn flag(mut self, name: &str, value: &str) -> Setup {
        self.flags.extend([name.to_string(), value.to_string()]);
        self
    }

    /// Shell words to run before the program, in its process.
    pub fn under(self, words: &str) -> Setup {
        Setup { under: words.to_string(), ..self }
    }

    fn command(&self) -> Command {
        let bundle = self.bundle.display().to_string();
        let arguments = ["serve", "--listen", &self.listen, "--admin-listen", &self.admin, "--store", &self.store];
        let mut command = match self.under.as_str() {
            "" => command(&self.program, &arguments),
            under => {
                let script = format!("{under}; exec \"$0\" \"$@\"");
                command("sh", &[&["-c", &script, &self.program][..], &arguments].concat())
            }
        };
        command.args(["--bundle", &bundle, "--engine", self.engine]).args(&self.flags);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(Stdio::null());
        command
    }

    /// Starts and waits until it is ready.
    pub fn start(&self) -> Server {
        let mut setup = self.clone();
        // Between finding a free port and listening, another test may take it.
        for _ in 0..5 {
            match Server::start(setup.clone()) {
                Ok(server) => return server,
                Err(stderr) if stderr.contains("in use") => {
                    setup.listen = free_address();
                    setup.admin = free_address();
                }
                Err(stderr) => panic!("the server did not start: {stderr}"),
            }
        }
        panic!("no free port found");
    }

    /// Starts and waits until that is so, for ports that plain HTTP does not reach.
    pub fn start_when(&self, is_up: impl Fn(&Server) -> bool) -> Server {
        Server::start_when(self.clone(), is_up).unwrap_or_else(|stderr| panic!("the server did not start: {stderr}"))
    }

    /// Starts and waits until this latch is held for this reason, whatever others are held; returns what `/readyz` says.
    pub fn start_waiting(&self, latch: &str, reason: &str) -> (Server, Value) {
        let held = |answer: &Answer| {
            let latches = answer.json()["latches"].as_array().cloned().unwrap_or_default();
            latches.iter().any(|held| held["latch"] == latch && held["reason"].as_str().unwrap_or("").contains(reason))
        };
        let server = Server::start_until(self.clone(), held).unwrap_or_else(|stderr| panic!("no start: {stderr}"));
        let answer = call(server.admin(), "GET", "/readyz", &[], b"").expect("readyz").expect_status(503).json();
        (server, answer)
    }

    /// Starts and waits until only this latch is held, for this reason; returns what `/readyz` says.
    pub fn start_unready(&self, latch: &str, reason: &str) -> (Server, Value) {
        let held = |answer: &Answer| {
            let latches = answer.json()["latches"].as_array().cloned().unwrap_or_default();
            let held: Vec<Value> = latches.into_iter().filter(|latch| latch["ready"] == false).collect();
            held.len() == 1 && held[0]["latch"] == latch && held[0]["reason"].as_str().unwrap_or("").contains(reason)
        };
        let server = Server::start_until(self.clone(), held).unwrap_or_else(|stderr| panic!("no start: {stderr}"));
        let answer = call(server.admin(), "GET", "/readyz", &[], b"").expect("readyz").expect_status(503).json();
        (server, answer)
    }

    /// Runs the server to its end, for starts that must fail.
    pub fn run(&self) -> Ended {
        let mut command = self.command();
        command.stdout(Stdio::piped());
        run(command)
    }

    /// The same with the given public and operators' addresses.
    pub fn at(mut self, listen: &str, admin: &str) -> Setup {
        self.listen = listen.to_string();
        self.admin = admin.to_string();
        self
    }
}

/// A running `taiji serve`; killed when dropped.
pub struct Server {
    child: Child,
    setup: Setup,
    stderr: Arc<Mutex<String>>,
}

impl Server {
    fn start(setup: Setup) -> Result<Server, String> {
        Server::start_until(setup, |answer| answer.status == 200)
    }

    /// Starts and waits until `/readyz` answers as wanted.
    fn start_until(setup: Setup, is_up: impl Fn(&Answer) -> bool) -> Result<Server, String> {
        let asked = |server: &Server| call(server.admin(), "GET", "/readyz", &[], b"");
        Server::start_when(setup, |server| asked(server).is_ok_and(|answer| is_up(&answer)))
    }

    fn start_when(setup: Setup, is_up: impl Fn(&Server) -> bool) -> Result<Server, String> {
        let mut child = setup.command().spawn().expect("spawn taiji");
        let stderr = Arc::new(Mutex::new(String::new()));
        let (stream, kept) = (child.stderr.take().expect("stderr"), stderr.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut kept = kept.lock().expect("stderr");
                kept.push_str(&line);
                kept.push('\n');
            }
        });
        let mut server = Server { child, setup, stderr };
        let ready = wait_until("/readyz", Duration::from_secs(120), || {
            if let Some(status) = server.child.try_wait().expect("wait") {
                return Some(Err(format!("{status}: {}", server.stderr())));
            }
            is_up(&server).then_some(Ok(()))
        });
        ready.map(|()| server)
    }

    /// The same store, bundle and addresses once more.
    pub fn start_again(&self) -> Server {
        Server::start(self.setup.clone()).unwrap_or_else(|stderr| panic!("the server did not start again: {stderr}"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Public address.
    pub fn public(&self) -> &str {
        &self.setup.listen
    }

    /// Operators' address.
    pub fn admin(&self) -> &str {
        &self.setup.admin
    }

    /// What it has logged.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("stderr").clone()
    }

    /// A read of the public port.
    pub fn get(&self, path: &str) -> Answer {
        call(self.public(), "GET", path, &[], b"").expect("answer")
    }

    /// A JSON post to the public port.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    /// A post of anything.
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        call(self.public(), "POST", path, &[], body).expect("answer")
    }

    /// One user's row.
    pub fn row(&self, user: &str, groups: &str) -> Value {
        let path = format!("/v1/users/{}/features?groups={groups}", percent(user));
        self.get(&path).expect_status(200).json()
    }

    /// One user's history, if there is any.
    pub fn history(&self, user: &str) -> Option<Value> {
        let answer = self.get(&format!("/v1/users/{}/history", percent(user)));
        if answer.status == 404 {
            return None;
        }
        Some(answer.expect_status(200).json())
    }

    /// Waits until the features of every user have seen every event; returns the columns.
    pub fn wait_for_features(&self, users: &[String], limit: Duration) -> Value {
        let seq: Vec<Value> = users.iter().map(|user| self.history(user).expect("history")["seq"].clone()).collect();
        let deadline = Instant::now() + limit;
        loop {
            let columns = self.columns(users);
            let found = columns["groups"]["intra"]["seq"].as_array().expect("seq");
            let now_behind = found.iter().zip(&seq).filter(|(found, wanted)| found != wanted).count();
            if now_behind == 0 {
                return columns;
            }
            let all = users.len();
            assert!(Instant::now() < deadline, "{now_behind} of {all} users have no fresh features");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `POST /v1/features` for at most 1,000 users.
    pub fn columns(&self, users: &[String]) -> Value {
        self.post("/v1/features", &serde_json::json!({ "users": users })).expect_status(200).json()
    }

    /// `/metrics` as text.
    pub fn metrics(&self) -> String {
        let answer = call(self.admin(), "GET", "/metrics", &[], b"").expect("metrics").expect_status(200);
        String::from_utf8(answer.body).expect("utf-8")
    }

    /// Sum of all series of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let series =
            |line: &&str| line.starts_with(name) && matches!(line.as_bytes().get(name.len()), Some(b' ' | b'{'));
        let values: Vec<f64> = text
            .lines()
            .filter(series)
            .map(|line| line.rsplit(' ').next().expect("value").parse().expect("number"))
            .collect();
        assert!(!values.is_empty(), "{name} is not in {text}");
        values.iter().sum()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Sends a signal (TERM, INT).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// Waits for the end; the exit code.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        wait_until("the server's end", limit, || self.child.try_wait().expect("wait")).code()
    }

    /// SIGTERM, then the exit code within 20 seconds.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait(Duration::from_secs(20))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the server wrote:\n{}", self.stderr());
        }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// As sent.
    pub body: Vec<u8>,
}

impl Answer {
    /// Ends the test unless the status is this one.
    pub fn expect_status(self, status: u16) -> Answer {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in the body of {}: {:?}", self.status, self.text()))
    }

    /// Status, code and message of an error body.
    pub fn error(&self) -> (u16, String, String) {
        let body = self.json();
        let part =
            |name: &str| body["error"][name].as_str().unwrap_or_else(|| panic!("error.{name} in {body}")).to_string();
        (self.status, part("code"), part("message"))
    }
}

/// One request on a connection of its own.
pub fn call(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
    let mut stream = connect(address)?;
    stream.write_all(&head(address, method, path, headers, body.len()))?;
    // A server that refuses early may stop reading; what it answered still counts.
    let written = stream.write_all(body);
    match read_answer(&mut stream) {
        Err(error) => Err(written.err().unwrap_or(error)),
        answer => answer,
    }
}

/// A connection that gives up after a while.
pub fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// The head of a request.
pub fn head(address: &str, method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    if method == "POST" {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head.into_bytes()
}

/// Reads until the server closes.
pub fn read_answer(stream: &mut TcpStream) -> io::Result<Answer> {
    let broken = |message: String| io::Error::new(io::ErrorKind::UnexpectedEof, message);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.ok_or_else(|| broken(format!("no whole head in {} bytes", bytes.len())))?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let body = bytes[end + 4..].to_vec();
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(broken(format!("{} body bytes of {length:?}", body.len())));
    }
    let status = status.ok_or_else(|| broken(format!("no status in {head}")))?;
    Ok(Answer { status, head, body })
}

/// Percent-encodes a path segment.
pub fn percent(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Standard output of a process that must succeed.
pub fn output_of(program: &str, arguments: &[&str]) -> String {
    run_with(program, arguments, &[]).expect_code(0).stdout
}

/// Users of the demo bundle's world, which it has never seen, into a folder.
pub fn synth_files(folder: &Path, users: usize, seed: u64) {
    let (users, seed) = (users.to_string(), seed.to_string());
    let out = folder.display().to_string();
    output_of(&TRAINER, &["synth", "--world", "reason", "--out", &out, "--users", &users, "--seed", &seed]);
}
