//! The functions every master must hold: their source, and their names.
//!
//! In: the template `migrations/0001_functions.lua`. Out: the source as it is loaded, the name of the library and those
//! of its functions. Callers: `link` loads them where they are missing, every other file of this folder calls them.
//!
//! A name carries the newest layout it keeps and a hash of the source: two builds on one server never load over each other, and whoever loads
//! a library under a name that is there already has loaded the same one. (Redis refuses two libraries that define one
//! function, so every function's name begins with the library's.)

use super::schema::NEWEST_KNOWN;
use crate::store::{StoreError, rehearsal};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// The source, with [`PLACE`] where the library's name goes, and [`UNKNOWN`] where a rehearsal of an upgrade puts a field.
const TEMPLATE: &str = include_str!("../../../migrations/0001_functions.lua");
const PLACE: &str = "@LIBRARY@";
const UNKNOWN: &str = "@UNKNOWN@";
/// What the names of all libraries of taiji begin with.
const PREFIX: &str = "taiji_";
/// Bytes of the hash in a name.
const HASH_BYTES: usize = 6;

static LIBRARY: LazyLock<Library> = LazyLock::new(|| Library::of(TEMPLATE, rehearsal::build().unwrap_or_default()));

struct Library {
    name: String,
    source: String,
}

impl Library {
    /// The library of a template; another salt makes another name.
    fn of(template: &str, salt: &str) -> Library {
        let hash = Sha256::new().chain_update(template).chain_update(salt).finalize();
        let digits = hex::encode(&hash[..HASH_BYTES]);
        let name = format!("{PREFIX}{NEWEST_KNOWN}_{digits}");
        let quoted = |text: &str| format!("'{}'", text.replace(|c: char| !c.is_ascii_alphanumeric(), "_"));
        let unknown =
            if salt.is_empty() { String::new() } else { format!("{}, {}", quoted(rehearsal::FIELD), quoted(salt)) };
        Library { source: template.replace(PLACE, &name).replace(UNKNOWN, &unknown), name }
    }
}

/// Name of this build's library: `taiji_<layout>_<12 hex digits>`.
pub fn library() -> &'static str {
    &LIBRARY.name
}

/// What `FUNCTION LOAD` takes.
pub fn source() -> &'static str {
    &LIBRARY.source
}

/// Full name of one of this build's functions.
pub fn function_name(short: &str) -> String {
    format!("{}_{short}", library())
}

/// A function of this build by its short name, made once a place.
macro_rules! function {
    ($name:literal) => {{
        static NAME: std::sync::LazyLock<String> =
            std::sync::LazyLock::new(|| $crate::store::redis::functions::function_name($name));
        NAME.as_str()
    }};
}
pub(super) use function;

/// Pause between two tries at a node that refuses the functions.
const PAUSE: Duration = Duration::from_secs(1);

/// Nodes that lack the functions and refuse to load them (a permission is missing), and why.
#[derive(Default)]
pub struct Refusals {
    by_node: Mutex<HashMap<String, (String, Instant)>>,
}

impl Refusals {
    /// Why a node is not asked again yet.
    pub fn of(&self, node: &str, now: Instant) -> Option<String> {
        let by_node = self.by_node.lock();
        by_node.get(node).filter(|(_, at)| now < *at + PAUSE).map(|(message, _)| message.clone())
    }

    /// The node refused.
    pub fn note(&self, node: &str, why: &StoreError, now: Instant) {
        let message = format!("taiji's functions are missing on redis {node} and cannot be loaded: {why}");
        if self.by_node.lock().insert(node.to_string(), (message.clone(), now)).is_none() {
            tracing::error!(message);
        }
    }

    /// The node has the functions.
    pub fn forget(&self, node: &str) {
        self.by_node.lock().remove(node);
    }

    /// Whether no node refuses.
    pub fn is_empty(&self) -> bool {
        self.by_node.lock().is_empty()
    }

    /// Why one of these nodes cannot be used.
    pub fn of_any(&self, nodes: &[String]) -> Option<String> {
        let by_node = self.by_node.lock();
        nodes.iter().find_map(|node| by_node.get(node)).map(|(message, _)| message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_09_library_and_every_function_carry_the_hash_of_their_source() {
        let name = library();
        let hex = name.strip_prefix(&format!("taiji_{NEWEST_KNOWN}_")).unwrap_or_default();
        assert!(hex.len() == 12 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        assert!(source().starts_with(&format!("#!lua name={name}\n")) && !source().contains(PLACE));
        // No function is registered under a name of its own.
        let registered = source().lines().filter(|line| line.contains("redis.register_function("));
        assert!(registered.clone().count() > 10 && registered.clone().all(|line| line.contains("LIBRARY .. '_")));
        let other = [Library::of(TEMPLATE, "salt").name, Library::of(&format!("{TEMPLATE} "), "").name];
        assert!(other.iter().all(|other| other != name) && other[0] != other[1], "{other:?}");
    }
}
