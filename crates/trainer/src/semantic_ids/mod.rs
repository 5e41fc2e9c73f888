//! Semantic IDs: every item as a short sequence of codes, one token a code, coarse to fine (TIGER, arXiv 2305.05065).
//!
//! In: a table item → codes, made by a quantiser or published by others. Out: [`CodeTable`], the tokens of items, the trie of the
//! sequences that exist, a tokenizer for the engine. Callers: `generative`, `stages`.
//!
//! ```text
//! item ─ codes (3, 200, 7, 7) ─ tokens 1 + level·size + code; token 0 begins a sequence
//! ```
//!
//! Items may share their codes (a collision): the table keeps them, and a list shows them one after the other, the one met more
//! often in the training part first, of equals the one that comes first in the table ([`CodeTable::groups`]).

mod table;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use table::{BOS, CodeTable};
pub use tokenizer::tokenizer_json;

use crate::data::DataError;
use thiserror::Error;

/// What can be wrong with a table of codes.
#[derive(Debug, Error)]
pub enum CodeTableError {
    /// The file cannot be read or written, or one line is wrong.
    #[error(transparent)]
    Data(#[from] DataError),
    /// There is no item in it.
    #[error("{path}: holds no item: give lines of item and codes, separated by tabs")]
    Empty {
        /// The file.
        path: String,
    },
    /// A size that makes no vocabulary.
    #[error("codebook_size {size}: must be from 1 to 65536")]
    Size {
        /// Codes of a level.
        size: usize,
    },
    /// Items of the data are not in the table.
    #[error("{missing} of {items} items of the data have no codes, {first} is one: give codes to all of them")]
    Missing {
        /// Items without codes.
        missing: usize,
        /// Items of the data.
        items: usize,
        /// The first of them by name.
        first: String,
    },
    /// The tokenizer's file cannot be made.
    #[error("tokenizer of the codes: {0}")]
    Tokenizer(String),
    /// The trie of the sequences cannot be made.
    #[error(transparent)]
    Trie(#[from] taiji::llm::trie::TrieError),
}
