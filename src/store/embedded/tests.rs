//! The embedded store against the conformance checks, and what only it can show: restarts, kills, failing disks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::store::conformance::{self, Subject};
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;

/// A store in a folder of its own with a clock that stands still until moved.
fn subject() -> (TempDir, Subject) {
    let folder = tempfile::tempdir().unwrap();
    let time = Arc::new(AtomicI64::new(1_700_000_000_000));
    let store = EmbeddedStore::open(folder.path(), options(&time)).unwrap();
    (folder, Subject { store, advance: Box::new(move |ms| drop(time.fetch_add(ms, Ordering::Relaxed))) })
}

fn options(time: &Arc<AtomicI64>) -> EmbeddedOptions {
    let time = time.clone();
    EmbeddedOptions {
        clock: Arc::new(move || time.load(Ordering::Relaxed)),
        flush_interval: Duration::from_millis(50),
        vector_feed_max_len: 3,
        cache_bytes: 8 << 20,
        ..EmbeddedOptions::default()
    }
}

#[tokio::test]
async fn conforms_on_one_thread() {
    let (_folder, subject) = subject();
    conformance::check_all(&subject).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_many_threads() {
    let (_folder, subject) = subject();
    conformance::check_all(&subject).await;
}
