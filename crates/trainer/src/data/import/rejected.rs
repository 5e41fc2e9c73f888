//! Rows of foreign files that cannot be taken: counted and kept with line and reason, fatal only beyond a stated share.
//!
//! In: rows as they are read. Out: those that can be taken, and `rejected.jsonl`. Callers: the importers.

use crate::data::{DataError, write_jsonl};
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// Rejected rows that the command prints; all of them are in the file.
const SHOWN: usize = 10;
/// Beside the imported files, where there are any.
const FILE: &str = "rejected.jsonl";

/// One row that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectedRow {
    /// Its file.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// What would be right.
    pub reason: String,
}

/// The rows of one file as they are read.
pub(super) struct RowGate<'a> {
    path: &'a Path,
    rows: usize,
    rejected: Vec<RejectedRow>,
}

impl<'a> RowGate<'a> {
    pub(super) fn new(path: &'a Path) -> Self {
        RowGate { path, rows: 0, rejected: Vec::new() }
    }

    /// Counts a row; what is wrong with a row itself is put aside, what is wrong with the whole file stays an error.
    pub(super) fn admit<T>(&mut self, row: Result<T, DataError>) -> Result<Option<T>, DataError> {
        self.rows += 1;
        match row {
            Ok(value) => Ok(Some(value)),
            Err(DataError::Line { path, line, message }) => {
                self.rejected.push(RejectedRow { file: path, line, reason: message });
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// At the end of the file: the rejected rows, or an error that names the first of them.
    pub(super) fn finish(self, max_bad_share: f64) -> Result<Vec<RejectedRow>, DataError> {
        let Some(first) = self.rejected.first() else { return Ok(self.rejected) };
        if self.rejected.len() as f64 <= max_bad_share * self.rows as f64 {
            return Ok(self.rejected);
        }
        Err(DataError::TooManyBadRows {
            path: self.path.display().to_string(),
            bad: self.rejected.len(),
            rows: self.rows,
            percent: max_bad_share * 100.0,
            line: first.line,
            reason: first.reason.clone(),
        })
    }
}

/// Writes the rejected rows of an import into its folder; where there are none, those of an earlier import go.
pub(super) fn write_rejected(folder: &Path, rows: &[RejectedRow]) -> Result<(), DataError> {
    let path = folder.join(FILE);
    if !rows.is_empty() {
        write_jsonl(&path, rows)?;
    } else if path.exists() {
        std::fs::remove_file(&path).map_err(DataError::io(&path))?;
    }
    Ok(())
}

/// How many rows were rejected, and the first of them.
pub(super) fn tell_rejected(rows: &[RejectedRow], out: &mut fmt::Formatter<'_>) -> fmt::Result {
    if !rows.is_empty() {
        write!(out, "\n{} bad rows were left out, all in {FILE}:", rows.len())?;
    }
    rows.iter().take(SHOWN).try_for_each(|row| write!(out, "\n  {} line {}: {}", row.file, row.line, row.reason))
}
