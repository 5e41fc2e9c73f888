//! The messages of `proto/taiji.proto`: what is stored, published and, where asked for, sent.

#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]

include!(concat!(env!("OUT_DIR"), "/taiji.v1.rs"));
