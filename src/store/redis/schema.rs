//! The schema of a namespace: version and shard count in `ns:epoch`, and the functions every master must hold.
//!
//! In: a link. Out: what is there, what is missing, and the steps that bring it up to date. Callers: opening a store, and
//! `taiji migrate`. An empty namespace is initialised by either; everything else is changed by `taiji migrate` only.

use super::RedisOptions;
use super::address::Address;
use super::keys::Keys;
use super::link::{self, Call, Link};
use super::values::{number, read};
use crate::store::{StoreError, StoreResult};
use redis::Value;
use std::sync::Arc;

/// Layout of keys, records and functions. Raise it with every change that an older version would misread.
pub const SCHEMA_VERSION: u64 = 1;
/// The functions of this version.
pub const FUNCTIONS: &str = include_str!("../../../migrations/0001_functions.lua");
/// Name of their library.
const LIBRARY: &str = "taiji_1";

/// What a namespace holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    /// `None` in an empty namespace.
    pub schema: Option<u64>,
    /// Shards of the due queue; 0 in an empty namespace.
    pub shards: u32,
    /// Masters that lack the functions, or hold others under the same name.
    pub without_functions: Vec<String>,
}

/// One step of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write the functions onto that master.
    LoadFunctions(String),
    /// Write schema version and shard count.
    Initialise {
        /// Shards of the due queue; never changed later.
        shards: u32,
    },
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::LoadFunctions(node) => write!(formatter, "load the functions {LIBRARY} onto {node}"),
            Step::Initialise { shards } => {
                write!(formatter, "initialise the namespace: schema {SCHEMA_VERSION}, {shards} shards of the due queue")
            }
        }
    }
}

/// What `taiji migrate` found and would do.
pub struct Migration {
    link: Arc<Link>,
    keys: Keys,
    /// In order; none when all is up to date.
    pub steps: Vec<Step>,
}

impl Migration {
    /// Connects and looks; writes nothing.
    pub async fn look(address: Address, options: &RedisOptions) -> StoreResult<Migration> {
        let link = Link::open(address, options).await?;
        let keys = Keys::new(&options.namespace);
        let steps = plan(&link, &look(&link, &keys).await?, options.shards)?;
        Ok(Migration { link, keys, steps })
    }

    /// Carries the steps out.
    pub async fn apply(&self) -> StoreResult<()> {
        apply(&self.link, &self.keys, &self.steps).await
    }
}

/// Looks at a namespace.
async fn look(link: &Link, keys: &Keys) -> StoreResult<Found> {
    let key = keys.epoch();
    let answer = link.one("open", Call::new("HMGET", &key).arg(&["schema", "shards"])).await?;
    let (schema, shards): (Option<Vec<u8>>, Option<Vec<u8>>) = read(&key, answer)?;
    let mut without_functions = Vec::new();
    let mut list = redis::cmd("FUNCTION");
    list.arg("LIST").arg("LIBRARYNAME").arg(LIBRARY).arg("WITHCODE");
    for (node, answer) in link.masters().iter().zip(link.everywhere("open", &list).await?) {
        if !holds_our_code(&answer) {
            without_functions.push(link::name(node));
        }
    }
    Ok(Found {
        schema: schema.map(|schema| number(&key, Some(&schema))).transpose()?,
        shards: number(&key, shards.as_deref())?,
        without_functions,
    })
}

/// Whether our very source stands somewhere in the answer.
fn holds_our_code(answer: &Value) -> bool {
    match answer {
        Value::BulkString(text) => text == FUNCTIONS.as_bytes(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text == FUNCTIONS,
        Value::Array(parts) => parts.iter().any(holds_our_code),
        Value::Map(pairs) => pairs.iter().any(|(_, value)| holds_our_code(value)),
        _ => false,
    }
}

/// What is to be done; an error for a schema this version does not know.
fn plan(link: &Link, found: &Found, shards: u32) -> StoreResult<Vec<Step>> {
    if let Some(schema) = found.schema.filter(|schema| *schema != SCHEMA_VERSION) {
        let message = format!(
            "its schema is {schema}, this program knows {SCHEMA_VERSION}: use the program that wrote it, or another \
             store.namespace"
        );
        return Err(StoreError::Open { place: link.printable(), message });
    }
    let mut steps: Vec<Step> = found.without_functions.iter().cloned().map(Step::LoadFunctions).collect();
    if found.schema.is_none() {
        steps.push(Step::Initialise { shards });
    }
    Ok(steps)
}

/// Carries the steps out; each may be repeated.
async fn apply(link: &Link, keys: &Keys, steps: &[Step]) -> StoreResult<()> {
    for step in steps {
        match step {
            Step::LoadFunctions(name) => {
                let mut load = redis::cmd("FUNCTION");
                load.arg("LOAD").arg("REPLACE").arg(FUNCTIONS);
                let node = link.masters().into_iter().find(|node| link::name(node) == *name);
                if let Some(node) = node {
                    link.on("load functions", &node, &load).await?;
                }
            }
            Step::Initialise { shards } => {
                // Of two processes that start at once the first decides.
                let key = keys.epoch();
                let calls = vec![
                    Call::new("HSETNX", &key).arg("shards").arg(*shards),
                    Call::new("HSETNX", &key).arg("schema").arg(SCHEMA_VERSION),
                ];
                link.run("initialise", calls).await?;
            }
        }
    }
    Ok(())
}

/// Makes an empty namespace ready, refuses one that is not of this version; returns the shard count.
pub(super) async fn ready(link: &Link, keys: &Keys, shards: u32) -> StoreResult<u32> {
    let found = look(link, keys).await?;
    let steps = plan(link, &found, shards)?;
    if found.schema.is_none() {
        apply(link, keys, &steps).await?;
        return Ok(look(link, keys).await?.shards.max(1));
    }
    if steps.is_empty() {
        return Ok(found.shards.max(1));
    }
    let message = format!(
        "the functions {LIBRARY} on {} are missing or of another build: run `taiji migrate --store {} apply`",
        found.without_functions.join(", "),
        link.printable()
    );
    Err(StoreError::Open { place: link.printable(), message })
}
