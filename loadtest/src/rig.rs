//! A service to put load on: one that runs already, or one that is started here on a Redis of its own.
//!
//! In: a [`Place`] of the command line. Out: a [`Rig`], its users filled in. What is started has keys and metrics on, answers out of the canned engine, and dies with the rig.
//! A rig of the tests that cannot start panics with what the program said; what can be seen beforehand is refused here.

use crate::load::calls::{Peer, now_ms};
use crate::load::http::{self, HttpError};
use crate::process::{ProcessError, stay_on};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use testkit::process::{Server, Setup};
use testkit::proxy::Proxy;
use testkit::redis::RedisServer;

/// What a service that is started here asks for.
const KEY: &str = "load-test-admin-key";
/// Users in a call that fills, and events of each.
const CALL: usize = 200;
const EVENTS: usize = 3;
/// One answer, and all of the filling.
const SOON: Duration = Duration::from_secs(30);
const FILLED: Duration = Duration::from_secs(300);
/// Between two looks at whether all are there.
const LOOK: Duration = Duration::from_millis(50);
/// As Redis is run where its data count.
const REDIS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "everysec"];
/// Where the generator and where all others run, if they are kept apart.
const CORES: (usize, usize) = (0, 1);

/// Where load is put.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// A service that runs: http://HOST:PORT
    #[arg(long, conflicts_with = "program")]
    pub(crate) url: Option<String>,
    /// Its key, with the rights of what is called
    #[arg(long, requires = "url")]
    pub(crate) key: Option<String>,
    /// Its process, for memory and processor time
    #[arg(long, requires = "url")]
    pub(crate) pid: Option<u32>,
    /// Posts the users' events to it first; a service that is started here is always filled
    #[arg(long, requires = "url")]
    pub(crate) fill: bool,
    /// Else: a taiji to start on a Redis of its own, with the canned engine
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
    /// The bundle it serves
    #[arg(long, default_value = "models/demo/1")]
    pub(crate) bundle: PathBuf,
    /// On Valkey instead of Redis
    #[arg(long)]
    pub(crate) valkey: bool,
    /// The generator on the first core, service and Redis on the second
    #[arg(long)]
    pub(crate) split_cores: bool,
    /// Users there are, named load-0, load-1, …
    #[arg(long, default_value_t = 1000)]
    pub(crate) users: usize,
}

/// Why there is nothing to put load on.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// Neither of the two.
    #[error("name a running service (--url) or a program to start (--program target/release/taiji)")]
    NoPlace,
    /// A scenario that breaks the store needs a store of its own.
    #[error("{0} takes Redis away: start a service for it with --program")]
    NeedsProgram(&'static str),
    /// The URL is not one that is spoken here.
    #[error("--url {0}: wanted is http://HOST:PORT")]
    Url(String),
    /// A file of the program or of the bundle.
    #[error("{0} is not there: run `make build`")]
    Missing(PathBuf),
    /// For what is started.
    #[error("a temporary folder: {0}; set TMPDIR")]
    Folder(std::io::Error),
    /// It carries none.
    #[error("valkey: scripts/valkey.sh cannot get one here; leave out --valkey")]
    NoValkey,
    /// No answer.
    #[error("{what}: {cause}")]
    Http {
        /// What was called.
        what: &'static str,
        /// How it failed.
        cause: HttpError,
    },
    /// Another answer than was wanted.
    #[error("{what} answered {status}: {said}")]
    Answer {
        /// What was called.
        what: &'static str,
        /// Its status.
        status: u16,
        /// The beginning of its body.
        said: String,
    },
    /// The features do not come.
    #[error("{present} of {users} users have features after {FILLED:?}; does a process with the role infer run?")]
    NotFilled {
        /// So many have.
        present: usize,
        /// Of so many.
        users: usize,
    },
    /// A process of ours.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A service under load.
pub(crate) struct Rig {
    /// How it is called.
    pub(crate) peer: Peer,
    /// Of the service, where known.
    pub(crate) pid: Option<u32>,
    /// What was started for it.
    pub(crate) started: Option<Started>,
}

/// What lives as long as the rig. The order is that of their end.
pub(crate) struct Started {
    _service: Server,
    /// Between the service and its Redis.
    pub(crate) proxy: Proxy,
    pub(crate) redis: RedisServer,
    _folder: tempfile::TempDir,
}

/// How a started service differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roles {
    /// Reads alone are asked of it: when it is filled it starts anew as `api`, so that nothing else runs beside them.
    Api,
    /// It refreshes under load.
    All,
}

/// Users' names, by rank.
pub(crate) fn user(rank: usize) -> String {
    format!("load-{rank}")
}

impl Rig {
    /// Reaches or starts the service, and fills it. `proxied`: its Redis can be taken away.
    pub(crate) fn start(place: &Place, roles: Roles, proxied: bool) -> Result<Rig, RigError> {
        match (&place.url, &place.program) {
            (Some(url), _) => Rig::reach(url, place),
            (None, Some(program)) => {
                let manifest = place.bundle.join("manifest.json");
                if let Some(missing) = [program, &manifest].into_iter().find(|path| !path.is_file()) {
                    return Err(RigError::Missing(missing.clone()));
                }
                Rig::launch(&program.display().to_string(), place, roles, proxied)
            }
            (None, None) => Err(RigError::NoPlace),
        }
    }

    fn reach(url: &str, place: &Place) -> Result<Rig, RigError> {
        let address = url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let address = address.filter(|address| !address.is_empty() && !address.contains('/'));
        let address = address.ok_or_else(|| RigError::Url(url.to_string()))?.to_string();
        let peer = Peer { address, key: place.key.clone() };
        if place.fill {
            fill(&peer, place.users)?;
        }
        Ok(Rig { peer, pid: place.pid, started: None })
    }

    fn launch(program: &str, place: &Place, roles: Roles, proxied: bool) -> Result<Rig, RigError> {
        if place.split_cores {
            stay_on(CORES.1)?;
        }
        let redis = match place.valkey {
            false => RedisServer::with(&REDIS),
            true => RedisServer::valkey(&REDIS).ok_or(RigError::NoValkey)?,
        };
        let proxy = Proxy::to(&format!("127.0.0.1:{}", redis.port));
        let url = if proxied {
            redis.url().replace(&format!("127.0.0.1:{}", redis.port), proxy.address())
        } else {
            redis.url()
        };
        let folder = tempfile::tempdir().map_err(RigError::Folder)?;
        let setup =
            Setup::canned_of(program, &place.bundle, folder.path()).on(&url).env("TAIJI__AUTH__ADMIN_KEYS", KEY);
        let mut service = setup.start();
        let peer = |service: &Server| Peer { address: service.public().to_string(), key: Some(KEY.to_string()) };
        fill(&peer(&service), place.users)?;
        if roles == Roles::Api {
            service.stop();
            service = setup.flag("--roles", "api").start();
        }
        if place.split_cores {
            stay_on(CORES.0)?;
        }
        let (peer, pid) = (peer(&service), Some(service.pid()));
        Ok(Rig { peer, pid, started: Some(Started { _service: service, proxy, redis, _folder: folder }) })
    }

    /// What must be there for a scenario that takes Redis away.
    pub(crate) fn started(&self, scenario: &'static str) -> Result<&Started, RigError> {
        self.started.as_ref().ok_or(RigError::NeedsProgram(scenario))
    }
}

impl Started {
    /// The process of Redis.
    pub(crate) fn redis_pid(&self) -> Option<u32> {
        let info = self.redis.command(&["INFO", "server"]);
        info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
    }
}

/// Events of all users, then a wait until all have features.
fn fill(peer: &Peer, users: usize) -> Result<(), RigError> {
    let began = Instant::now();
    let ranks: Vec<usize> = (0..users).collect();
    for part in ranks.chunks(CALL) {
        let events: Vec<Value> = part.iter().flat_map(|rank| events_of(*rank)).collect();
        call(peer, "POST", "/v1/events", &json!({ "events": events }).to_string(), "filling with events")?;
    }
    for part in ranks.chunks(CALL) {
        let names: Vec<String> = part.iter().map(|rank| user(*rank)).collect();
        let body = json!({"users": names, "groups": ["intra"]}).to_string();
        loop {
            let answer = call(peer, "POST", "/v1/features", &body, "looking for features")?;
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
            let present =
                answer["status"].as_array().map_or(0, |all| all.iter().filter(|one| *one == "PRESENT").count());
            if present == part.len() {
                break;
            }
            if began.elapsed() > FILLED {
                let present = part[0] + present;
                return Err(RigError::NotFilled { present, users });
            }
            std::thread::sleep(LOOK);
        }
    }
    Ok(())
}

/// The last one makes the user due at once.
fn events_of(rank: usize) -> impl Iterator<Item = Value> {
    let now = now_ms();
    (0..EVENTS).map(move |nth| {
        let action = if nth + 1 == EVENTS { "purchase" } else { "click" };
        let item = (rank * 7 + nth) % 500;
        json!({"user_id": user(rank), "item_id": format!("i{item}"), "action": action, "ts_ms": now - 1000 * (EVENTS - nth) as u64})
    })
}

/// The body of an answer 2xx.
pub(crate) fn call(peer: &Peer, method: &str, path: &str, body: &str, what: &'static str) -> Result<Vec<u8>, RigError> {
    let request = peer.request(method, path, body);
    let (status, answer) = http::ask(&peer.address, &request, SOON).map_err(|cause| RigError::Http { what, cause })?;
    if !(200..300).contains(&status) {
        let said = String::from_utf8_lossy(&answer).chars().take(300).collect();
        return Err(RigError::Answer { what, status, said });
    }
    Ok(answer)
}
