//! Real Redis servers for tests: a single one, one with TLS and an ACL file, a cluster of three. Each lives in a folder of
//! its own on a free port and dies with its guard.
//!
//! A missing `redis-server` fails the test: `make setup` installs it.

use crate::certificates::make_certificates;
use crate::ports::free_port;
use crate::process::{SOON, wait_until};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What the README's `ACL SETUSER` grants, besides keys and channels.
pub const RIGHTS: &str =
    "+@read +@write +@connection -@dangerous +fcall +function|load +info +time +cluster|slots +cluster|nodes";
/// Who has those rights, with the password `pw`.
pub(crate) const USER: &str = "service";

/// One server.
pub struct RedisServer {
    /// Its folder: data, log, certificates.
    pub folder: tempfile::TempDir,
    /// Port of plain connections, or of TLS ones.
    pub port: u16,
    program: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    /// A server with an append-only file.
    pub fn start() -> RedisServer {
        RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A server with these options besides port and folder.
    pub fn with(options: &[&str]) -> RedisServer {
        RedisServer::of("redis-server", options)
    }

    /// A Valkey, for what Debian's Redis lacks; `None` where it cannot be had, and then the test is left out.
    #[track_caller]
    pub fn valkey(options: &[&str]) -> Option<RedisServer> {
        match valkey() {
            Ok(program) => Some(RedisServer::of(&program, options)),
            Err(why) => {
                crate::skip(&format!("it needs Valkey. {why}"));
                None
            }
        }
    }

    fn of(program: &str, options: &[&str]) -> RedisServer {
        let folder = tempfile::tempdir().expect("a folder");
        let user = ["--user", USER].into_iter().chain(["on", ">pw", "~*", "&*"]).chain(RIGHTS.split(' '));
        let options = options.iter().copied().chain(user);
        RedisServer::launch(program, folder, "--port", options.map(String::from).collect())
    }

    /// Makes it a replica of that server and waits until it has everything.
    pub fn follow(&self, master: &RedisServer) {
        let answer = self.command(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
        assert!(answer.starts_with("+OK"), "{answer}");
        wait("a replica that follows", || self.command(&["INFO", "replication"]).contains("master_link_status:up"));
    }

    /// A server that speaks TLS only and knows the user `taiji` with the password `p@ss_word`, who has the rights and keys that
    /// the README asks for, and `reader`, who may only read, with the password `reader`. The authority's certificate is `ca.pem` in
    /// its folder.
    pub fn with_tls_and_users() -> RedisServer {
        let folder = tempfile::tempdir().expect("a folder");
        make_certificates(folder.path());
        let users = format!(
            "user default off\nuser taiji on >p@ss_word ~taiji:* {RIGHTS}\n\
             user reader on >reader ~* &* +@read +@connection +fcall_ro\n"
        );
        std::fs::write(folder.path().join("users.acl"), users).expect("users.acl");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let options = vec![
            "--port".into(),
            "0".into(),
            "--tls-cert-file".into(),
            path("server.pem"),
            "--tls-key-file".into(),
            path("server.key"),
            "--tls-ca-cert-file".into(),
            path("ca.pem"),
            "--tls-auth-clients".into(),
            "no".into(),
            "--aclfile".into(),
            path("users.acl"),
        ];
        RedisServer::launch("redis-server", folder, "--tls-port", options)
    }

    /// A sentinel with that configuration, which says its port, too.
    pub(crate) fn sentinel(folder: tempfile::TempDir, port: u16, configuration: &str) -> RedisServer {
        let path = folder.path().join("sentinel.conf");
        std::fs::write(&path, configuration).expect("sentinel.conf");
        let arguments = vec![path.display().to_string(), "--sentinel".to_string()];
        let mut server = RedisServer { folder, port, program: "redis-server".to_string(), arguments, child: None };
        server.restart();
        server
    }

    fn launch(program: &str, folder: tempfile::TempDir, port_option: &str, options: Vec<String>) -> RedisServer {
        let port = free_port();
        let mut arguments = options;
        let data = folder.path().display().to_string();
        for part in [port_option, &port.to_string(), "--dir", &data, "--save", "", "--logfile", "redis.log"] {
            arguments.push(part.to_string());
        }
        let mut server = RedisServer { folder, port, program: program.to_string(), arguments, child: None };
        server.restart();
        server
    }

    /// `redis://` address of the user who has no more rights than the README asks for.
    pub fn url(&self) -> String {
        format!("redis://{USER}:pw@127.0.0.1:{}", self.port)
    }

    /// `redis://` address without a login, for what an operator does.
    pub fn operators_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal (STOP, CONT, TERM).
    pub fn signal(&self, name: &str) {
        let Some(child) = &self.child else { return };
        let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
        assert!(status.expect("kill").success(), "kill -{name}");
    }

    /// Ends the server as an operator does: it writes out what it has, then exits.
    pub fn stop(&mut self) {
        self.signal("TERM");
        if let Some(mut child) = self.child.take() {
            child.wait().expect("redis-server");
        }
    }

    /// Starts it again on the same port and folder, after a kill where needed; returns when it answers.
    pub fn restart(&mut self) {
        self.kill();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is missing: run `make setup`");
        self.child = Some(child);
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < until, "redis-server on port {} does not answer", self.port);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Length of the append-only file now, for [`RedisServer::lose_tail`].
    pub fn log_length(&self) -> u64 {
        std::fs::metadata(self.log()).expect("an append-only file").len()
    }

    /// Kills the server, takes away what was written since the log had that length, and starts it again.
    pub fn lose_tail(&mut self, length: u64) {
        self.kill();
        let file = std::fs::File::options().write(true).open(self.log()).expect("the append-only file");
        file.set_len(length).expect("a shorter file");
        self.restart();
    }

    fn log(&self) -> std::path::PathBuf {
        self.folder.path().join("appendonlydir/appendonly.aof.1.incr.aof")
    }

    /// Sends commands as an append-only file holds them; none may fail.
    pub fn replay(&self, commands: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
        stream.write_all(&[commands, b"*1\r\n$4\r\nQUIT\r\n"].concat()).expect("write");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("answers");
        let failed = answers.lines().find(|line| line.starts_with('-'));
        assert_eq!(failed, None, "a command of the file failed");
    }

    /// Sends one command over a plain connection and returns the raw answer.
    pub fn command(&self, parts: &[&str]) -> String {
        command(self.port, parts, self.arguments.iter().any(|argument| argument == "--sentinel"))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three masters that share the slots.
pub struct RedisCluster {
    /// In the order of their slots.
    pub nodes: Vec<RedisServer>,
    /// One of each master, in the same order, or none.
    pub replicas: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes, shares the slots out, and waits until all agree.
    pub fn start() -> RedisCluster {
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "no"];
        let nodes: Vec<RedisServer> = (0..3).map(|_| RedisServer::with(&options)).collect();
        for (node, (first, last)) in nodes.iter().zip([(0, 5460), (5461, 10922), (10923, 16383)]) {
            let answer = node.command(&["CLUSTER", "ADDSLOTSRANGE", &format!("{first}"), &format!("{last}")]);
            assert!(answer.starts_with("+OK"), "{answer}");
        }
        for node in &nodes[1..] {
            nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &node.port.to_string()]);
        }
        let cluster = RedisCluster { nodes, replicas: Vec::new() };
        let until = Instant::now() + Duration::from_secs(30);
        while !cluster.nodes.iter().all(|node| {
            let info = node.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        }) {
            assert!(Instant::now() < until, "the cluster does not come together");
            std::thread::sleep(Duration::from_millis(20));
        }
        cluster
    }

    /// As [`RedisCluster::start`], and a replica of each master that holds what its master holds.
    pub fn start_with_replicas() -> RedisCluster {
        let mut cluster = RedisCluster::start();
        let options = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--appendonly", "no"];
        cluster.replicas = (0..3).map(|_| RedisServer::with(&options)).collect();
        for (place, replica) in cluster.replicas.iter().enumerate() {
            replica.command(&["CLUSTER", "MEET", "127.0.0.1", &cluster.nodes[place].port.to_string()]);
            let master = cluster.id(place);
            wait("a replica that knows its master", || {
                replica.command(&["CLUSTER", "REPLICATE", &master]).starts_with("+OK")
            });
        }
        cluster.wait_for_replicas();
        wait("nodes that know all others", || {
            let all = cluster.nodes.iter().chain(&cluster.replicas);
            all.map(|node| node.command(&["CLUSTER", "INFO"])).all(|info| info.contains("cluster_known_nodes:6"))
        });
        cluster
    }

    /// Until every replica has all that its master has.
    pub fn wait_for_replicas(&self) {
        for (master, replica) in self.nodes.iter().zip(&self.replicas) {
            wait("a replica that is up to date", || {
                let (theirs, ours) =
                    (master.command(&["INFO", "replication"]), replica.command(&["INFO", "replication"]));
                let offset = |info: &str, field: &str| {
                    info.lines().find_map(|line| line.strip_prefix(field)).map(|offset| offset.trim().to_string())
                };
                ours.contains("master_link_status:up")
                    && offset(&ours, "slave_repl_offset:") == offset(&theirs, "master_repl_offset:")
            });
        }
    }

    /// Lets a replica take over from its living master; returns when both know.
    pub fn hand_over(&self, place: usize) {
        let answer = self.replicas[place].command(&["CLUSTER", "FAILOVER"]);
        assert!(answer.starts_with("+OK"), "{answer}");
        self.wait_for_take_over(place);
        wait("an old master that follows", || {
            self.nodes[place].command(&["INFO", "replication"]).contains("role:slave")
        });
    }

    /// Cuts the replica at that place off: it lags from now on, and may take over all the same.
    pub fn cut_off(&self, place: usize) {
        // It logs in as somebody its master does not know.
        for (name, value) in [("masteruser", "nobody"), ("masterauth", "nothing")] {
            assert!(self.replicas[place].command(&["CONFIG", "SET", name, value]).starts_with("+OK"));
        }
        let answer = self.nodes[place].command(&["CLIENT", "KILL", "TYPE", "replica"]);
        assert!(answer.starts_with(':'), "{answer}");
        wait("a replica that is cut off", || {
            self.replicas[place].command(&["INFO", "replication"]).contains("master_link_status:down")
        });
    }

    /// Until the replica at that place is a master.
    pub fn wait_for_take_over(&self, place: usize) {
        wait("a replica that took over", || {
            self.replicas[place].command(&["INFO", "replication"]).contains("role:master")
        });
    }

    /// `redis+cluster://` address.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        format!("redis+cluster://{USER}:pw@{}", hosts.join(","))
    }

    /// Id of a node.
    pub fn id(&self, node: usize) -> String {
        let answer = self.nodes[node].command(&["CLUSTER", "MYID"]);
        answer.lines().nth(1).expect("an id").trim().to_string()
    }

    /// Moves a slot with its keys; `between` runs after half of them, when some are here and some there.
    pub fn move_slot(&self, slot: u16, from: usize, to: usize, between: impl FnOnce()) {
        let slot = slot.to_string();
        let (source, target) = (self.id(from), self.id(to));
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
        let mut between = Some(between);
        loop {
            let keys = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &slot, "2"]);
            let keys: Vec<&str> = keys.lines().skip(1).filter(|line| !line.starts_with('$')).collect();
            let port = self.nodes[to].port.to_string();
            for key in &keys {
                let answer = self.nodes[from].command(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]);
                assert!(answer.starts_with('+'), "{answer}");
            }
            if let Some(between) = between.take() {
                between();
            } else if keys.is_empty() {
                break;
            }
        }
        for node in [to, from, 3 - to - from] {
            let answer = self.nodes[node].command(&["CLUSTER", "SETSLOT", &slot, "NODE", &target]);
            assert!(answer.starts_with("+OK"), "{answer}");
        }
    }
}

/// Where the server of `scripts/valkey.sh` is, or why not.
fn valkey() -> Result<String, String> {
    static VALKEY: OnceLock<Result<String, String>> = OnceLock::new();
    let fetch = || {
        let script = crate::in_repository("scripts/valkey.sh");
        let output = Command::new("bash").arg(script).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    VALKEY.get_or_init(fetch).clone()
}

/// While masters change, a connection may be closed before its answer is read (seen once, of a sentinel): then it is asked a second time.
fn command(port: u16, parts: &[&str], is_sentinel: bool) -> String {
    let was_closed = |error: &io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    match ask(port, parts, is_sentinel) {
        Err(error) if was_closed(&error) => ask(port, parts, is_sentinel),
        answer => answer,
    }
    .unwrap_or_else(|error| panic!("{} of the server at {port}: {error}", parts.join(" ")))
}

fn ask(port: u16, parts: &[&str], is_sentinel: bool) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut text = format!("*{}\r\n", parts.len());
    for part in parts {
        text.push_str(&format!("${}\r\n{part}\r\n", part.len()));
    }
    // A sentinel knows no QUIT.
    if !is_sentinel {
        text.push_str("*1\r\n$4\r\nQUIT\r\n");
    }
    stream.write_all(text.as_bytes())?;
    if is_sentinel {
        stream.shutdown(std::net::Shutdown::Write)?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    // The last line answers the QUIT.
    let own = if is_sentinel { &answer[..] } else { answer.strip_suffix(b"+OK\r\n").unwrap_or(&answer) };
    Ok(String::from_utf8_lossy(own).into_owned())
}

pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_until(what, SOON, || is_so().then_some(()));
}
