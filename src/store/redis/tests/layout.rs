//! Three layouts of a history, measured: the store's Redis lists, strings that a function takes apart, and sorted sets of ids
//! beside a hash of behaviours. `make bench-store` prints memory of a user with full lists, appends a second, and the processor
//! time that Redis spent on one.

use super::*;
use crate::store::redis::history::{Source, parts_of};
use crate::store::{HISTORY_CAP, Record, RecordBody};
use prost::Message;
use std::time::Instant;

/// Set by `make bench-store`: enough users and rounds to measure a rate.
const LARGE: &str = "TAIJI_BENCH_STORE";

/// Strings that hold whole lists.
const PACKED: &str = include_str!("packed.lua");

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

/// 1 engagement, 2 impression; and the message.
fn list_and_body(record: &Record) -> (u8, Vec<u8>) {
    let RecordBody::Behaviour { class, behaviour } = &record.body else { unreachable!("behaviours only") };
    let list = if *class == crate::event::ActionClass::Engagement { 1 } else { 2 };
    (list, behaviour.encode_to_vec())
}

fn sorted_sets_call(user: usize, records: &[Record]) -> Call {
    let keys = ["e", "i", "hb", "st"].map(|part| format!("layout:{{u{user}}}:{part}"));
    records.iter().fold(Call::function("layout_append", &keys), |call, record| {
        let (list, body) = list_and_body(record);
        call.arg(list).arg(record.ts_ms).arg(&record.event_id).arg(body)
    })
}

fn packed_call(user: usize, records: &[Record]) -> Call {
    let keys = ["st", "e", "i", "q"].map(|part| format!("packed:{{u{user}}}:{part}"));
    records.iter().fold(Call::function("packed_append", &keys), |call, record| {
        let RecordBody::Behaviour { behaviour, .. } = &record.body else { unreachable!("behaviours only") };
        let (list, _) = list_and_body(record);
        let body = crate::proto::Behaviour { ts_ms: 0, event_id: String::new(), ..behaviour.clone() };
        let [_, _, ts @ ..] = (record.ts_ms + (1 << 47)).to_be_bytes();
        let id = record.event_id.as_bytes();
        call.arg(list).arg([ts.as_slice(), &[id.len() as u8], id, &body.encode_to_vec()].concat())
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

/// Seconds of processor time that the server has used.
fn processor_s(server: &RedisServer) -> f64 {
    let info = server.command(&["INFO", "cpu"]);
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    field("used_cpu_user:").unwrap() + field("used_cpu_sys:").unwrap()
}

/// One layout's sums over all timed rounds.
struct Layout {
    name: &'static str,
    keys: &'static str,
    wall_s: f64,
    processor_s: f64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn layouts_compared() {
    let (users, rounds) = if std::env::var_os(LARGE).is_some() { (500, 40) } else { (20, 3) };
    let server = RedisServer::with(&["--appendonly", "yes", "--appendfsync", "everysec"]);
    let store = RedisStore::open(Address::parse(&server.operators_url()).unwrap(), options(1)).await.unwrap();
    for library in [SORTED_SETS, PACKED] {
        let mut load = redis::cmd("FUNCTION");
        load.arg("LOAD").arg(library);
        store.link.everywhere("measure", &load).await.unwrap();
    }
    let layout = |name, keys| Layout { name, keys, wall_s: 0.0, processor_s: 0.0 };
    let mut layouts = [
        layout("Redis lists (the store's)", "taiji:{*"),
        layout("strings taken apart in Lua", "packed:{*"),
        layout("sorted sets beside a hash", "layout:{*"),
    ];
    for round in 0..rounds {
        // The first round fills the lists; it is not timed.
        let span = if round == 0 { 0..2 * HISTORY_CAP } else { 2 * HISTORY_CAP + round..2 * HISTORY_CAP + round + 1 };
        let batches: Vec<UserBatch> = (0..users)
            .map(|user| UserBatch { user: format!("u{user}"), records: span.clone().map(|n| event(user, n)).collect() })
            .collect();
        for (nth, layout) in layouts.iter_mut().enumerate() {
            let calls = |make: fn(usize, &[Record]) -> Call| {
                batches.iter().enumerate().map(|(user, batch)| make(user, &batch.records)).collect()
            };
            let calls: Vec<Call> = match nth {
                0 => batches
                    .iter()
                    .flat_map(parts_of)
                    .map(|part| store.append_call(Source::Live, &["s".into()], &part).unwrap())
                    .collect(),
                1 => calls(packed_call),
                _ => calls(sorted_sets_call),
            };
            let (processor, started) = (processor_s(&server), Instant::now());
            store.link.run("measure", calls).await.unwrap();
            if round > 0 {
                layout.wall_s += started.elapsed().as_secs_f64();
                layout.processor_s += processor_s(&server) - processor;
            }
        }
    }
    let appends = ((rounds - 1) * users) as f64;
    println!("| layout | bytes a user | appends/s | Redis' processor time of one, µs |\n|---|---|---|---|");
    let mut bytes = Vec::new();
    for Layout { name, keys, wall_s, processor_s } in layouts {
        bytes.push(memory(&store, keys, users).await);
        let micros = processor_s / appends * 1e6;
        println!("| {name} | {} | {:.0} | {micros:.1} |", bytes[bytes.len() - 1], appends / wall_s);
    }
    assert!(bytes[0] < bytes[2], "the layout was chosen for its memory");
}
