//! The Redis store against the conformance checks on real servers, and what only it can show.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::clock::unix_ms;
use crate::store::conformance::{self, Subject};
use crate::store::{DueQueue, Erasures, Features, Feeds, FreshVector, Histories, PutOutcome, UserBatch};

mod direct;
mod durable;
mod fail_over;
mod failures;
mod half_transaction;
mod layout;
mod lost_tail;
mod neighbours;
mod outage;
mod owner;
mod poison;
mod reads;
mod sentinel;
mod silent;
mod slow_log;

mod two_forms;
mod upgrade;

use std::time::Duration;
use testkit::redis::{RedisCluster, RedisServer};

fn options(shards: u32) -> RedisOptions {
    let timeouts = Timeouts { connect: Duration::from_secs(5), response: Duration::from_secs(10), retries: 8 };
    RedisOptions { namespace: "taiji".into(), cluster: String::new(), shards, timeouts, assurance: Default::default() }
}

/// A store with a clock that stands still until moved.
async fn subject(address: Address, shards: u32) -> Subject {
    let time = Arc::new(AtomicI64::new(unix_ms()));
    let store = RedisStore::open_with_clock(address, options(shards), Some(time.clone())).await.unwrap();
    let advance = move |ms| {
        time.fetch_add(ms, Ordering::Relaxed);
    };
    Subject { store, advance: Box::new(advance) }
}

#[tokio::test]
async fn conforms_with_one_shard() {
    let server = RedisServer::start();
    conformance::check_all(&subject(Address::parse(&server.url()).unwrap(), 1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_with_eight_shards() {
    let server = RedisServer::start();
    conformance::check_all(&subject(Address::parse(&server.url()).unwrap(), 8).await).await;
}

#[test]
fn agrees_with_the_model() {
    let server = RedisServer::with(&[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let subject = runtime.block_on(subject(Address::parse(&server.url()).unwrap(), 3));
    conformance::model::check(&subject, &runtime, 60);
}

#[tokio::test]
async fn conforms_on_a_cluster() {
    let cluster = RedisCluster::start();
    conformance::check_all(&subject(Address::parse(&cluster.url()).unwrap(), 8).await).await;
}

#[tokio::test]
async fn conforms_over_tls_with_a_user() {
    let server = RedisServer::with_tls_and_users();
    let authority = std::fs::read(server.folder.path().join("ca.pem")).unwrap();
    let url = format!("rediss://taiji:p%40ss_word@127.0.0.1:{}", server.port);
    conformance::check_all(&subject(Address::parse(&url).unwrap().with_authority(authority), 2).await).await;
}

#[tokio::test]
async fn audit_08_erased_events_ahead_of_the_clock_stay_duplicates() {
    let server = RedisServer::start();
    let subject = subject(Address::parse(&server.url()).unwrap(), 2).await;
    conformance::erase::ahead_of_the_clock(&subject).await;
}

#[tokio::test]
async fn audit_08_a_value_of_zero_is_known_under_its_former_id() {
    let server = RedisServer::start();
    conformance::queue::former_ids(&subject(Address::parse(&server.url()).unwrap(), 2).await).await;
}

#[tokio::test]
async fn audit_12_the_sweep_passes_over_bulk_history() {
    let (server, cluster) = (RedisServer::start(), RedisCluster::start());
    for url in [server.url(), cluster.url()] {
        conformance::queue::held_back(&subject(Address::parse(&url).unwrap(), 4).await).await;
    }
}

#[tokio::test]
async fn audit_08_who_has_been_quiet_for_long_is_found_and_erased_while_nothing_comes() {
    let server = RedisServer::start();
    conformance::erase::quiet(&subject(Address::parse(&server.url()).unwrap(), 2).await).await;
}
