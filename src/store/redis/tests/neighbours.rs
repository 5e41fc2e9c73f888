//! Replicas that follow the vector feed of one Redis in any way find the same neighbours in the end.
//!
//! Seeded: three writers append vectors, tombstones, erasures and repeats in an order of their own, at once. One replica
//! follows all the time, one is killed and started anew in the middle, one starts when all is over.

use super::*;
use crate::erase::{carry_out, hide_in_index, tombstone};
use crate::feature::Version;
use crate::retrieve::{
    FaissUserIndex, IndexShape, Neighbour, SnapshotUser, UserIndex, UserSnapshot, VectorTail, build_main, encode_f16,
};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

const DIM: usize = 8;
/// The first of them stand in the main part, too.
const USERS: usize = 60;
const MAIN: usize = 25;
const STEPS: usize = 300;

#[derive(Clone)]
enum Step {
    Append(FreshVector),
    Erase(String),
}

/// A generation on disk, as every replica loads it.
struct Generation {
    folder: tempfile::TempDir,
}

impl Generation {
    fn make(random: &mut ChaCha8Rng) -> Generation {
        let folder = tempfile::tempdir().unwrap();
        let vectors: Vec<f32> = (0..MAIN).flat_map(|_| unit(random)).collect();
        let shape = IndexShape { factory: "Flat".into(), dim: DIM };
        build_main(&shape, &vectors, &folder.path().join("users.faiss")).unwrap();
        let users: Vec<SnapshotUser> =
            (0..MAIN).map(|user| SnapshotUser { user: name(user), engagements: Vec::new() }).collect();
        UserSnapshot::write(&folder.path().join("users.parquet"), &users).unwrap();
        Generation { folder }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        Path::join(self.folder.path(), name)
    }
}

/// A process' index and its tail, on connections of its own.
struct Replica {
    index: Arc<FaissUserIndex>,
    tail: VectorTail,
}

impl Replica {
    /// As `cli::wiring` does it.
    async fn start(server: &RedisServer, generation: &Generation) -> Replica {
        let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(4)).await.unwrap();
        let (users, _) = UserSnapshot::read(&generation.file("users.parquet")).unwrap();
        let index = Arc::new(FaissUserIndex::load(&generation.file("users.faiss"), users, DIM, 1).unwrap());
        let mut tail = VectorTail::new(store.clone(), index.clone(), "s".into());
        tail.catch_up().await.unwrap();
        hide_in_index(store.as_ref(), index.as_ref()).await.unwrap();
        Replica { index, tail }
    }

    async fn answers(&mut self, queries: &[Vec<f32>]) -> Vec<Vec<Neighbour>> {
        self.tail.catch_up().await.unwrap();
        queries.iter().map(|query| self.index.search(query, 10, &name(0)).unwrap()).collect()
    }
}

fn name(user: usize) -> String {
    format!("u{user}")
}

fn unit(random: &mut ChaCha8Rng) -> Vec<f32> {
    let vector: Vec<f32> = (0..DIM).map(|_| random.random_range(-1.0f32..1.0)).collect();
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.into_iter().map(|value| value / norm).collect()
}

fn steps(random: &mut ChaCha8Rng) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(STEPS);
    for _ in 0..STEPS {
        let user = name(random.random_range(0..USERS));
        let step = match random.random_range(0..20) {
            0 => Step::Erase(user),
            1 | 2 => Step::Append(tombstone(&user, random.random_range(0..3))),
            3..8 if !steps.is_empty() => steps[random.random_range(0..steps.len())].clone(),
            _ => Step::Append(FreshVector {
                user,
                era: random.random_range(0..2),
                version: Version { seq: random.random_range(1..6), turn: random.random_range(0..2) },
                // Two refreshes of one version may write different vectors: an LLM's answer is sampled.
                vector: Some(encode_f16(&unit(random))),
            }),
        };
        steps.push(step);
    }
    steps
}

async fn write(store: &RedisStore, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Append(fresh) => store.append_vector("s", fresh).await.unwrap(),
            Step::Erase(user) => {
                let erasure = store.note_erasure(user).await.unwrap();
                carry_out(store, &erasure, &|| true).await.unwrap();
            }
        }
    }
}

async fn one_world(server: &RedisServer, seed: u64) {
    server.command(&["FLUSHALL"]);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let generation = Generation::make(&mut random);
    let mut writers = Vec::new();
    for _ in 0..3 {
        let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options(4)).await.unwrap();
        store.note_space("s").await.unwrap();
        writers.push(store);
    }
    let mut all = steps(&mut random);
    let mut faithful = Replica::start(server, &generation).await;
    let mut restarted = Replica::start(server, &generation).await;
    for part in 0..6 {
        let mut now: Vec<Step> = all.drain(..STEPS / 6).collect();
        now.shuffle(&mut random);
        let third = now.len() / 3;
        tokio::join!(
            write(&writers[0], &now[..third]),
            write(&writers[1], &now[third..2 * third]),
            write(&writers[2], &now[2 * third..]),
            async {
                for _ in 0..5 {
                    faithful.tail.catch_up().await.unwrap();
                    tokio::task::yield_now().await;
                }
            },
        );
        if part % 2 == 0 {
            restarted.tail.catch_up().await.unwrap();
        } else {
            // kill -9: nothing of it is left but what the store holds.
            restarted = Replica::start(server, &generation).await;
        }
    }
    let mut late = Replica::start(server, &generation).await;
    let queries: Vec<Vec<f32>> = (0..20).map(|_| unit(&mut random)).collect();
    let expected = faithful.answers(&queries).await;
    assert!(expected.iter().all(|found| found.len() == 10), "seed {seed}");
    assert_eq!(restarted.answers(&queries).await, expected, "started anew in the middle, seed {seed}");
    assert_eq!(late.answers(&queries).await, expected, "started late, seed {seed}");
}

#[tokio::test]
async fn every_replica_finds_the_same_neighbours() {
    let server = RedisServer::with(&[]);
    for seed in 0..8 {
        one_world(&server, seed).await;
    }
}
