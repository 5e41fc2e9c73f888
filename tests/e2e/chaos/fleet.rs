//! Our processes and their supervisor.
//!
//! In: what each member is started with. Out: their addresses; kills, stops, restarts. Callers: `run` starts and ends the fleet,
//! `faults` does things to members, `reader` and `check` ask those that answer.
//!
//! The supervisor does what any would: what ends is started again. Whether it should have ended is judged here: a SIGTERM
//! ends with 0; nothing ends by itself, whatever is away.

use super::calm::Calm;
use super::site::Site;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::TAIJI;
use testkit::process::{EAGER, call, command, free_address};

/// Longest time until a member is ready, or gone after a SIGTERM, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all members are started with.
pub struct Launch {
    /// Bundle, store, topics, brokers.
    pub flags: Vec<String>,
    /// Settings beside [`EAGER`] and [`QUICK`].
    pub environment: Vec<(&'static str, String)>,
    /// Where each writes its log.
    pub folder: PathBuf,
}

/// One process, or the place of one.
pub struct Member {
    /// For the story.
    pub name: String,
    /// Public address.
    pub listen: String,
    /// Disturbed from the moment something is done to it until it is ready again.
    pub calm: Arc<Calm>,
    /// `--roles`; empty for all.
    roles: &'static str,
    /// Operators' address.
    pub admin: String,
    log: PathBuf,
    flags: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Locked while something is done to it.
    child: Mutex<Option<Child>>,
}

/// All members; the last place is empty until a fault fills it.
pub struct Fleet {
    /// In the order of their names.
    pub members: Vec<Member>,
}

impl Fleet {
    /// Starts a member for each of the roles, and keeps a place for one more. Returns when all are ready.
    pub fn start(launch: &Launch, roles: &[&'static str], site: &Site) -> Fleet {
        let extra = roles.iter().find(|roles| takes_events(roles)).copied().unwrap_or_default();
        let named = roles.iter().chain([&extra]).enumerate();
        let fleet = Fleet { members: named.map(|(number, roles)| Member::new(launch, number, roles)).collect() };
        std::thread::scope(|scope| {
            for member in fleet.regular() {
                scope.spawn(|| member.revive(&mut member.child.lock().expect("member"), site));
            }
        });
        fleet
    }

    /// Those who are always there.
    pub fn regular(&self) -> &[Member] {
        self.members.split_last().map_or(&[], |(_, regular)| regular)
    }

    /// The place of the one who joins and leaves.
    pub fn extra(&self) -> &Member {
        self.members.last().expect("a place")
    }

    /// Those with a public port worth asking.
    pub fn api(&self) -> Vec<&Member> {
        self.regular().iter().filter(|member| member.roles.is_empty() || member.roles.contains("api")).collect()
    }

    /// Starts again what ended by itself, which must not be.
    pub fn watch(&self, site: &Site) {
        for member in self.regular() {
            // Whoever holds it looks after it.
            let Ok(mut child) = member.child.try_lock() else { continue };
            let ended = child.as_mut().and_then(|child| child.try_wait().expect("wait"));
            if let Some(status) = ended {
                site.violation(format!("{} ended by itself: {status}; {}", member.name, member.last_words()));
                let _disturbance = member.calm.disturb();
                member.revive(&mut child, site);
            }
        }
    }

    /// Whether all who should be are ready.
    pub fn is_ready(&self) -> bool {
        self.regular().iter().all(|member| member.calm.stamp().is_none() || member.is_ready())
    }

    /// Stops everybody.
    pub fn end(&self, site: &Site) {
        std::thread::scope(|scope| {
            for member in &self.members {
                scope.spawn(|| {
                    let mut child = member.child.lock().expect("member");
                    if child.is_some() {
                        member.terminate(&mut child, site);
                    }
                });
            }
        });
        for member in &self.members {
            let log = std::fs::read_to_string(&member.log).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                site.violation(format!("{} panicked: {line}", member.name));
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Ok(child) = self.child.get_mut() {
            kill(child);
        }
    }
}

impl Member {
    fn new(launch: &Launch, number: usize, roles: &'static str) -> Member {
        let name = if roles.is_empty() { format!("m{number}") } else { format!("m{number}({roles})") };
        Member {
            log: launch.folder.join(format!("m{number}.log")),
            name,
            listen: free_address(),
            admin: free_address(),
            calm: Arc::default(),
            roles,
            flags: launch.flags.clone(),
            environment: launch.environment.clone(),
            child: Mutex::new(None),
        }
    }

    /// kill -9 and a new start. Returns the time from the start until it is ready.
    pub fn kill_and_start(&self, site: &Site) -> Duration {
        let mut child = self.child.lock().expect("member");
        let _disturbance = self.calm.disturb();
        kill(&mut child);
        self.revive(&mut child, site)
    }

    /// SIGTERM, which must end it with 0, and a new start. Returns as above.
    pub fn stop_and_start(&self, site: &Site) -> Duration {
        let mut child = self.child.lock().expect("member");
        let _disturbance = self.calm.disturb();
        self.terminate(&mut child, site);
        self.revive(&mut child, site)
    }

    /// SIGSTOP for a while: to all others it is as good as dead, and then it goes on as if nothing had been.
    pub fn freeze(&self, time: Duration) {
        let child = self.child.lock().expect("member");
        let _disturbance = self.calm.disturb();
        let Some(running) = child.as_ref() else { return };
        let signal = |name: &str| {
            let status = Command::new("kill").args([name, &running.id().to_string()]).status();
            assert!(status.expect("kill").success(), "kill {name}");
        };
        signal("-STOP");
        std::thread::sleep(time);
        signal("-CONT");
        let back = Instant::now();
        while !self.is_ready() && back.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Joins for a while, then leaves: stopped, or killed.
    pub fn visit(&self, stay: Duration, leaves_killed: bool, site: &Site) {
        let mut child = self.child.lock().expect("member");
        let _disturbance = self.calm.disturb();
        self.revive(&mut child, site);
        std::thread::sleep(stay);
        match leaves_killed {
            true => kill(&mut child),
            false => self.terminate(&mut child, site),
        }
    }

    fn is_ready(&self) -> bool {
        call(&self.admin, "GET", "/readyz", &[], b"").is_ok_and(|answer| answer.status == 200)
    }

    /// Starts it, as often as it takes, until it is ready.
    fn revive(&self, child: &mut Option<Child>, site: &Site) -> Duration {
        let first = Instant::now();
        let mut running = self.spawn();
        loop {
            if let Some(status) = running.try_wait().expect("wait") {
                site.violation(format!("{} did not start: {status}; {}", self.name, self.last_words()));
                std::thread::sleep(Duration::from_millis(500));
                running = self.spawn();
            }
            if self.is_ready() {
                break;
            }
            if first.elapsed() > PATIENCE {
                site.violation(format!("{} is not ready after {PATIENCE:?}; {}", self.name, self.last_words()));
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        *child = Some(running);
        first.elapsed()
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(&self.log).expect("log");
        let mut command: Command = command(&TAIJI, &["serve", "--listen", &self.listen, "--admin-listen", &self.admin]);
        if !self.roles.is_empty() {
            command.args(["--roles", self.roles]);
        }
        command
            .args(&self.flags)
            .envs(EAGER)
            .envs(QUICK)
            .envs(self.environment.iter().cloned())
            .stdout(std::process::Stdio::null())
            .stderr(log);
        command.spawn().expect("taiji")
    }

    fn terminate(&self, child: &mut Option<Child>, site: &Site) {
        let Some(mut running) = child.take() else { return };
        let begun = Instant::now();
        let signalled = Command::new("kill").args(["-TERM", &running.id().to_string()]).status();
        signalled.expect("kill");
        let status = loop {
            if let Some(status) = running.try_wait().expect("wait") {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                site.violation(format!("{} did not end {PATIENCE:?} after SIGTERM", self.name));
                running.kill().expect("kill");
                break running.wait().expect("wait");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status.code() != Some(0) {
            site.violation(format!("{} ended with {status} after SIGTERM; {}", self.name, self.last_words()));
        }
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        last_lines(&self.log, 3)
    }
}

/// Beside [`EAGER`]: leases of the dead run out soon, failed refreshes and erasures come again soon, and all items are shown.
const QUICK: [(&str, &str); 4] = [
    ("TAIJI__REFRESH__LEASE_MS", "3000"),
    ("TAIJI__REFRESH__RETRY_MS", "300"),
    ("TAIJI__RETRIEVE__MIN_ITEM_USERS", "1"),
    ("TAIJI__ERASE__INTERVAL_MS", "5000"),
];

fn takes_events(roles: &str) -> bool {
    roles.is_empty() || roles.contains("ingest")
}

fn kill(child: &mut Option<Child>) {
    if let Some(mut running) = child.take() {
        // It may have ended by itself.
        let _ = running.kill();
        let _ = running.wait();
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}
