//! A Redis Cluster of three masters with a replica each, whose roles change.
//!
//! In: faults. Out: who is a master now, and from when to when acknowledged writes may have been lost. Callers: `site` holds it,
//! `faults` strikes, `gather` asks.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use testkit::process::wait_until;
use testkit::redis::{RedisCluster, RedisServer};

/// Longest wait for a take-over, or until the old master follows, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// A replica in order may be behind by so much, on such a machine.
const REPLICA_LAG: Duration = Duration::from_secs(2);
/// An old master that goes on learns within this that it is none any more.
const LEARNS: Duration = Duration::from_secs(5);

/// All six servers.
pub struct Cluster {
    url: String,
    pairs: Vec<Mutex<Pair>>,
}

/// Two servers with the same slots.
pub struct Pair {
    servers: [RedisServer; 2],
}

/// When acknowledged writes may have been lost.
pub type Lost = (Instant, Instant);

impl Cluster {
    /// Starts it.
    pub fn start() -> Cluster {
        let cluster = RedisCluster::start_with_replicas();
        let url = cluster.url();
        let pairs = cluster.nodes.into_iter().zip(cluster.replicas);
        let pairs = pairs.map(|(node, replica)| Mutex::new(Pair { servers: [node, replica] })).collect();
        Cluster { url, pairs }
    }

    /// `redis+cluster://` address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The servers of a third of the slots.
    pub fn pair(&self, place: usize) -> MutexGuard<'_, Pair> {
        self.pairs[place % self.pairs.len()].lock().expect("pair")
    }

    /// Sends a command to every master.
    pub fn masters(&self, command: &[&str]) -> Vec<String> {
        self.pairs.iter().map(|pair| pair.lock().expect("pair").master().command(command)).collect()
    }
}

impl Pair {
    fn is_master(server: &RedisServer) -> bool {
        server.command(&["INFO", "replication"]).contains("role:master")
    }

    fn master_place(&self) -> usize {
        wait_until("a master", PATIENCE, || self.servers.iter().position(Self::is_master))
    }

    fn master(&self) -> &RedisServer {
        &self.servers[self.master_place()]
    }

    /// Until the server there is a replica that has what its master has said.
    fn wait_for_follower(&self, place: usize) {
        wait_until("an old master that follows", PATIENCE, || {
            let info = self.servers[place].command(&["INFO", "replication"]);
            (info.contains("role:slave") && info.contains("master_link_status:up")).then_some(())
        });
    }

    fn wait_for_take_over(&self, place: usize) {
        wait_until("a replica that takes over", PATIENCE, || Self::is_master(&self.servers[place]).then_some(()));
    }

    /// kill -9 of the master; it comes back when its replica has taken over.
    pub fn kill_master(&mut self) -> Lost {
        let place = self.master_place();
        let from = Instant::now() - REPLICA_LAG;
        self.servers[place].kill();
        self.wait_for_take_over(1 - place);
        let to = Instant::now();
        self.servers[place].restart();
        self.wait_for_follower(place);
        (from, to)
    }

    /// The master is stopped (SIGSTOP) for longer than the cluster waits, and wakes up with an old map.
    pub fn freeze_master(&mut self, time: Duration) -> Lost {
        let place = self.master_place();
        let from = Instant::now() - REPLICA_LAG;
        self.servers[place].signal("STOP");
        std::thread::sleep(time);
        self.wait_for_take_over(1 - place);
        self.servers[place].signal("CONT");
        self.wait_for_follower(place);
        (from, Instant::now() + LEARNS)
    }

    /// The replica loses its master for a while, which is then killed: the replica takes over with what it had.
    pub fn promote_stale_replica(&mut self, cut: Duration) -> Lost {
        let place = self.master_place();
        let [master, replica] = [&self.servers[place], &self.servers[1 - place]];
        // A master without a password refuses whoever brings one.
        replica.command(&["CONFIG", "SET", "masterauth", "nobody"]);
        let from = Instant::now() - REPLICA_LAG;
        master.command(&["CLIENT", "KILL", "TYPE", "replica"]);
        std::thread::sleep(cut);
        self.servers[place].kill();
        self.wait_for_take_over(1 - place);
        let to = Instant::now();
        self.servers[1 - place].command(&["CONFIG", "SET", "masterauth", ""]);
        self.servers[place].restart();
        self.wait_for_follower(place);
        (from, to)
    }

    /// The master answers nobody for a while.
    pub fn pause_clients(&self, time: Duration) {
        super::site::pause_clients(self.master(), time);
    }
}
