//! End-to-end tests: the built binaries as their users meet them, over HTTP, files and signals.
//!
//! `rig` starts processes and speaks HTTP, `worlds` makes bundles and events; every other module is one subject.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod auth;
mod backfill;
mod bad_input;
mod bad_start;
mod chaos;
mod crash;
mod drain;
mod erase;
mod fast_path;
mod full_disk;
mod kafka;
#[path = "../rig/kafka.rs"]
mod kafka_rig;
mod odd_ids;
mod openai;
mod policy;
mod quality;
mod real_data;
mod recipe;
#[path = "../rig/redis.rs"]
#[allow(unused)]
mod redis_rig;
mod redis_store;
mod refusals;
mod rig;
mod roles;
mod train_serve;
mod trainer;
mod waiting;
mod way;
mod worlds;
