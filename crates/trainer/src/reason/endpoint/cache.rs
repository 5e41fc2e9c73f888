//! Replies by the hash of what was asked, a line each, written as they come.

use super::EndpointError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Its file in a stage's folder.
pub(super) const ASKED_FILE: &str = "asked.jsonl";

/// What an endpoint answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) text: String,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    reply: Reply,
}

/// The replies of a stage's folder.
pub(super) struct Cache {
    path: PathBuf,
    file: File,
    replies: BTreeMap<String, Reply>,
}

/// Of what is asked, and of whom.
pub(super) fn key(url: &str, question: &Value) -> String {
    hex::encode(Sha256::digest(format!("{url}\n{question}")))
}

impl Cache {
    /// Reads what an earlier run was answered. A last line that was cut off in writing is asked again; the file is written anew without it.
    pub(super) fn open(folder: &Path) -> Result<Cache, EndpointError> {
        let path = folder.join(ASKED_FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read.map_err(failed(&path))?,
        };
        let mut replies = BTreeMap::new();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        for (place, line) in whole.enumerate() {
            let Line { key, reply } = serde_json::from_str(line).map_err(|error| EndpointError::Cache {
                path: path.display().to_string(),
                message: format!("line {}: {error}; remove the file to ask anew", place + 1),
            })?;
            replies.insert(key, reply);
        }
        let file = write_all(&path, &replies)?;
        Ok(Cache { path, file, replies })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Reply> {
        self.replies.get(key)
    }

    /// Keeps a reply, on disk first.
    pub(super) fn put(&mut self, key: String, reply: Reply) -> Result<(), EndpointError> {
        append(&mut self.file, &self.path, &key, &reply)?;
        self.replies.insert(key, reply);
        Ok(())
    }

    /// Writes the file in the order of the keys: the same replies make the same bytes, in whatever order they came.
    pub(super) fn close(&mut self) -> Result<(), EndpointError> {
        self.file = write_all(&self.path, &self.replies)?;
        Ok(())
    }
}

/// Writes a file anew, whole or not at all; returns it open for more.
fn write_all(path: &Path, replies: &BTreeMap<String, Reply>) -> Result<File, EndpointError> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh).map_err(failed(&fresh))?;
    for (key, reply) in replies {
        append(&mut file, &fresh, key, reply)?;
    }
    file.sync_all().map_err(failed(&fresh))?;
    std::fs::rename(&fresh, path).map_err(failed(path))?;
    Ok(file)
}

/// One write a line: a kill leaves whole lines and perhaps the beginning of one.
fn append(file: &mut File, path: &Path, key: &str, reply: &Reply) -> Result<(), EndpointError> {
    let line = Line { key: key.to_string(), reply: reply.clone() };
    let mut text = serde_json::to_string(&line)
        .map_err(|error| EndpointError::Cache { path: path.display().to_string(), message: error.to_string() })?;
    text.push('\n');
    file.write_all(text.as_bytes()).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> EndpointError {
    let path = path.display().to_string();
    move |error| EndpointError::Cache { path: path.clone(), message: error.to_string() }
}
