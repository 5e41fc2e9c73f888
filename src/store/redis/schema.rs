//! The layout of a namespace, and whether this program may open it.
//!
//! In: a link. Out: what `ns:epoch` says, and the shard count of a namespace that was made ready. Callers: opening a store,
//! `members`, `migration`. An empty namespace is initialised by whoever opens it; what is there is changed by `taiji migrate`
//! only.
//!
//! | field of `ns:epoch` | meaning |
//! |---|---|
//! | `schema` | all that 0.1.0 knows: it opens 1 and nothing else. 1 until `migrate clean` |
//! | `written` | newest layout in use: a program must know it |
//! | `readable_from` | oldest layout in use: a program must know that, too |
//! | `shards` | shards of the due queue, for ever |
//! | `cluster` | whose namespace it is, where somebody has named himself (`store.cluster`) |
//!
//! A form changes in two steps. A release that reads both forms goes out first and writes the old one; once `migrate apply` has raised
//! `written`, it writes the new one. So the release before can come back until `migrate clean` raises `readable_from`. (A queue is what the
//! sweep makes anew: a release that does not read its new form marks users in the old one within a sweep's interval.) An
//! empty namespace begins in the newest layout.
//!
//! | layout | what is new |
//! |---|---|
//! | 1 | 0.1.0: neither `written` nor `readable_from` stands in `ns:epoch` |
//! | 2 | entries of members, functions named by their content; nothing of layout 1 has another form |
//! | 3 | one due queue and one fast queue for all spaces (`forms`); before, one of each a space |

use super::call::Call;
use super::functions::function;
use super::keys::Keys;
use super::link::Link;
use super::values::{number, read};
use crate::store::{StoreError, StoreResult, rehearsal};

/// The layout of 0.1.0, and what `schema` says until the way back to it is closed.
pub const FIRST_LAYOUT: u64 = 1;
/// Oldest and newest layout this program knows.
pub const OLDEST_KNOWN: u64 = FIRST_LAYOUT;
/// See [`OLDEST_KNOWN`].
pub const NEWEST_KNOWN: u64 = 3;
/// The layout from which on one queue serves all spaces.
pub const ONE_QUEUE: u64 = 3;

/// What `ns:epoch` holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Epoch {
    /// `None` in an empty namespace.
    pub schema: Option<u64>,
    /// Newest layout in use.
    pub written: u64,
    /// Oldest layout in use.
    pub readable_from: u64,
    /// Shards of the due queue; 0 in an empty namespace.
    pub shards: u32,
    /// Whose it is; empty where nobody has a name.
    pub cluster: String,
}

impl Epoch {
    /// Reads it.
    pub async fn read(link: &Link, keys: &Keys) -> StoreResult<Epoch> {
        let key = keys.epoch();
        let names = ["schema", "written", "readable_from", "shards", "cluster"];
        let fields: Vec<Option<Vec<u8>>> = read(&key, link.one("open", Call::new("HMGET", &key).arg(&names)).await?)?;
        let field = |nth: usize| fields.get(nth).and_then(Option::as_deref);
        let schema = field(0).map(|text| number(&key, Some(text))).transpose()?;
        // 0.1.0 writes the schema alone, so a namespace of its is of that layout throughout.
        let layout = |nth: usize| field(nth).map_or(Ok(schema.unwrap_or(0)), |text| number(&key, Some(text)));
        let cluster = String::from_utf8_lossy(field(4).unwrap_or_default()).into_owned();
        Ok(Epoch { schema, written: layout(1)?, readable_from: layout(2)?, shards: number(&key, field(3))?, cluster })
    }

    /// An error where this process may not work: on layouts it does not know, on what belongs to a cluster of another name.
    pub fn check(&self, link: &Link, cluster: &str) -> StoreResult<()> {
        self.check_layouts(link)?;
        if self.cluster.is_empty() || self.cluster == cluster {
            return Ok(());
        }
        let ours = if cluster.is_empty() { "has no name".to_string() } else { format!("is of cluster {cluster:?}") };
        let message = format!(
            "namespace {} belongs to cluster {:?} and this process {ours}: set store.cluster to that name if it is a part \
             of it, else another store.namespace",
            link.namespace(),
            self.cluster
        );
        Err(StoreError::Open { place: link.printable(), message })
    }

    /// An error for layouts this program does not know.
    pub fn check_layouts(&self, link: &Link) -> StoreResult<()> {
        let Some(schema) = self.schema else { return Ok(()) };
        let written = self.written.max(schema);
        let message = if written > NEWEST_KNOWN {
            format!(
                "it is written in layout {written}, this program knows up to {NEWEST_KNOWN}: use a newer program, or \
                 another store.namespace"
            )
        } else if self.readable_from < OLDEST_KNOWN {
            format!(
                "it holds records of layout {}, this program knows them from {OLDEST_KNOWN}: run `taiji migrate … apply` \
                 and `clean` of an earlier release first",
                self.readable_from
            )
        } else {
            return Ok(());
        };
        Err(StoreError::Open { place: link.printable(), message })
    }
}

/// Makes an empty namespace ready; of two processes that start at once the first decides. The way back to 0.1.0 is open.
pub async fn initialise(link: &Link, keys: &Keys, shards: u32, cluster: &str) -> StoreResult<()> {
    // The name first: what another cluster has begun is not ours to go on with.
    take_ownership(link, keys, cluster).await?;
    let key = keys.epoch();
    let set = |field: &str, value: u64| Call::new("HSETNX", &key).arg(field).arg(value);
    let mut calls = vec![
        set("shards", shards.into()),
        set("written", NEWEST_KNOWN),
        set("readable_from", FIRST_LAYOUT),
        set("schema", FIRST_LAYOUT),
    ];
    if let Some(build) = rehearsal::build() {
        calls.push(Call::new("HSETNX", &key).arg(rehearsal::FIELD).arg(build));
    }
    link.run("initialise", calls).await?;
    Ok(())
}

/// A namespace that is nobody's becomes that cluster's; an empty name takes nothing. At a start an empty namespace alone is taken: one
/// in use is `taiji migrate apply`'s, when all processes have the name, for those without it could not start again.
pub async fn take_ownership(link: &Link, keys: &Keys, cluster: &str) -> StoreResult<()> {
    if cluster.is_empty() {
        return Ok(());
    }
    link.one("initialise", Call::new("HSETNX", &keys.epoch()).arg("cluster").arg(cluster)).await?;
    // Of two who come at once the first has it.
    Epoch::read(link, keys).await?.check(link, cluster)
}

/// Initialises an empty namespace, refuses one of another cluster or whose layouts this program does not know, and sees to it that
/// every master holds the functions. Returns what stands there; the shard count is 1 at least.
pub async fn ready(link: &Link, keys: &Keys, shards: u32, cluster: &str) -> StoreResult<Epoch> {
    let mut epoch = Epoch::read(link, keys).await?;
    epoch.check(link, cluster)?;
    if epoch.schema.is_none() {
        initialise(link, keys, shards, cluster).await?;
        epoch = Epoch::read(link, keys).await?;
        epoch.check(link, cluster)?;
    }
    link.everywhere("open", &present()).await?;
    Ok(Epoch { shards: epoch.shards.max(1), ..epoch })
}

/// A call that a master answers if it holds the functions; a link loads them where they are missing.
pub fn present() -> redis::Cmd {
    let mut call = redis::cmd("FCALL");
    call.arg(function!("present")).arg(0);
    call
}
