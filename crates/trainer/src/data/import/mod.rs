//! Public data sets → the files of a data folder.
//!
//! In: a set's own files. Out: `items.jsonl`, `events.jsonl` by time, `users.jsonl`, `labels.jsonl` where it is known what was shown, and
//! `rejected.jsonl` with the rows that could not be taken. Caller: `taiji-trainer import`.

mod amazon;
mod kuairand;
mod rejected;

pub use amazon::{ImportSummary, import_amazon};
pub use kuairand::{KuaiRandFiles, KuaiRandSummary, import_kuairand};
pub use rejected::RejectedRow;

/// A later time (year 2100) is as wrong as none.
const MAX_TS_MS: i64 = 4_102_444_800_000;
