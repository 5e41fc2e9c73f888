//! `taiji-loadtest raw`: bare pipelined reads of a Redis that a taiji has filled.
//!
//! In: where Redis is, the space of the features (an answer's `space`). Out: a line with calls a second and round trips.

use crate::load::LoadError;
use crate::load::tally::quantile_ms;
use crate::popularity::Popularity;
use crate::raw::{self, RawCall, RawError, RawLoad};
use crate::rig::user;
use clap::Args;
use std::time::Duration;

/// Different calls.
const CALLS: usize = 1000;

/// What is read, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct Raw {
    /// HOST:PORT
    #[arg(long)]
    redis: String,
    /// A user of Redis; none where it asks for none
    #[arg(long, requires = "password")]
    user: Option<String>,
    /// Its password
    #[arg(long, requires = "user")]
    password: Option<String>,
    /// Of the features, as answers name it
    #[arg(long)]
    space: String,
    /// Users there are, named load-0, load-1, …
    #[arg(long, default_value_t = 1000)]
    users: usize,
    /// Users in one read
    #[arg(long, default_value_t = 1)]
    users_per_call: usize,
    /// Each on a thread of its own
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Calls of a connection that go out at once
    #[arg(long, default_value_t = 4)]
    depth: usize,
    /// How long it reads
    #[arg(long, default_value_t = 10.0, value_parser = crate::scenario::positive)]
    seconds: f64,
}

/// Why it does not read.
#[derive(Debug, thiserror::Error)]
pub enum RawCommandError {
    /// Redis.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// Whom to read.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Reads; the line about it.
pub(crate) fn run(options: &Raw) -> Result<String, RawCommandError> {
    let mut popularity = Popularity::new(options.users, 0.0, 1, 0).map_err(LoadError::from)?;
    let users = |_| popularity.draw_different(options.users_per_call).into_iter().map(user).collect::<Vec<_>>();
    let calls: Vec<RawCall> = (0..CALLS).map(users).map(|users| RawCall::read(&users, &options.space)).collect();
    let load = RawLoad {
        address: options.redis.clone(),
        login: options.user.clone().zip(options.password.clone()),
        connections: options.connections,
        depth: options.depth,
        time: Duration::from_secs_f64(options.seconds),
    };
    let found = raw::run(&load, &calls)?;
    let (p50, p99) = (quantile_ms(&found.latency, 0.5), quantile_ms(&found.latency, 0.99));
    let (per_call, depth) = (options.users_per_call, options.depth);
    let trip = format!("a round trip of {depth} calls p50 {p50:.3} ms, p99 {p99:.3} ms");
    Ok(format!("{:.0} calls/s of {per_call} users each; {trip}", found.rate))
}
