//! The embedded store's disk fills up while Kafka's stream runs: the process ends and says why, and a start with room again has
//! every event once.

use crate::kafka::Topics;
use crate::worlds::{click, write_lines};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::SmallDisk;
use testkit::process::{SOON, wait_until};

const USERS: usize = 200;
const EVENTS: usize = 20_000;

/// An event id that the store cannot compress away.
fn long_id(n: usize) -> String {
    (0..7).fold(format!("{n:05}"), |id, part| {
        format!("{id}{:016x}", xxhash_rust::xxh3::xxh3_64(format!("{n} {part}").as_bytes()))
    })
}

#[test]
fn a_full_disk_ends_the_process_and_loses_nothing_of_the_stream() {
    let folder = tempfile::tempdir().expect("tempdir");
    let topics = Topics::new(folder.path(), "full-disk");
    // Where the service of these topics keeps its store.
    let place = folder.path().join("store");
    let Some(disk) = SmallDisk::mount(&place, "3m") else { return };
    let setup = topics.serve(folder.path());
    let events: Vec<Value> =
        (0..EVENTS).map(|n| click(&format!("u{}", n % USERS), &long_id(n), 1_700_000_000_000 + n as i64)).collect();
    let file = folder.path().join("events.jsonl");
    write_lines(&file, &events);
    let mut server = setup.start();
    topics.feed(&file);
    let code = server.wait(Duration::from_secs(120));
    assert_eq!(code, Some(70), "{}", server.stderr());
    assert!(server.stderr().contains("free disk space"), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
    disk.grow("256m");
    let mut server = setup.start();
    wait_until("every event", SOON, || {
        let seq = |user: usize| server.history(&format!("u{user}")).map_or(json!(0), |history| history["seq"].clone());
        (0..USERS).all(|user| seq(user) == json!(EVENTS / USERS)).then_some(())
    });
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    drop(server);
}
