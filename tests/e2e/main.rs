//! End-to-end tests: the built binaries as their users meet them, over HTTP, files and signals.
//!
//! `rig` starts processes and speaks HTTP, `worlds` makes bundles and events; every other module is one subject.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod auth;
mod backfill;
mod bad_input;
mod bad_start;
mod bundle;
mod chaos;
mod crash;
mod doctor;
mod drain;
mod erase;
mod fast_path;
mod full_disk;
mod greedy;
mod hang;
mod items;
mod kafka;
mod kafka_poison;
mod lagging;
mod odd_ids;
mod openai;
mod packages;
mod poison;
mod policy;
mod reader_budget;
mod reads;
mod real_data;
mod redis_store;
mod refusals;
mod restore;
mod roles;
mod secrets;
mod sentinel;
mod silent;
mod stall;
mod upgrade;
mod waiting;
mod way;
mod worlds;
