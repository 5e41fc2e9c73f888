//! What stands for a user in the log: a keyed hash, so that lines about one user can be found by who knows the id and the key,
//! and tell nobody else who it was.
//!
//! In: `telemetry.id_key`, user ids. Out: 16 hexadecimal digits. Callers: whoever logs above debug, and errors that may be logged.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;
use std::sync::OnceLock;

/// One a process, as the log is.
static KEY: OnceLock<Vec<u8>> = OnceLock::new();

/// Sets the key, once; false when one was set or used before.
pub fn set_key(key: &str) -> bool {
    KEY.set(key.as_bytes().to_vec()).is_ok()
}

/// A user's id as the log may show it: `#` and 16 hexadecimal digits. Without a key set, one made at the first use counts.
#[derive(Debug, Clone, Copy)]
pub struct LogId<'a>(pub &'a str);

impl fmt::Display for LogId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = KEY.get_or_init(|| rand::random::<[u8; 32]>().to_vec());
        formatter.write_str(&hash(key, self.0))
    }
}

fn hash(key: &[u8], id: &str) -> String {
    // A key of any length is taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return "#".to_string() };
    mac.update(id.as_bytes());
    let digits = hex::encode(&mac.finalize().into_bytes()[..8]);
    format!("#{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_user_and_key_give_the_same_hash() {
        // HMAC-SHA256 of RFC 4231, test case 2.
        assert_eq!(hash(b"Jefe", "what do ya want for nothing?"), "#5bdcc146bf60754e");
        assert_ne!(hash(b"one", "u"), hash(b"other", "u"));
        assert_eq!(LogId("u").to_string(), LogId("u").to_string());
        assert_eq!(LogId("u").to_string().len(), 17);
    }
}
