//! The file of bearer keys, `auth.keys_file`: TOML with `read_keys`, `write_keys` and `admin_keys`.
//!
//! All three must stand there, be it as empty lists, and one key at least: so the beginning of a file that is half written is never
//! taken for the whole, and no file opens the port to everyone.

use super::layers::{place_of, without_value};
use serde::Deserialize;
use toml::{Table, Value};

/// Shortest key.
const SHORTEST: usize = 16;
/// Most keys of one scope: the old one and the new one.
const MOST: usize = 2;

/// Keys by scope.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ScopedKeys {
    pub read_keys: Vec<String>,
    pub write_keys: Vec<String>,
    pub admin_keys: Vec<String>,
}

impl ScopedKeys {
    /// What a keys file holds. An error never repeats a key.
    pub fn parse(file: &[u8]) -> Result<ScopedKeys, String> {
        let text = std::str::from_utf8(file).map_err(|_| "it is no UTF-8 text".to_string())?;
        let table: Table = text.parse().map_err(|error| place_of(text, &error))?;
        let keys: ScopedKeys = serde_path_to_error::deserialize(Value::Table(table)).map_err(|error| {
            let place = error.path().to_string();
            let place = if place == "." { String::new() } else { format!("{place}: ") };
            format!("{place}{}", without_value(error.inner()))
        })?;
        let mut wrong = keys.violations("");
        if keys.is_empty() {
            wrong.push("it holds no key; a keys file never opens the port to everyone".to_string());
        }
        if wrong.is_empty() { Ok(keys) } else { Err(wrong.join("; ")) }
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.scopes().iter().all(|(_, keys)| keys.is_empty())
    }

    /// What is wrong with the keys, each name after `prefix`.
    pub(super) fn violations(&self, prefix: &str) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, keys) in self.scopes() {
            if keys.len() > MOST {
                wrong.push(format!("{prefix}{name}: at most two keys"));
            }
            if keys.iter().any(|key| key.len() < SHORTEST) {
                wrong.push(format!("{prefix}{name}: a key has at least {SHORTEST} characters"));
            }
        }
        wrong
    }

    fn scopes(&self) -> [(&'static str, &Vec<String>); 3] {
        [("read_keys", &self.read_keys), ("write_keys", &self.write_keys), ("admin_keys", &self.admin_keys)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "# who may what\nread_keys = [\n  \"read-key-0123456789\",\n]\nwrite_keys = []\nadmin_keys = [\"admin-key-012345\", \"geheim-geheim-geheim\"]\n";

    fn of(text: &str) -> Result<ScopedKeys, String> {
        ScopedKeys::parse(text.as_bytes())
    }

    #[test]
    fn no_beginning_of_a_file_is_taken_for_the_whole() {
        let whole = of(WHOLE).expect("whole");
        assert_eq!((whole.read_keys.len(), whole.write_keys.len(), whole.admin_keys.len()), (1, 0, 2));
        for end in 0..WHOLE.len() - 1 {
            let told = of(&WHOLE[..end]).err().unwrap_or_else(|| panic!("{:?} was taken", &WHOLE[..end]));
            assert!(!told.contains("geheim") && !told.contains("key-0123"), "{told}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_without_the_key() {
        for (text, part) in [
            ("read_keys = []\nwrite_keys = []\nadmin_keys = []", "holds no key"),
            ("read_keys = [\"geheim\"]\nwrite_keys = []\nadmin_keys = []", "read_keys: a key has at least 16"),
            (
                "read_keys = []\nwrite_keys = [\"geheim-geheim-geh1\", \"geheim-geheim-geh2\", \"geheim-geheim-geh3\"]\nadmin_keys = []",
                "write_keys: at most two",
            ),
            ("read_keys = \"geheim-geheim-geheim\"\nwrite_keys = []\nadmin_keys = []", "read_keys: expected"),
            ("read_keys = []\nwrite_keys = []", "admin_keys"),
            ("[auth]\nread_keys = []\nwrite_keys = []\nadmin_keys = [\"geheim-geheim-geheim\"]", "expected one of"),
            ("read_keys = [\"geheim-geheim-geheim\" \"b\"]", "line 1"),
        ] {
            let told = of(text).err().unwrap_or_else(|| panic!("{text} was taken"));
            assert!(told.contains(part) && !told.contains("geheim"), "{part:?} in {told}");
        }
        assert!(ScopedKeys::parse(b"\xff\xfe").err().expect("bytes").contains("UTF-8"));
    }
}
