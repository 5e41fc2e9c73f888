//! The generator from outside: on a server that stalls, and on the smallest handler over a real Redis.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench_read;
mod figures;
mod scenario;
mod smallest;
mod stall;
mod stalling_server;
