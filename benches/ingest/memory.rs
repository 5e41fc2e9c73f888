//! What a user costs in Redis: histories of 100,000 users, and features of some.
//!
//! In: a bundle, a number of users. Out: bytes a user as JSON. Histories: events a user by a log-normal law (median 30), cut
//! where the lists are full. Features: made by `taiji serve --engine null`, whose texts are canned. Caller: `main`.

use crate::{open, redis_info};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use taiji::event::ActionClass;
use taiji::proto::Behaviour;
use taiji::store::{Histories, Record, RecordBody, UserBatch};
use testkit::process::{Setup, wait_until};
use testkit::redis::RedisServer;
use tokio::runtime::Runtime;

/// Users who get features, at most.
const WITH_FEATURES: usize = 2000;
/// Most events of one user that are made.
const MOST: usize = 220;

pub fn measure(runtime: &Runtime, bundle: &Path, space: &str, users: usize) -> Value {
    let server = RedisServer::with(&[]);
    let (kept, full, bytes) = fill(runtime, &server, space, users);
    drop(server);
    eprintln!("bench-ingest: {users} users: {bytes:.0} bytes each");
    let (with_features, features) = (users.min(WITH_FEATURES), RedisServer::with(&[]));
    fill(runtime, &features, space, with_features);
    let before = redis_info(&features, "memory", "used_memory:");
    let folder = tempfile::tempdir().expect("folder");
    // Its sweep at start finds everybody.
    let mut service = Setup::canned(bundle, folder.path()).on(&features.url()).start();
    let written = || service.metric("taiji_refreshes_total{result=\"written\"}") as usize >= with_features;
    wait_until("features of all users", Duration::from_secs(180), || written().then_some(()));
    let made = (redis_info(&features, "memory", "used_memory:") - before) / with_features as f64;
    assert_eq!(service.stop(), Some(0), "{}", service.stderr());
    json!({"users": users, "kept": kept, "full": full, "history_bytes": bytes, "feature_bytes": made,
        "feature_users": with_features})
}

/// (behaviours kept a user, share of users with a full list, bytes a user)
fn fill(runtime: &Runtime, server: &RedisServer, space: &str, users: usize) -> (f64, f64, f64) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut kept, mut full) = (0, 0);
    let store = runtime.block_on(open(server));
    let before = redis_info(server, "memory", "used_memory:");
    for first in (0..users).step_by(200) {
        let batches: Vec<UserBatch> = (first..users.min(first + 200)).map(|user| batch(&mut rng, user)).collect();
        kept += batches.iter().map(|batch| batch.records.len().min(200)).sum::<usize>();
        full += batches.iter().filter(|batch| batch.records.len() >= 200).count();
        runtime.block_on(store.append(&[space.to_string()], &batches)).expect("append");
    }
    let bytes = redis_info(server, "memory", "used_memory:") - before;
    (kept as f64 / users as f64, full as f64 / users as f64, bytes / users as f64)
}

fn batch(rng: &mut ChaCha8Rng, user: usize) -> UserBatch {
    let (radius, angle) =
        ((-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt(), rng.random::<f64>() * std::f64::consts::TAU);
    let events = ((30.0 * (1.2 * radius * angle.cos()).exp()) as usize).clamp(1, MOST);
    let record = |n: usize| {
        let behaviour = Behaviour {
            item_id: format!("item{:08}", rng.random_range(0..20_000)),
            action: if n.is_multiple_of(2) { "click" } else { "impression" }.into(),
            domain: "shop".into(),
            ..Behaviour::default()
        };
        let class = if n.is_multiple_of(2) { ActionClass::Engagement } else { ActionClass::Impression };
        let body = RecordBody::Behaviour { class, behaviour };
        let event_id = format!("{:016x}", user * 1000 + n);
        Record { ts_ms: 1_750_000_000_000 + n as i64 * 60_000, event_id, former_id: None, weight: 1.0, body }
    };
    UserBatch { user: format!("u{user:07}"), records: (0..events).map(record).collect() }
}
