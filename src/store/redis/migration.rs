//! `taiji migrate`: what would bring a namespace to this program's layout, and what would close the way back.
//!
//! In: an address. Out: the steps, carried out on demand; each may be repeated. `apply` carries data over and raises `written`;
//! earlier programs go on beside it. `clean` carries over what they wrote since, raises `readable_from` and `schema`, and removes the
//! functions of earlier builds.
//!
//! A layout whose records must be carried over gets a [`Step`] of its own here, before [`Step::RaiseWritten`].

use super::RedisOptions;
use super::address::Address;
use super::call::Call;
use super::functions::{self, function};
use super::keys::Keys;
use super::link::{self, Link};
use super::members::{self, Found};
use super::schema::{self, Epoch, NEWEST_KNOWN, ONE_QUEUE};
use super::values::read;
use crate::store::{Queue, StoreResult};
use redis::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The library of 0.1.0.
const FIRST_LIBRARY: &str = "taiji_1";
/// Users of a queue that one call moves, and what one costs, in µs: much, where a caller waits for them.
const MOVED: u32 = 50;
const MOVED_COST: u32 = 50;
/// Leases of one shard that are looked at; one of 0.1.0 among them is enough.
const LEASES_SEEN: usize = 1000;

/// One step of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write this build's functions onto that master.
    LoadFunctions(String),
    /// Write layouts and shard count into an empty namespace.
    Initialise {
        /// Shards of the due queue; never changed later.
        shards: u32,
    },
    /// Write into a namespace that is nobody's whose it is (`store.cluster`).
    TakeOwnership {
        /// Its name.
        cluster: String,
    },
    /// Move users out of the queues of single spaces into those of all spaces; may be broken off and begun again.
    MoveQueues {
        /// Those spaces.
        spaces: Vec<String>,
        /// Leases that run go along: no program holds them that looks for them where they are.
        with_leases: bool,
    },
    /// Say that records of the newest layout this program knows may stand there.
    RaiseWritten {
        /// What stood there.
        from: u64,
        /// Oldest layout in use.
        readable_from: u64,
    },
    /// Say that nothing older than this layout is left: earlier programs refuse the namespace from then on.
    CloseWayBack {
        /// That layout.
        to: u64,
    },
    /// Remove a library of functions that no live process calls.
    DeleteLibrary {
        /// The master.
        node: String,
        /// The library.
        library: String,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::LoadFunctions(node) => write!(formatter, "load the functions {} onto {node}", functions::library()),
            Step::Initialise { shards } => {
                write!(formatter, "initialise the namespace: layout {NEWEST_KNOWN}, {shards} shards of the due queue")
            }
            Step::TakeOwnership { cluster } => {
                write!(
                    formatter,
                    "give the namespace to cluster {cluster}: processes without that name cannot start again"
                )
            }
            Step::MoveQueues { spaces, .. } => {
                write!(formatter, "move the due queues of single spaces ({}) into one of all", spaces.join(", "))
            }
            Step::RaiseWritten { from, .. } => {
                write!(formatter, "allow layout {NEWEST_KNOWN} to be written, beside layout {from}")
            }
            Step::CloseWayBack { to } => write!(formatter, "close the way back to programs that know no layout {to}"),
            Step::DeleteLibrary { node, library } => write!(formatter, "remove the functions {library} from {node}"),
        }
    }
}

/// What `taiji migrate` found and would do.
pub struct Migration {
    pub(super) link: Arc<Link>,
    pub(super) keys: Keys,
    pub(super) shards: u32,
    pub(super) cluster: String,
    /// Of `apply`, in order; none when all is up to date.
    pub steps: Vec<Step>,
}

/// What `taiji migrate clean` would do, and what stands against it.
pub struct Cleaning {
    /// In order; none when nothing of earlier builds is left.
    pub steps: Vec<Step>,
    /// Why it must not be done now; none when it may.
    pub objections: Vec<String>,
}

impl Migration {
    /// Connects and looks; writes nothing.
    pub async fn look(address: Address, options: &RedisOptions) -> StoreResult<Migration> {
        let link = Link::open(address, options).await?;
        let keys = Keys::new(&options.namespace);
        let epoch = Epoch::read(&link, &keys).await?;
        epoch.check(&link, &options.cluster)?;
        let lacking = libraries(&link).await?.into_iter().filter(|(_, found)| !found.contains(functions::library()));
        let mut steps: Vec<Step> = lacking.map(|(node, _)| Step::LoadFunctions(node)).collect();
        if epoch.schema.is_none() {
            steps.push(Step::Initialise { shards: options.shards });
        } else if epoch.written < NEWEST_KNOWN {
            let spaces = noted_spaces(&link, &keys).await?;
            steps.extend((!spaces.is_empty()).then_some(Step::MoveQueues { spaces, with_leases: false }));
            steps.push(Step::RaiseWritten { from: epoch.written, readable_from: epoch.readable_from });
        }
        if epoch.schema.is_some() && epoch.cluster.is_empty() && !options.cluster.is_empty() {
            steps.push(Step::TakeOwnership { cluster: options.cluster.clone() });
        }
        Ok(Migration { link, keys, shards: epoch.shards.max(1), cluster: options.cluster.clone(), steps })
    }

    /// Carries the steps out.
    pub async fn apply(&self) -> StoreResult<()> {
        self.carry_out(&self.steps).await
    }

    /// What would remove what is left of earlier builds. `none_left` is the operator's word that no process of 0.1.0, which
    /// leaves no entry, runs on these servers.
    pub async fn look_for_leftovers(&self, none_left: bool) -> StoreResult<Cleaning> {
        let epoch = Epoch::read(&self.link, &self.keys).await?;
        let alive = members::all(&self.link).await?;
        let mut objections = Vec::new();
        if !self.steps.is_empty() {
            objections.push("the namespace is not up to date: run `taiji migrate … apply` first".to_string());
        }
        let ours = |member: &&Found| self.keys.is_namespace(&member.namespace);
        for other in alive.iter().filter(ours).filter(|member| member.library != functions::library()) {
            let Found { id, roles, build, library, .. } = other;
            objections.push(format!(
                "process {id} (roles {roles}) of another build is alive ({build}, {library}; this program is {}): stop it",
                functions::library()
            ));
        }
        for late in alive.iter().filter(ours).filter(|member| member.library == functions::library()) {
            if late.written < epoch.written {
                let Found { id, roles, .. } = late;
                objections.push(format!(
                    "process {id} (roles {roles}) has not noticed yet that layout {} may be written: wait half a minute",
                    epoch.written
                ));
            }
        }
        let mut steps = Vec::new();
        let newest = epoch.written.max(NEWEST_KNOWN);
        if epoch.readable_from < ONE_QUEUE {
            let spaces = noted_spaces(&self.link, &self.keys).await?;
            steps.extend((!spaces.is_empty()).then_some(Step::MoveQueues { spaces, with_leases: true }));
        }
        if epoch.readable_from < newest || epoch.schema.is_some_and(|schema| schema < newest) {
            steps.push(Step::CloseWayBack { to: newest });
        }
        let in_use: BTreeSet<&str> =
            alive.iter().map(|member| member.library.as_str()).chain([functions::library()]).collect();
        for (node, found) in libraries(&self.link).await? {
            let unused = found.into_iter().filter(|library| !in_use.contains(library.as_str()));
            steps.extend(unused.map(|library| Step::DeleteLibrary { node: node.clone(), library }));
        }
        let removes_first =
            steps.iter().any(|step| matches!(step, Step::DeleteLibrary { library, .. } if library == FIRST_LIBRARY));
        if removes_first {
            objections.extend(self.first_build_alive().await?);
            if !none_left {
                objections.push(format!(
                    "{FIRST_LIBRARY}, the functions of 0.1.0, is loaded, and 0.1.0 does not tell that it runs: pass \
                     --no-0.1.0-left once no process of it is left on this Redis, under any namespace"
                ));
            }
        }
        Ok(Cleaning { steps, objections })
    }

    /// Carries a cleaning out. The way back is closed before functions go: who starts in between is refused.
    pub async fn clean(&self, cleaning: &Cleaning) -> StoreResult<()> {
        self.carry_out(&cleaning.steps).await
    }

    /// Leases that a process of 0.1.0 holds now: only ours have a token that begins with 0.
    async fn first_build_alive(&self) -> StoreResult<Option<String>> {
        let now_ms: (i64, i64) = read("time", self.link.one("clean", Call::beside("TIME", &self.keys.epoch())).await?)?;
        let now_ms = now_ms.0 * 1000 + now_ms.1 / 1000;
        for key in self.link.scan("clean", "*:lease:{*").await? {
            let Some((before, rest)) = key.split_once(":lease:{").filter(|(before, _)| !before.contains(':')) else {
                continue;
            };
            let leased = format!("{before}:leased:{{{rest}");
            let running = Call::new("ZRANGEBYSCORE", &key).arg(now_ms).arg("+inf").arg("LIMIT").arg(0).arg(LEASES_SEEN);
            let users: Vec<String> = read(&key, self.link.one("clean", running).await?)?;
            if users.is_empty() {
                continue;
            }
            let tokens = self.link.one("clean", Call::new("HMGET", &leased).arg(&users)).await?;
            let leases: Vec<Option<String>> = read(&leased, tokens)?;
            if leases.iter().flatten().any(|lease| !lease.starts_with('0')) {
                return Ok(Some(format!("a process of 0.1.0 holds leases at {key}: stop it")));
            }
        }
        Ok(None)
    }

    async fn carry_out(&self, steps: &[Step]) -> StoreResult<()> {
        let key = self.keys.epoch();
        for step in steps {
            match step {
                Step::LoadFunctions(node) => self.on(node, &schema::present()).await?,
                Step::Initialise { shards } => {
                    schema::initialise(&self.link, &self.keys, *shards, &self.cluster).await?;
                }
                Step::TakeOwnership { cluster } => schema::take_ownership(&self.link, &self.keys, cluster).await?,
                Step::MoveQueues { spaces, with_leases } => {
                    for space in spaces {
                        self.move_queues(space, *with_leases).await?;
                    }
                }
                Step::RaiseWritten { readable_from, .. } => {
                    let calls = vec![
                        Call::new("HSETNX", &key).arg("readable_from").arg(*readable_from),
                        Call::new("HSET", &key).arg("written").arg(NEWEST_KNOWN),
                    ];
                    self.link.run("migrate", calls).await?;
                }
                Step::CloseWayBack { to } => {
                    let close = Call::new("HSET", &key).arg("schema").arg(*to).arg("readable_from").arg(*to);
                    self.link.one("clean", close).await?;
                }
                Step::DeleteLibrary { node, library } => {
                    let mut delete = redis::cmd("FUNCTION");
                    delete.arg("DELETE").arg(library);
                    self.on(node, &delete).await?;
                }
            }
        }
        Ok(())
    }

    /// Moves what stands in the queues of one space, until nothing is left.
    async fn move_queues(&self, space: &str, with_leases: bool) -> StoreResult<()> {
        let space = [space.to_string()];
        for (queue, shard) in Queue::ALL.into_iter().flat_map(|queue| (0..self.shards).map(move |shard| (queue, shard)))
        {
            let keys = self.keys.queue_forms(queue, shard, &space);
            loop {
                // Two forms, and users are marked in the first one.
                let call = Call::function(function!("move"), &keys).arg("").arg(2).arg(1).arg(MOVED);
                let call = call.arg(u8::from(with_leases)).costing(MOVED * MOVED_COST);
                if read::<u32>(&keys[0], self.link.one("migrate", call).await?)? < MOVED {
                    break;
                }
            }
        }
        Ok(())
    }

    /// One command on a master of that name; nothing where it is none any more.
    async fn on(&self, name: &str, cmd: &redis::Cmd) -> StoreResult<()> {
        if let Some(node) = self.link.masters().into_iter().find(|node| link::name(node) == *name) {
            self.link.on("migrate", &node, cmd).await?;
        }
        Ok(())
    }
}

/// Spaces that were noted, by programs of any layout.
async fn noted_spaces(link: &Link, keys: &Keys) -> StoreResult<Vec<String>> {
    let key = keys.spaces();
    let noted: Vec<Vec<u8>> = read(&key, link.one("read spaces", Call::new("SMEMBERS", &key)).await?)?;
    // One that cannot be read is put aside by who serves; no queue is named by it.
    let mut spaces: Vec<String> = noted.into_iter().filter_map(|space| String::from_utf8(space).ok()).collect();
    spaces.sort_unstable();
    Ok(spaces)
}

/// The libraries of taiji that each master holds.
async fn libraries(link: &Link) -> StoreResult<Vec<(String, BTreeSet<String>)>> {
    let mut list = redis::cmd("FUNCTION");
    list.arg("LIST").arg("LIBRARYNAME").arg("taiji_*");
    let answers = link.everywhere("read functions", &list).await?;
    let masters = link.masters();
    masters.iter().zip(answers).map(|(node, answer)| Ok((link::name(node), names(answer)?))).collect()
}

/// The names in an answer to `FUNCTION LIST`.
fn names(answer: Value) -> StoreResult<BTreeSet<String>> {
    let libraries: Vec<HashMap<String, Value>> = read("functions", answer)?;
    let name =
        |mut library: HashMap<String, Value>| read("functions", library.remove("library_name").unwrap_or_default());
    libraries.into_iter().map(name).collect()
}
