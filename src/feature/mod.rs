//! The feature record: messages on the wire, defaults, and assembling one refresh's groups.
//!
//! In: what the LLM, the quantiser and the index found. Out: protobuf group blobs. Callers: `refresh`, `api`.

/// The messages of `proto/taiji.proto`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/taiji.v1.rs"));
}
