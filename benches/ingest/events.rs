//! The stream that every run reads, and what the store must hold after it.
//!
//! In: a size. Out: records for Kafka; per user the counters and lists that DESIGN 5.2 asks for. Same seed, same stream:
//! a heavy tail of users and items, 1 % late, 0.5 % delivered twice. Caller: `main`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

const START_MS: i64 = 1_750_000_000_000;
const ITEMS: f64 = 20_000.0;
/// Most entries kept of engagements, impressions, queries.
const CAPS: [usize; 3] = [100, 100, 20];

/// One record to produce.
pub struct Produced {
    pub user: String,
    pub json: String,
    /// 0 engagement, 1 impression, 2 query.
    list: usize,
    ts_ms: i64,
    id: String,
}

/// What is kept of a user.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Kept {
    pub seq: u64,
    /// (ts, event id), newest first.
    pub lists: [Vec<(i64, String)>; 3],
}

pub fn make(events: usize, users: usize) -> Vec<Produced> {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut made: Vec<Produced> = Vec::with_capacity(events);
    for n in 0..events {
        if n > 1000 && rng.random_bool(0.005) {
            let again = &made[n - 1 - rng.random_range(0..1000)];
            let copy = Produced { user: again.user.clone(), json: again.json.clone(), id: again.id.clone(), ..*again };
            made.push(copy);
            continue;
        }
        let late_ms = if rng.random_bool(0.01) { rng.random_range(0..600_000) } else { 0 };
        made.push(one(&mut rng, n, users, START_MS + n as i64 * 10 - late_ms));
    }
    made
}

fn one(rng: &mut ChaCha8Rng, n: usize, users: usize, ts_ms: i64) -> Produced {
    let skewed = |rng: &mut ChaCha8Rng, of: f64| (rng.random::<f64>().powi(2) * of) as usize;
    let user = format!("u{:07}", skewed(rng, users as f64));
    let item = format!("item{:08}", skewed(rng, ITEMS));
    let id = format!("{n:016x}");
    let (action, list) = match rng.random_range(0..100) {
        0..50 => ("impression", 1),
        50..85 => ("click", 0),
        85..92 => ("long_view", 0),
        92..96 => ("add_to_cart", 0),
        96..98 => ("purchase", 0),
        _ => ("search", 2),
    };
    let what = match list {
        2 => format!(r#""context":{{"query":"query {item}"}}"#),
        _ => format!(r#""item_id":"{item}""#),
    };
    let json = format!(
        r#"{{"event_id":"{id}","user_id":"{user}","action":"{action}","ts_ms":{ts_ms},"domain":"shop",{what}}}"#
    );
    Produced { user, json, list, ts_ms, id }
}

/// The store's meaning, done plainly.
pub fn expected(made: &[Produced]) -> HashMap<String, Kept> {
    let mut users: HashMap<String, Kept> = HashMap::new();
    for event in made {
        let kept = users.entry(event.user.clone()).or_default();
        if kept.lists.iter().flatten().any(|(_, id)| *id == event.id) {
            continue;
        }
        let list = &mut kept.lists[event.list];
        let entry = (event.ts_ms, event.id.clone());
        let place = list.partition_point(|other| *other > entry);
        if place >= CAPS[event.list] {
            continue;
        }
        list.insert(place, entry);
        list.truncate(CAPS[event.list]);
        kept.seq += 1;
    }
    users
}
