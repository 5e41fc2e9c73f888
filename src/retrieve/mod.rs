//! The most similar other user: an index of unit vectors, and the sequences of those in its immutable part.
//!
//! In: a vector of the encoder. Out: users by cosine similarity, never oneself. Callers: `refresh` (search),
//! `bundle` (load), `taiji_trainer::index` (build). Main part = the bundle's generation, immutable; fresh part = every vector
//! written since, replayed from the store's feed at start.

mod affinity;
mod faiss;
mod flat;
mod members;
mod snapshot;
mod tail;

pub use self::faiss::{FaissUserIndex, IndexShape, build_main};
pub use affinity::{Affinity, EQUALS, affinity, recent_items};
pub use snapshot::{SnapshotUser, UserSnapshot};
pub use tail::{VectorTail, decode_f16, encode_f16};

use crate::store::FreshVector;
use thiserror::Error;

/// What can go wrong with an index.
#[derive(Debug, Error)]
pub enum RetrieveError {
    /// A file of the generation cannot be used.
    #[error("index file {path}: {message}")]
    Load {
        /// Which file.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A vector of another length than the index has.
    #[error("vector of {found} dimensions in an index of {wanted}")]
    Dimension {
        /// Of the vector.
        found: usize,
        /// Of the index.
        wanted: usize,
    },
    /// FAISS failed.
    #[error("faiss {operation} failed: {message}")]
    Faiss {
        /// What was being done.
        operation: &'static str,
        /// FAISS's words.
        message: String,
    },
}

/// One user found.
#[derive(Debug, Clone, PartialEq)]
pub struct Neighbour {
    /// Who.
    pub user: String,
    /// Cosine similarity, -1 to 1.
    pub similarity: f32,
    /// That of the next distinct vector; `None` if there is no other.
    pub next: Option<f32>,
}

/// An index over users' vectors, shared by all refreshes.
pub trait UserIndex: Send + Sync {
    /// Up to `k` users by falling similarity, without `exclude`; users of equal vectors in an order of their own for each
    /// `exclude`, of which a larger `k` gives more. `vector` has length [`Self::dim`] and norm 1. Takes as long as there are
    /// vectors: call it off the async threads.
    fn search(&self, vector: &[f32], k: usize, exclude: &str) -> Result<Vec<Neighbour>, RetrieveError>;

    /// Takes one entry of the vector feed: the highest (era, version) of a user wins, of equal ones the later; a
    /// tombstone hides the user.
    fn apply(&self, fresh: &FreshVector) -> Result<(), RetrieveError>;

    /// Users in the (main, fresh) part.
    fn sizes(&self) -> (usize, usize);

    /// Vector length.
    fn dim(&self) -> usize;
}
