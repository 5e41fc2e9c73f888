//! The embedded store in a process that dies or whose disk fails: the test binary runs itself as that process.
//!
//! The child is the test [`child`] with two variables set; without them it does nothing. It appends events in order,
//! prints each event's number once the append has returned, and stops at the first error, which it prints.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::tests::{batch, click};
use super::*;
use crate::store::Histories;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use testkit::SmallDisk;

const FOLDER: &str = "TAIJI_TEST_CRASH_FOLDER";
const COUNT: &str = "TAIJI_TEST_CRASH_COUNT";
/// Spread over so many users that no list overflows: every acknowledged event can be found again.
const USERS: u64 = 50;

fn user(number: u64) -> String {
    format!("u{}", number % USERS)
}

#[tokio::test]
async fn child() {
    let (Ok(folder), Ok(count)) = (std::env::var(FOLDER), std::env::var(COUNT)) else { return };
    let store = EmbeddedStore::open(Path::new(&folder), EmbeddedOptions::default()).unwrap();
    for number in 0..count.parse().unwrap() {
        let event = click(number as i64, &format!("e{number}"), &"x".repeat(100));
        let appended = store.append(&["s".into()], &[batch(&user(number), vec![event])]).await;
        let line = match &appended {
            Ok(outcomes) => format!("ack {number} {}", outcomes[0].accepted),
            Err(error) => format!("error {error}"),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "\n{line}").unwrap();
        out.flush().unwrap();
        if appended.is_err() {
            return;
        }
    }
}

/// Starts the child, by way of a shell line that ends in `exec "$0" "$@"`.
fn start(shell: &str, folder: &Path, count: u64) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new("sh")
        .args(["-c", shell])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "store::embedded::crash_tests::child"])
        .env(FOLDER, folder)
        .env(COUNT, count.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn acknowledged(line: &str) -> Option<u64> {
    line.strip_prefix("ack ")?.strip_suffix(" 1")?.parse().ok()
}

/// Every acknowledged event is there once; beyond them at most the one that was under way.
async fn check_all_there(folder: &Path, acks: u64) {
    let store = EmbeddedStore::open(folder, EmbeddedOptions::default()).unwrap();
    let users: Vec<String> = (0..USERS).map(user).collect();
    let histories = store.histories(&users).await.unwrap();
    let mut ids = Vec::new();
    for history in histories.into_iter().flatten() {
        assert_eq!(history.state.seq as usize, history.engagements.len(), "counted and kept together");
        ids.extend(history.engagements.into_iter().map(|behaviour| behaviour.ts_ms as u64));
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..ids.len() as u64).collect::<Vec<_>>(), "each once, none missing");
    assert!((acks..=acks + 1).contains(&(ids.len() as u64)), "{acks} acknowledged, {} found", ids.len());
    let again = store.append(&["s".into()], &[batch(&user(0), vec![click(0, "e0", "x")])]).await.unwrap();
    assert_eq!(again[0].duplicates, 1, "and the store works on");
}

#[tokio::test]
async fn an_acknowledged_event_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, lines) = start("exec \"$0\" \"$@\"", folder.path(), 5000);
    let mut acks = 0;
    for line in lines {
        if let Some(number) = acknowledged(&line.unwrap()) {
            assert_eq!(number, acks);
            acks += 1;
            if acks == 2000 {
                child.kill().unwrap();
            }
        }
    }
    assert!(!child.wait().unwrap().success(), "killed, not finished");
    check_all_there(folder.path(), acks).await;
}

/// ENOSPC itself: the disk fills up under the store, stays full over a restart, and gets room again.
#[tokio::test]
async fn a_full_disk_is_an_error_and_what_was_acknowledged_is_there_when_it_has_room_again() {
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(place.path(), "2m") else { return };
    let folder = disk.path().join("store");
    let run = |count: u64| {
        let (mut child, lines) = start("exec \"$0\" \"$@\"", &folder, count);
        let lines: Vec<String> = lines.map(Result::unwrap).collect();
        child.wait().unwrap();
        let acks = lines.iter().filter(|line| acknowledged(line).is_some()).count() as u64;
        (acks, lines.iter().find_map(|line| line.strip_prefix("error ")).map(String::from))
    };
    let (acks, error) = run(100_000);
    let message = error.expect("the disk is full");
    assert!(message.contains("store append failed") && message.contains("free disk space"), "{message}");
    assert!(acks > 100, "{acks} appends before the disk was full");
    // A start on the full disk finds what was acknowledged (repeats), and a little room where the broken end was cut off.
    let (more, error) = run(100_000);
    assert!(error.is_some_and(|message| message.contains("free disk space")), "still full");
    assert!(more < acks, "{more} appends on a full disk");
    disk.grow("64m");
    check_all_there(&folder, acks + more).await;
}

#[tokio::test]
async fn a_write_the_disk_refuses_is_an_error_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // A second opening cuts the journal to its content; then a limit on file sizes refuses what would be appended to it.
    drop(EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap());
    let limited = "trap '' XFSZ; ulimit -f 512; exec \"$0\" \"$@\"";
    let (mut child, lines) = start(limited, folder.path(), 5000);
    let (mut acks, mut error) = (0, None);
    for line in lines.map(Result::unwrap) {
        acks += u64::from(acknowledged(&line).is_some());
        error = error.or(line.strip_prefix("error ").map(String::from));
    }
    child.wait().unwrap();
    let message = error.expect("the limit stops the child");
    assert!(message.contains("store append failed") && message.contains("free disk space"), "{message}");
    assert!(acks > 100, "{acks} appends before the limit");
    check_all_there(folder.path(), acks).await;
}
