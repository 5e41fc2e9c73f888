//! The house rules that a compiler does not check: which room may use which, what the workspace's members share, what stands once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod owners;
mod rooms;
mod source;
mod workspace;
