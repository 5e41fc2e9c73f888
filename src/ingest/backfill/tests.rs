#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::due::{CLASS_ROUTINE, DuePolicy};
use crate::feature::{Group, GroupBlob, Version};
use crate::store::{EmbeddedOptions, EmbeddedStore, FeaturePut, FeatureStore, PutBody, PutOutcome, Queue};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const SPACE: &str = "space";
const NOW_MS: i64 = 1_800_000_000_000;

/// A store, a file, and what is between them.
struct Bench {
    _folder: tempfile::TempDir,
    data: PathBuf,
    checkpoint: PathBuf,
    store: Arc<dyn FeatureStore>,
    clock: Arc<AtomicI64>,
    ingest: Ingest,
    decoder: EventDecoder,
}

impl Bench {
    fn new(lines: &[String]) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("events.jsonl");
        std::fs::write(&data, lines.join("\n")).unwrap();
        let clock = Arc::new(AtomicI64::new(NOW_MS));
        let read = clock.clone();
        let options =
            EmbeddedOptions { clock: Arc::new(move || read.load(Ordering::SeqCst)), ..EmbeddedOptions::default() };
        let store = EmbeddedStore::open(&folder.path().join("store"), options).unwrap();
        let settings = crate::config::load(None, std::iter::empty(), &[]).unwrap();
        let policy = DuePolicy::new(&settings.refresh);
        let ingest = Ingest::new(store.clone(), settings.events.actions.clone(), policy);
        let decoder = EventDecoder::new(settings.events.actions, settings.events.field_map);
        Bench { data, checkpoint: folder.path().join("checkpoint"), store, clock, ingest, decoder, _folder: folder }
    }

    async fn run(&self, options: BackfillOptions) -> (BackfillReport, Vec<Rejection>) {
        let mut checkpoint = Checkpoint::open(&self.checkpoint, &self.data, "here").unwrap();
        let mut rejections = Vec::new();
        let spaces = Spaces::only(SPACE);
        let backfill = Backfill { ingest: &self.ingest, decoder: &self.decoder, spaces: &spaces, options };
        let reject = |rejection: &Rejection| {
            rejections.push(rejection.clone());
            Ok(())
        };
        let rows = Rows::open(&self.data).unwrap();
        let report = backfill.run(rows, &mut checkpoint, NOW_MS, |_| {}, reject).await.unwrap();
        (report, rejections)
    }

    /// Users in the order in which they are given out, and when.
    async fn queue(&self) -> Vec<(String, i64)> {
        self.clock.store(NOW_MS + 1_000_000, Ordering::SeqCst);
        let claims = self.store.claim(Queue::Due, 100, Duration::from_secs(60)).await.unwrap();
        assert!(claims.iter().all(|claim| claim.class == CLASS_ROUTINE));
        claims.into_iter().map(|claim| (claim.user, claim.due_ms - NOW_MS)).collect()
    }
}

fn options() -> BackfillOptions {
    BackfillOptions { batch: 3, concurrency: 2, rate: 0, refresh_rate: 4.0, refresh_users: 0 }
}

fn event(user: &str, number: usize) -> String {
    let id = format!("{user}-{number}");
    json!({"event_id": id, "user_id": user, "item_id": "i", "action": "click", "ts_ms": NOW_MS - 1000 + number as i64})
        .to_string()
}

/// a: 2 events, b: 5, c: 1, and two bad rows.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> = (0..5).map(|number| event("b", number)).collect();
    lines.insert(1, event("a", 0));
    lines.insert(3, "{no json".into());
    lines.insert(5, event("c", 0));
    lines.push(event("a", 1));
    lines.push(json!({"user_id": "d", "action": "click", "ts_ms": NOW_MS}).to_string());
    lines
}

#[tokio::test]
async fn the_busiest_become_due_first_as_far_apart_as_the_budget_says() {
    let bench = Bench::new(&lines());
    let (report, rejections) = bench.run(options()).await;
    let counts = AppendCounts { accepted: 8, duplicates: 0, due_now: 0 };
    let wanted = BackfillReport { rows: 10, done_before: 0, counts, rejected: 2, unreadable: 0, users: 3, marked: 3 };
    assert_eq!(report, wanted);
    let places: Vec<(u64, &str)> = rejections.iter().map(|one| (one.row, one.field.as_str())).collect();
    assert_eq!(places, [(4, "row"), (10, "item_id")]);
    assert_eq!(bench.queue().await, [("b".into(), 0), ("a".into(), 250), ("c".into(), 500)]);
    let history = bench.store.histories(&["b".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!(history.engagements.len(), 5);
}

#[tokio::test]
async fn what_is_done_is_not_done_again_and_doing_it_again_is_harmless() {
    let bench = Bench::new(&lines());
    Checkpoint::open(&bench.checkpoint, &bench.data, "here").unwrap().save(6).unwrap();
    let (report, rejections) = bench.run(BackfillOptions { refresh_users: 2, ..options() }).await;
    assert_eq!((report.done_before, report.counts.accepted, report.users), (6, 3, 3));
    assert_eq!((rejections.len(), report.marked), (1, 2), "users are ranked by the whole file");
    std::fs::remove_file(&bench.checkpoint).unwrap();
    let (again, _) = bench.run(options()).await;
    assert_eq!((again.counts, again.rejected), (AppendCounts { accepted: 5, duplicates: 3, due_now: 0 }, 2));
    let (done, _) = bench.run(BackfillOptions { refresh_rate: 0.0, ..options() }).await;
    assert_eq!((done.done_before, done.counts, done.marked), (10, AppendCounts::default(), 0));
}

#[tokio::test]
async fn who_is_refreshed_already_stays_out_of_the_queue() {
    let bench = Bench::new(&lines());
    bench.run(BackfillOptions { refresh_rate: 0.0, ..options() }).await;
    assert!(bench.queue().await.is_empty());
    bench.clock.store(NOW_MS, Ordering::SeqCst);
    let version = Version { seq: 5, turn: 0 };
    let group = GroupBlob { group: Group::Intra, bytes: Vec::new().into(), tier: 1, version, expires_at_ms: 0 };
    let body = PutBody::Write { groups: vec![group], prompt_hash: 1, embedding: Vec::new() };
    let put = FeaturePut { user: "b".into(), era: 0, version, tier: 1, body };
    assert_eq!(bench.store.put(SPACE, put).await.unwrap(), PutOutcome::Written { current_seq: 5 });
    let (report, _) = bench.run(options()).await;
    assert_eq!(report.marked, 2);
    assert_eq!(bench.queue().await, [("a".into(), 0), ("c".into(), 250)]);
}
