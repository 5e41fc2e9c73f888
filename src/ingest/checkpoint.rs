//! How far a backfill came: a small file beside the data.
//!
//! In: the data file and where it goes. Out: rows that are done already. Caller: `backfill`. Losing the file, or its last
//! second, costs repeated appends, which count as duplicates; so it is not synced.

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes at the head of the data file that tell it from another.
const HEAD_BYTES: u64 = 1 << 20;

/// Why there is no checkpoint to go on from.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// It is of another file, or of another store or space.
    #[error("{} is of another {what}: name another file with --checkpoint, or remove it to begin anew", path.display())]
    Foreign {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// It, or the data file, cannot be read or written.
    #[error("{}: {message}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Content {
    /// Length and hash of the head of the data file.
    length: u64,
    head: u64,
    /// Hash of the store's address, its namespace and the space.
    target: u64,
    /// Rows that are in the store.
    rows: u64,
}

/// The checkpoint of one data file.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    content: Content,
}

impl Checkpoint {
    /// Reads the checkpoint at `path`, or begins one. `target` names the store and the space.
    pub fn open(path: &Path, data: &Path, target: &str) -> Result<Checkpoint, CheckpointError> {
        let (length, head) = mark_of(data).map_err(|error| io(data, &error))?;
        let begun = Content { length, head, target: xxh3_64(target.as_bytes()), rows: 0 };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Checkpoint { path: path.to_owned(), content: begun });
            }
            Err(error) => return Err(io(path, &error)),
        };
        let content: Content = serde_json::from_slice(&bytes).map_err(|error| io(path, &error))?;
        let foreign = |what| Err(CheckpointError::Foreign { path: path.to_owned(), what });
        if (content.length, content.head) != (begun.length, begun.head) {
            return foreign("data file");
        }
        if content.target != begun.target {
            return foreign("store or space");
        }
        Ok(Checkpoint { path: path.to_owned(), content })
    }

    /// Rows that are in the store.
    pub fn rows(&self) -> u64 {
        self.content.rows
    }

    /// Notes that the first `rows` are. Never seen half written: another file takes the name.
    pub fn save(&mut self, rows: u64) -> Result<(), CheckpointError> {
        self.content.rows = rows;
        let bytes = serde_json::to_vec(&self.content).map_err(|error| io(&self.path, &error))?;
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        std::fs::write(&name, bytes).map_err(|error| io(Path::new(&name), &error))?;
        std::fs::rename(&name, &self.path).map_err(|error| io(&self.path, &error))
    }
}

fn mark_of(path: &Path) -> std::io::Result<(u64, u64)> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok((length, xxh3_64(&head)))
}

fn io(path: &Path, error: &dyn std::fmt::Display) -> CheckpointError {
    CheckpointError::Io { path: path.to_owned(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn goes_on_with_its_own_file_and_refuses_another() {
        let folder = tempfile::tempdir().unwrap();
        let (data, path) = (folder.path().join("events.jsonl"), folder.path().join("events.checkpoint"));
        std::fs::write(&data, "one").unwrap();
        let mut begun = Checkpoint::open(&path, &data, "store a").unwrap();
        assert_eq!(begun.rows(), 0);
        begun.save(7).unwrap();
        assert_eq!(Checkpoint::open(&path, &data, "store a").unwrap().rows(), 7);
        let message = |data: &Path, target: &str| Checkpoint::open(&path, data, target).unwrap_err().to_string();
        assert!(message(&data, "store b").contains("of another store or space"));
        std::fs::write(&data, "two").unwrap();
        assert!(message(&data, "store a").contains("of another data file"));
        assert!(message(&folder.path().join("absent"), "store a").contains("absent"));
        std::fs::write(&path, "{").unwrap();
        assert!(message(&data, "store a").contains("events.checkpoint"));
    }
}
