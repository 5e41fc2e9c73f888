//! Redis' errors in our words, and which of them are worth another try.

use crate::store::StoreError;
use redis::{ErrorKind, RedisError};

/// What to do about an error of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// The slot lives elsewhere now: read the map again, then repeat.
    Remap,
    /// This one command goes to that node, after `ASKING`.
    Ask(String, u16),
    /// The node cannot answer right now: wait, then repeat.
    Wait,
    /// The connection is gone: open another one, then repeat.
    Reconnect,
    /// The node lacks our functions (`FUNCTION FLUSH`, a replica that never got them): load them, then repeat.
    LoadFunctions,
    /// Repeating changes nothing.
    GiveUp,
}

/// What Redis says of a number, and Lua of a value, that stands where another kind is expected.
const NOT_THE_VALUE_EXPECTED: [&str; 6] = [
    "attempt to perform arithmetic",
    "attempt to compare",
    "attempt to concatenate",
    "attempt to index",
    "bad argument",
    "value is not an integer",
];

/// What to do about an error. Every function is idempotent, so repeating after a lost answer is always allowed.
pub fn remedy(error: &RedisError) -> Remedy {
    match code(error).as_str() {
        "MOVED" => Remedy::Remap,
        "ASK" => match error.redirect_node() {
            Some((address, _)) => match address.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
                Some((host, Ok(port))) => Remedy::Ask(host.to_string(), port),
                _ => Remedy::Remap,
            },
            None => Remedy::Remap,
        },
        "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" => Remedy::Wait,
        "" if is_connection(error) => Remedy::Reconnect,
        _ if lacks_functions(error) => Remedy::LoadFunctions,
        // An operator ended a call that ran long; of a function that has written nothing yet, so nothing is half done.
        _ if was_killed(error) => Remedy::Wait,
        _ => Remedy::GiveUp,
    }
}

/// An error in our words, after the last try.
pub fn failed(operation: &'static str, node: &str, error: &RedisError) -> StoreError {
    let text = text(error);
    let named = |message: String| format!("redis {node}: {message}");
    match code(error).as_str() {
        "OOM" => StoreError::Full {
            operation,
            message: named("its maxmemory is reached; raise it or shorten what is kept".into()),
        },
        "WRONGPASS" | "NOAUTH" => StoreError::Denied {
            operation,
            message: named("user or password is refused; put the right ones into store.url".into()),
        },
        "NOPERM" => StoreError::Denied {
            operation,
            message: named(format!("this user lacks a permission ({text}); allow it with ACL SETUSER")),
        },
        "READONLY" => StoreError::Denied {
            operation,
            message: named("it is a read-only replica; name the master in store.url".into()),
        },
        "NOREPLICAS" => StoreError::Busy {
            operation,
            message: named("it refuses writes because it has fewer replicas than its min-replicas-to-write".into()),
        },
        "MISCONF" => StoreError::Busy {
            operation,
            message: named("it refuses writes because it cannot persist them; see its log, free disk space".into()),
        },
        "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "LOADING" | "MASTERDOWN" | "MOVED" | "ASK" => {
            StoreError::Busy { operation, message: named(text) }
        }
        "WRONGTYPE" => StoreError::Corrupt {
            key: format!("of {operation}"),
            message: named(
                "a key under our namespace is of another type: does another program use store.namespace?".into(),
            ),
        },
        "ERR" if NOT_THE_VALUE_EXPECTED.iter().any(|words| text.contains(words)) => StoreError::Corrupt {
            key: format!("of {operation}"),
            message: named(format!("a value is not what this version writes: {text}")),
        },
        _ if lacks_functions(error) => StoreError::Busy {
            operation,
            message: named("taiji's functions are gone again and again: who runs FUNCTION FLUSH there?".into()),
        },
        _ if was_killed(error) => StoreError::Busy { operation, message: named(text) },
        _ if error.kind() == ErrorKind::AuthenticationFailed => StoreError::Denied {
            operation,
            message: named(format!("{text}; put the right user and password into store.url")),
        },
        _ if is_connection(error) => StoreError::Unreachable { operation, message: named(text) },
        _ => StoreError::Engine { operation, message: named(text) },
    }
}

/// Whether the node is a master no more, or one that may have been cut off from those who replaced it.
pub fn is_replaced(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "NOREPLICAS"))
}

/// Whether the answer to `FUNCTION LOAD` says that our library is there: its name carries its content.
pub fn is_loaded_already(error: &RedisError) -> bool {
    text(error).contains("already exists")
}

fn lacks_functions(error: &RedisError) -> bool {
    text(error).contains("Function not found")
}

fn was_killed(error: &RedisError) -> bool {
    text(error).contains("Script killed by user")
}

fn is_connection(error: &RedisError) -> bool {
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || error.is_connection_refusal()
}

/// `OOM`, `WRONGTYPE`, …; empty when the error is not the server's.
fn code(error: &RedisError) -> String {
    error.code().unwrap_or_default().to_string()
}

/// Redis' own words; it never repeats a password.
fn text(error: &RedisError) -> String {
    error.to_string()
}
