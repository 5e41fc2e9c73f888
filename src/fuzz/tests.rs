//! The corpus, and seeded mutations of it, on a stable compiler.
//!
//! `make fuzz` sets how long: `TAIJI_FUZZ_SECONDS` a target (else a few thousand inputs), `TAIJI_FUZZ_TARGET` = only this one,
//! `TAIJI_FUZZ_SEED`. What breaks a promise is written to `fuzz/artifacts/<target>/`; move it into the corpus with the fix.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Mutations of a target where no time is set.
const MUTATIONS: u64 = 3000;
/// Longest input that mutations make.
const MAX_BYTES: usize = 4096;

fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// Files of a corpus by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries =
        std::fs::read_dir(folder("corpus", target)).unwrap_or_else(|error| panic!("corpus {target}: {error}"));
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Runs one input; keeps it and ends the test when a promise is broken.
fn run_one(target: &Target, name: &str, bytes: &[u8]) -> bool {
    let mut accepted = Err(None);
    let held = allocation_counter::measure(|| {
        accepted = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))).map_err(Some);
    });
    let limit = (bytes.len() * target.memory_factor + target.memory_base) as u64;
    let problem = match &accepted {
        Err(_) => "panicked (see above)".to_string(),
        Ok(_) if held.bytes_max > limit => {
            format!("held {} bytes for {}; {limit} are allowed", held.bytes_max, bytes.len())
        }
        Ok(accepted) => return *accepted,
    };
    let artifacts = folder("artifacts", target.name);
    std::fs::create_dir_all(&artifacts).unwrap();
    let path = artifacts.join(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes)));
    std::fs::write(&path, bytes).unwrap();
    panic!("target {} {problem}, input {name}, kept as {}: {}", target.name, path.display(), bytes.escape_ascii());
}

/// One to five small changes.
fn mutate(random: &mut ChaCha8Rng, target: &Target, files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = files.choose(random).unwrap().1.clone();
    for _ in 0..random.random_range(1..=5) {
        let length = bytes.len();
        let at = random.random_range(0..=length);
        let end = (at + random.random_range(0..=32)).min(length);
        match random.random_range(0..8) {
            0 if at < length => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < length => bytes[at] = *[0, 1, 0x7f, 0x80, 0xff, b'"', b'\n'].choose(random).unwrap(),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => drop(bytes.splice(at..at, target.words.choose(random).unwrap().bytes())),
            5 => {
                let other = &files.choose(random).unwrap().1;
                let from = random.random_range(0..=other.len());
                bytes.splice(at..length, other[from..].iter().copied());
            }
            6 => drop(bytes.splice(at..end, std::iter::repeat_with(|| random.random()).take(end - at))),
            _ => bytes.truncate(at),
        }
        bytes.truncate(MAX_BYTES);
    }
    bytes
}

fn fuzz(target: &Target, limit: Option<Duration>, seed: u64) {
    let files = corpus(target.name);
    let verdicts: BTreeSet<bool> = files.iter().map(|(name, bytes)| run_one(target, name, bytes)).collect();
    assert_eq!(verdicts.len(), 2, "the corpus of {} must hold what is accepted and what is refused", target.name);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (started, mut inputs, mut accepted) = (Instant::now(), 0u64, 0u64);
    while limit.map_or(inputs < MUTATIONS, |limit| started.elapsed() < limit) {
        let bytes = mutate(&mut random, target, &files);
        accepted += u64::from(run_one(target, &format!("{inputs} of seed {seed}"), &bytes));
        inputs += 1;
    }
    println!("{:22} {:3} files, {inputs} mutations, {accepted} accepted, seed {seed}", target.name, files.len());
}

#[test]
fn every_decoder_keeps_its_promises_on_the_corpus_and_on_mutations_of_it() {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let number = |name: &str| variable(name).map(|value| value.parse::<u64>().unwrap());
    let limit = number("TAIJI_FUZZ_SECONDS").map(Duration::from_secs);
    let only = variable("TAIJI_FUZZ_TARGET");
    let chosen: Vec<Target> =
        TARGETS.into_iter().filter(|target| only.as_deref().is_none_or(|only| only == target.name)).collect();
    assert!(!chosen.is_empty(), "no target {only:?}");
    for target in &chosen {
        fuzz(target, limit, number("TAIJI_FUZZ_SEED").unwrap_or(1));
    }
}

#[test]
fn the_corpus_holds_its_seeds_and_every_target_has_a_program() {
    let write = std::env::var("TAIJI_FUZZ_WRITE").is_ok();
    for (target, name, content) in seeds::all() {
        let path = folder("corpus", target).join(&name);
        if write {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &content).unwrap();
        }
        assert_eq!(std::fs::read(&path).ok(), Some(content), "{} is not what seeds.rs makes", path.display());
    }
    let manifest = std::fs::read_to_string(folder("", "").join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "fuzz/Cargo.toml has no {}", target.name);
        let program = std::fs::read_to_string(folder("fuzz_targets", &format!("{}.rs", target.name))).unwrap();
        assert!(program.contains(&format!("run(\"{}\"", target.name)), "{}", target.name);
    }
}
