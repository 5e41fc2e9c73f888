//! The worst of erasing: as many events ahead of the clock as are kept, with as many remembered already; and of appending beside them.

use super::*;
use crate::store::IdlePlan;

/// Functions that have their case here.
pub const FUNCTIONS: [&str; 3] = ["plan_idle_erasure", "settle_idle_erasure", "quiet_time"];
/// As far ahead of the clock as events are sent here.
const AHEAD_MS: i64 = 20 * 3_600_000;

/// Full lists and a full profile, all ahead of the clock, each known under a former id; no two tags share an id.
fn life_ahead(user: &str, tag: &str) -> UserBatch {
    let mut life = full_life(user);
    for record in &mut life.records {
        record.ts_ms += AHEAD_MS;
        record.event_id.push_str(tag);
        record.former_id = Some(record.event_id.clone() + "0");
    }
    life
}

/// An event in the midst of those, looked for under two ids.
fn former(n: usize) -> Record {
    let record = conformance::engagement(NOW_MS + AHEAD_MS, &long_id(n % 100, &format!("f{n:06}")), "i");
    Record { former_id: Some(long_id(n, "h")), ..record }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_08_erasing_what_lies_ahead_costs_the_server_no_more_than_it_may() {
    let (server, mut log) = Log::of_new_server().await;
    let clock = Arc::new(AtomicI64::new(NOW_MS));
    let address = Address::parse(&server.url()).unwrap();
    let store = RedisStore::open_with_clock(address, options(8), Some(clock)).await.unwrap();
    for nth in 0..if is_audit() { 20 } else { 5 } {
        let gone = format!("gone{nth}");
        for tag in ["a", "b", "c"] {
            run_in!(log, "a life by two ids", store.append(&["s".into()], &[life_ahead(&gone, tag)]).await.unwrap());
            let erasure = store.note_erasure(&gone).await.unwrap();
            run_in!(log, "all ahead", store.erase_user(&erasure).await.unwrap());
        }
        store.append(&["s".into()], &[life_ahead(&gone, "d")]).await.unwrap();
        let looked_for = |from: usize, to: usize| batch(&gone, (from..to).map(former).collect());
        run_in!(log, "a few by two ids", store.append(&["s".into()], &[looked_for(0, 8)]).await.unwrap());
        run_in!(log, "many by two ids", store.append(&["s".into()], &[looked_for(8, 1008)]).await.unwrap());
        let plan = IdlePlan { seq: 1, shown: vec![(long_id(0, "s"), long_id(0, "n")); 16] };
        let idle = run_in!(log, "idle", store.plan_idle_erasure(&gone, &plan).await.unwrap());
        assert_eq!(idle, None, "another is under way");
        let idle = run_in!(log, "idle", store.plan_idle_erasure("idle", &plan).await.unwrap()).unwrap();
        run_in!(log, "idle", store.settle_idle_erasure(&idle, true).await.unwrap());
        store.finish_erasure(&idle.as_erasure(), 1).await.unwrap();
        run_in!(log, "idle", store.quiet_time(1).await.unwrap());
    }
    for (scenario, name) in log.longest.keys() {
        let micros = &log.longest[&(*scenario, name.clone())];
        if matches!(name.as_str(), "append" | "erase") {
            println!("audit 08: {name}, {scenario}: {:?} to {:?} µs", micros.iter().min(), micros.iter().max());
        }
    }
    let seen = log.judged();
    assert!(FUNCTIONS.iter().all(|name| seen.contains(*name)), "{seen:?}");
}
