//! Work that grows with everything stored, and that one process at a time does for all: walks over all users, all erasures.
//!
//! In: a [`Chore`], which knows its steps. Out: done, or left to whoever has it. Callers: `cli::wiring` (the sweep), `erase`.
//!
//! A lease in the store says who is at it, and the place reached stands beside it: when a process dies in the middle, the next
//! one goes on from there. After each step the store is left alone for a while.

use super::{ChoreLease, FeatureStore, StoreResult};
use async_trait::async_trait;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Whoever makes no step for so long has lost the chore.
const LEASE: Duration = Duration::from_secs(10);
/// The store is left alone after a step for so many times as long as the step took.
const REST: u32 = 4;
/// Longest wait before another look whether a chore is to be done.
pub const LOOK: Duration = Duration::from_secs(10);

/// A walk in steps. Every step may be repeated.
#[async_trait]
pub trait Chore: Send {
    /// What the lease is called; one a chore and, where it is about one, a space.
    fn name(&self) -> String;

    /// One short step from `place`, empty at the beginning; returns the place reached, empty at the end.
    async fn step(&mut self, store: &dyn FeatureStore, place: &str) -> StoreResult<String>;
}

/// Does a chore, unless another process is at it or it was done less than `every` ago, until it is done, lost or `stop` turns true.
/// Returns whether it is done.
pub async fn carry_on(
    store: &dyn FeatureStore,
    chore: &mut dyn Chore,
    every: Duration,
    stop: &watch::Receiver<bool>,
) -> StoreResult<bool> {
    let mut stop = stop.clone();
    let Some(mut lease) = store.begin_chore(&chore.name(), every, LEASE).await? else { return Ok(false) };
    loop {
        let started = Instant::now();
        let place = chore.step(store, &lease.place).await?;
        let is_done = place.is_empty();
        // A lease of no length lets another process go on at once.
        let rest = if *stop.borrow() { Duration::ZERO } else { LEASE };
        if !store.go_on_with_chore(&lease, &place, rest).await? || is_done || rest.is_zero() {
            return Ok(is_done);
        }
        lease = ChoreLease { place, ..lease };
        tokio::select! {
            _ = tokio::time::sleep(started.elapsed() * REST) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::store::{Chores, EmbeddedOptions, EmbeddedStore, StoreError};

    /// Counts to five; fails once at three.
    #[derive(Default)]
    struct Count(Vec<String>, bool);

    #[async_trait]
    impl Chore for Count {
        fn name(&self) -> String {
            "count".into()
        }

        async fn step(&mut self, _store: &dyn FeatureStore, place: &str) -> StoreResult<String> {
            if place == "3" && !std::mem::replace(&mut self.1, true) {
                return Err(StoreError::Busy { operation: "count", message: "once".into() });
            }
            self.0.push(place.into());
            Ok(match place {
                "" => "1".into(),
                "4" => String::new(),
                place => (place.parse::<u32>().unwrap() + 1).to_string(),
            })
        }
    }

    #[tokio::test]
    async fn audit_01_a_chore_goes_on_where_it_was_left_and_is_done_once_in_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let time = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(1_000_000));
        let clock = time.clone();
        let options = EmbeddedOptions {
            clock: std::sync::Arc::new(move || clock.load(std::sync::atomic::Ordering::Relaxed)),
            ..EmbeddedOptions::default()
        };
        let store = EmbeddedStore::open(folder.path(), options).unwrap();
        let (_stop, stopped) = watch::channel(false);
        let every = Duration::from_secs(60);
        let mut count = Count::default();
        assert!(carry_on(store.as_ref(), &mut count, every, &stopped).await.is_err());
        assert!(!carry_on(store.as_ref(), &mut count, every, &stopped).await.unwrap(), "the lease runs");
        time.fetch_add(LEASE.as_millis() as i64, std::sync::atomic::Ordering::Relaxed);
        assert!(carry_on(store.as_ref(), &mut count, every, &stopped).await.unwrap());
        assert_eq!(count.0, ["", "1", "2", "3", "4"]);
        assert!(!carry_on(store.as_ref(), &mut count, every, &stopped).await.unwrap(), "it was done just now");
        time.fetch_add(60_000, std::sync::atomic::Ordering::Relaxed);
        let (_stop, stopping) = watch::channel(true);
        assert!(!carry_on(store.as_ref(), &mut count, every, &stopping).await.unwrap(), "asked to stop");
        let lease = store.begin_chore("count", every, LEASE).await.unwrap().unwrap();
        assert_eq!(lease.place, "1", "at once, from where it stopped");
        assert!(store.begin_chore("count", every, LEASE).await.unwrap().is_none());
    }
}
