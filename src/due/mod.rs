//! Who is due when, and how urgently: the policy, the classes, and the fast path's queue. The queues themselves are the store's.
//!
//! In: what an append did to a user. Out: class and due time; marks in the fast queue. Callers: `ingest` and `api` mark users,
//! `refresh` and `erase` name classes.

mod fast;
mod policy;

pub use fast::FastQueue;
pub use policy::{CLASS_ROUTINE, CLASS_SYNC, CLASS_THRESHOLD, CLASS_URGENT, DuePolicy};
