//! Two layouts of a history, measured: the packed lists of the store, and sorted sets of ids beside a hash of behaviours.
//! `make bench-store` prints memory of a user with full lists, and appends a second.

use super::*;
use crate::store::{HISTORY_CAP, Record, RecordBody};
use prost::Message;
use std::time::Instant;

/// Set by `make bench-store`: enough users and rounds to measure a rate.
const LARGE: &str = "TAIJI_BENCH_STORE";

/// The layout DESIGN 5.2 names, with the same meaning: order by (ts, id), caps, duplicates by id, seq and weight.
const SORTED_SETS: &str = r"#!lua name=layout
redis.register_function('layout_append', function(keys, args)
  local added = 0
  for at = 1, #args, 4 do
    local list, ts, id, body = keys[tonumber(args[at])], args[at + 1], args[at + 2], args[at + 3]
    if redis.call('HEXISTS', keys[3], id) == 0 then
      redis.call('ZADD', list, ts, id)
      redis.call('HSET', keys[3], id, body)
      added = added + 1
      if redis.call('ZCARD', list) > 100 then
        local out = redis.call('ZPOPMIN', list)[1]
        redis.call('HDEL', keys[3], out)
        if out == id then added = added - 1 end
      end
    end
  end
  redis.call('HINCRBY', keys[4], 'seq', added)
  redis.call('HINCRBYFLOAT', keys[4], 'weight', added)
  return added
end)";

/// An event as the demo's world makes them: ids of 16 characters, 12-character items.
fn event(user: usize, n: usize) -> Record {
    let make = if n.is_multiple_of(2) { conformance::engagement } else { conformance::impression };
    make(1_700_000_000_000 + n as i64 * 1000, &format!("{user:08}{n:08}"), &format!("item{:08}", n % 50))
}

fn sorted_sets_call(user: usize, records: &[Record]) -> Call {
    let keys = ["e", "i", "hb", "st"].map(|part| format!("layout:{{u{user}}}:{part}"));
    records.iter().fold(Call::function("layout_append", &keys), |call, record| {
        let RecordBody::Behaviour { class, behaviour } = &record.body else { unreachable!("behaviours only") };
        let list = if *class == crate::event::ActionClass::Engagement { 1 } else { 2 };
        call.arg(list).arg(record.ts_ms).arg(&record.event_id).arg(behaviour.encode_to_vec())
    })
}

/// Sum of `MEMORY USAGE` over all keys of that pattern, by user.
async fn memory(store: &RedisStore, pattern: &str, users: usize) -> i64 {
    let keys: Vec<String> =
        values::read("keys", store.link.one("measure", Call::new("KEYS", pattern)).await.unwrap()).unwrap();
    let calls =
        keys.iter().map(|key| Call::beside("MEMORY", key).arg("USAGE").arg(key).arg("SAMPLES").arg(0)).collect();
    let sizes = store.link.run("measure", calls).await.unwrap();
    sizes.into_iter().map(|size| values::read::<i64>("size", size).unwrap()).sum::<i64>() / users as i64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layouts_compared() {
    let (users, rounds) = if std::env::var_os(LARGE).is_some() { (500, 40) } else { (20, 3) };
    let server = RedisServer::with(&[]);
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(1)).await.unwrap();
    let mut load = redis::cmd("FUNCTION");
    load.arg("LOAD").arg(SORTED_SETS);
    store.link.everywhere("measure", &load).await.unwrap();
    let (mut packed_s, mut sorted_s) = (0.0, 0.0);
    for round in 0..rounds {
        // The first round fills the lists; it is not timed.
        let span = if round == 0 { 0..2 * HISTORY_CAP } else { 2 * HISTORY_CAP + round..2 * HISTORY_CAP + round + 1 };
        let batches: Vec<UserBatch> = (0..users)
            .map(|user| UserBatch { user: format!("u{user}"), records: span.clone().map(|n| event(user, n)).collect() })
            .collect();
        let started = Instant::now();
        store.append("s", &batches).await.unwrap();
        let packed = started.elapsed().as_secs_f64();
        let calls = batches.iter().enumerate().map(|(user, batch)| sorted_sets_call(user, &batch.records)).collect();
        let started = Instant::now();
        store.link.run("measure", calls).await.unwrap();
        if round > 0 {
            packed_s += packed;
            sorted_s += started.elapsed().as_secs_f64();
        }
    }
    let appends = ((rounds - 1) * users) as f64;
    let (packed, sorted) = (memory(&store, "taiji:{*", users).await, memory(&store, "layout:{*", users).await);
    println!("| layout | bytes a user | appends/s |\n|---|---|---|");
    println!("| packed lists | {packed} | {:.0} |", appends / packed_s);
    println!("| sorted sets and a hash | {sorted} | {:.0} |", appends / sorted_s);
    assert!(packed < sorted, "the layout was chosen for its memory");
}
