//! What a serving read brings over the wire, beside the whole record that a refresh reads.

use super::*;
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{CrossGroup, IntraGroup};
use crate::store::{FeaturePut, PutBody};
use prost::Message;
use std::time::Instant;

/// Set by `make bench-store`: enough reads to measure a rate.
const LARGE: &str = "TAIJI_BENCH_STORE";
/// fp16 of 1,024 dimensions.
const VECTOR_BYTES: usize = 2048;
pub(super) const USERS: usize = 100;

pub(super) async fn fill(store: &RedisStore) -> Vec<String> {
    let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
    let record = conformance::engagement(1, "e", "item");
    let batches: Vec<UserBatch> =
        users.iter().map(|user| UserBatch { user: user.clone(), records: vec![record.clone()] }).collect();
    store.append(&["s".into()], &batches).await.unwrap();
    let version = Version { seq: 1, turn: 0 };
    let meta = Some(conformance::meta(version));
    let intra = IntraGroup { meta: meta.clone(), sparse_ids: (0..8).collect(), ..IntraGroup::default() };
    let items = (0..100).map(|item| format!("item{item:08}")).collect();
    let cross = CrossGroup { meta, item_ids: items, ..CrossGroup::default() };
    for user in &users {
        let blob = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 0 };
        let groups = vec![blob(Group::Intra, intra.encode_to_vec()), blob(Group::Cross, cross.encode_to_vec())];
        let body = PutBody::Write { groups, prompt_hash: 7, embedding: vec![1; VECTOR_BYTES] };
        store.put("s", FeaturePut { user: user.clone(), era: 0, version, tier: 1, body }).await.unwrap();
    }
    users
}

/// Bytes the server has sent so far.
fn sent(server: &RedisServer) -> u64 {
    let info = server.command(&["INFO", "stats"]);
    let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).expect("a number of bytes")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[tokio::test]
async fn a_reader_gets_the_groups_it_asked_for_and_no_vector() {
    let server = RedisServer::with(&[]);
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(1)).await.unwrap();
    let users = fill(&store).await;
    // The question itself is answered with some bytes.
    let idle = {
        let before = sent(&server);
        sent(&server) - before
    };
    let rounds = if std::env::var_os(LARGE).is_some() { 300 } else { 9 };
    let wanted: [&[Group]; 2] = [&[Group::Intra], &[Group::Intra, Group::Cross, Group::Scid]];
    for groups in wanted {
        for batch in [1, USERS] {
            let (mut whole_us, mut light_us, mut whole_bytes, mut light_bytes) = (Vec::new(), Vec::new(), 0, 0);
            for _ in 0..rounds {
                let (before, started) = (sent(&server), Instant::now());
                let whole = store.features("s", &users[..batch]).await.unwrap();
                whole_us.push(started.elapsed().as_secs_f64() * 1e6);
                whole_bytes = sent(&server) - before - idle;
                let (before, started) = (sent(&server), Instant::now());
                let light = store.feature_groups("s", &users[..batch], groups).await.unwrap();
                light_us.push(started.elapsed().as_secs_f64() * 1e6);
                light_bytes = (sent(&server) - before).saturating_sub(idle);
                let expected = whole.into_iter().map(|features| features.map(|features| features.only(groups)));
                assert_eq!(light, expected.collect::<Vec<_>>());
            }
            println!(
                "{batch} users, {groups:?}: whole {whole_bytes} B {:.0} us, asked for {light_bytes} B {:.0} us (medians of {rounds})",
                median(whole_us),
                median(light_us),
            );
            assert!(light_bytes + (batch * VECTOR_BYTES) as u64 <= whole_bytes + 16, "{light_bytes} of {whole_bytes}");
        }
    }
}
