//! What tests stand on. Depends on no crate of ours, so that all of them can use it.
//!
//! `redis`, `sentinel` and `kafka` start real servers, `certificates` makes them TLS, `package_index` serves wheels, `proxy` is a network that can be cut, `process` starts our
//! programs and speaks HTTP to them, `tensors` reads references, [`SmallDisk`] fills up. [`skip`] says that a test is left out, and why.

// A rig that breaks ends its test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod audit;
pub mod certificates;
pub mod kafka;
pub mod package_index;
mod places;
mod ports;
pub mod process;
mod program;
pub mod proxy;
pub mod redis;
pub mod sentinel;
mod skipping;
mod small_disk;
pub mod tensors;

pub use audit::is_audit;
pub use places::{data_folder, demo_bundle, fixture, in_repository, onnx_runtime};
pub use program::{TAIJI, TRAINER};
pub use skipping::skip;
pub use small_disk::SmallDisk;
