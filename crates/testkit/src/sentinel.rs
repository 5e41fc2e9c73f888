//! A Redis master with two replicas and three sentinels that watch them: real processes, each in a folder of its own.
//!
//! The sentinels know the master as [`SERVICE`]; who asks them logs in as [`SENTINEL_USER`] with [`SENTINEL_PASSWORD`].

use crate::ports::free_port;
use crate::redis::{RedisServer, USER, wait};

/// The name by which the sentinels know the master.
pub const SERVICE: &str = "taiji-test";
/// Who may ask the sentinels, and nothing more.
pub const SENTINEL_USER: &str = "watcher";
/// That user's password.
pub const SENTINEL_PASSWORD: &str = "w";
/// After so long without an answer a sentinel takes the master for dead.
pub const DOWN_AFTER_MS: u64 = 1000;

/// The servers and their sentinels.
pub struct RedisSentinels {
    /// At first the master stands at 0.
    pub servers: Vec<RedisServer>,
    /// Two of the three must agree that the master is away.
    pub sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts all, and waits until the sentinels know each other and the replicas.
    pub fn start() -> RedisSentinels {
        let options = ["--repl-diskless-sync-delay", "0"];
        let servers: Vec<RedisServer> = (0..3).map(|_| RedisServer::with(&options)).collect();
        for replica in &servers[1..] {
            replica.follow(&servers[0]);
        }
        let sentinels = (0..3).map(|_| sentinel(servers[0].port)).collect();
        let all = RedisSentinels { servers, sentinels };
        wait("sentinels that know all", || {
            let told = all.sentinels.iter().map(|sentinel| sentinel.command(&["INFO", "sentinel"]));
            told.into_iter().all(|info| info.contains("slaves=2,sentinels=3"))
        });
        all
    }

    /// `redis+sentinel://` address; the sentinels' login goes beside it.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        format!("redis+sentinel://{USER}:pw@{}/{SERVICE}", hosts.join(","))
    }

    /// The same without a login, for what an operator does.
    pub fn operators_url(&self) -> String {
        self.url().replace(&format!("{USER}:pw@"), "")
    }

    /// Port of the master that most sentinels name.
    pub fn master_port(&self) -> u16 {
        let mut ports: Vec<u16> = self.sentinels.iter().map(named_by).collect();
        ports.sort_unstable();
        ports[ports.len() / 2]
    }

    /// Waits until all sentinels name another master than the one at `port`, which calls itself one; its place among the servers.
    pub fn wait_for_another_than(&self, port: u16) -> usize {
        wait("another master", || {
            let ports: Vec<u16> = self.sentinels.iter().map(named_by).collect();
            ports[0] != port && ports.iter().all(|named| *named == ports[0]) && self.is_master(self.place_of(ports[0]))
        });
        self.place_of(self.master_port())
    }

    /// Waits until the server at that place follows another.
    pub fn wait_until_it_follows(&self, place: usize) {
        wait("an old master that follows", || {
            self.servers[place].command(&["INFO", "replication"]).contains("master_link_status:up")
        });
    }

    /// Has a replica take over from the living master, as an operator does; the new master's place.
    pub fn hand_over(&self) -> usize {
        let before = self.master_port();
        wait("a fail-over that began", || {
            self.sentinels[0].command(&["SENTINEL", "FAILOVER", SERVICE]).starts_with("+OK")
        });
        self.wait_for_another_than(before)
    }

    fn is_master(&self, place: usize) -> bool {
        self.servers[place].command(&["INFO", "replication"]).contains("role:master")
    }

    fn place_of(&self, port: u16) -> usize {
        self.servers.iter().position(|server| server.port == port).expect("a master among the servers")
    }
}

/// A sentinel that speaks TLS only, with the certificates of [`RedisServer::with_tls_and_users`], and watches that server over TLS.
pub fn sentinel_with_tls(master: &RedisServer) -> RedisServer {
    let folder = tempfile::tempdir().expect("a folder");
    let (port, of) = (free_port(), master.port);
    let (place, theirs) = (folder.path().display(), master.folder.path().display());
    let configuration = format!(
        "port 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\ndir {place}\nlogfile sentinel.log\n\
         tls-cert-file {theirs}/server.pem\ntls-key-file {theirs}/server.key\ntls-ca-cert-file {theirs}/ca.pem\n\
         sentinel monitor {SERVICE} 127.0.0.1 {of} 1\n\
         sentinel auth-user {SERVICE} taiji\nsentinel auth-pass {SERVICE} p@ss_word\n\
         sentinel down-after-milliseconds {SERVICE} 60000\n"
    );
    RedisServer::sentinel(folder, port, &configuration)
}

fn sentinel(master: u16) -> RedisServer {
    let folder = tempfile::tempdir().expect("a folder");
    let port = free_port();
    let place = folder.path().display();
    let configuration = format!(
        "port {port}\ndir {place}\nlogfile sentinel.log\n\
         user {SENTINEL_USER} on >{SENTINEL_PASSWORD} +@connection +role +sentinel|masters\n\
         sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n\
         sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n\
         sentinel failover-timeout {SERVICE} 5000\n\
         sentinel parallel-syncs {SERVICE} 2\n"
    );
    RedisServer::sentinel(folder, port, &configuration)
}

/// Port of the master that one sentinel names.
fn named_by(sentinel: &RedisServer) -> u16 {
    let answer = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
    answer.lines().nth(4).and_then(|port| port.trim().parse().ok()).expect("an address")
}
