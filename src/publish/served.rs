//! What rankers were given, on its way to the served topic: sampled by request, queued off the request path.
//!
//! In: the views of one answer and the request's id. Out: one [`Served`] a user, oldest first. Callers: the reads offer;
//! `served_topic` publishes, where `kafka.served_topic` is set.

use crate::feature::{DecodedGroup, Group, GroupView};
use crate::proto::{Served, ServedGroup, UserFeatures};
use crate::telemetry::Metrics;
use crate::telemetry::kafka::ServedDropped;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;
use xxhash_rust::xxh3::xxh3_64;

/// Most users' answers kept waiting, of a few KiB each; more are dropped and counted.
const CAP: usize = 10_000;

/// Shared by `Arc`; in memory only: what waits in a process that dies is not told.
pub struct ServedFeed {
    sample: f64,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    added: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Served>,
    closed: bool,
}

impl ServedFeed {
    /// `sample` is the share of requests that are told about, 0 to 1.
    pub fn new(sample: f64, metrics: Arc<Metrics>) -> ServedFeed {
        ServedFeed { sample, metrics, queue: Mutex::default(), added: Notify::new() }
    }

    /// Whether a request is told about: the same answer for the same id in every process.
    fn takes(&self, request_id: &str) -> bool {
        // 2^64 possible hashes.
        self.sample >= 1.0 || (xxh3_64(request_id.as_bytes()) as f64) < self.sample * 18_446_744_073_709_551_616.0
    }

    /// Notes what one answer serves out of its space, if its request is in the sample: `rows[user][group]`.
    pub fn offer<'a>(
        &self,
        request_id: &str,
        space: &str,
        users: &[String],
        groups: &[Group],
        rows: impl Iterator<Item = &'a [GroupView]>,
        now_ms: i64,
    ) {
        if !self.takes(request_id) {
            return;
        }
        let served = |(user, row): (&String, &[GroupView])| {
            let (features, groups) = of_user(user, groups, row);
            Served {
                request_id: request_id.to_string(),
                served_at_ms: now_ms,
                space: space.to_string(),
                arm: String::new(),
                features: Some(features),
                groups,
            }
        };
        let all: Vec<Served> = users.iter().zip(rows).map(served).collect();
        let mut queue = self.queue.lock();
        let room = if queue.closed { 0 } else { CAP - queue.waiting.len().min(CAP) };
        let dropped = all.len().saturating_sub(room);
        queue.waiting.extend(all.into_iter().take(room));
        drop(queue);
        if dropped > 0 {
            ServedDropped { records: dropped as u64, reason: "the queue is full or closed" }.emit(&self.metrics);
        }
        self.added.notify_one();
    }

    /// Takes up to `limit`.
    pub fn take(&self, limit: usize) -> Vec<Served> {
        let mut queue = self.queue.lock();
        let count = limit.min(queue.waiting.len());
        queue.waiting.drain(..count).collect()
    }

    /// Nobody will take any more: what waits and what comes is dropped and counted.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let left = std::mem::take(&mut queue.waiting).len() as u64;
        drop(queue);
        if left > 0 {
            ServedDropped { records: left, reason: "the process ends" }.emit(&self.metrics);
        }
    }

    /// Waits until something was noted.
    pub async fn added(&self) {
        self.added.notified().await;
    }
}

/// What one user was given. What the LLM wrote is for admins and stays out.
fn of_user(user: &str, groups: &[Group], row: &[GroupView]) -> (UserFeatures, Vec<ServedGroup>) {
    let is_present = row.iter().any(|view| view.reason.is_none());
    let mut features = UserFeatures {
        user_id: user.to_string(),
        status: if is_present { "PRESENT" } else { "MISSING" }.to_string(),
        ..UserFeatures::default()
    };
    let mut served = Vec::with_capacity(row.len());
    for (group, view) in groups.iter().zip(row) {
        match view.group.clone() {
            DecodedGroup::Intra(message) => features.intra = Some(message),
            DecodedGroup::Cross(message) => features.cross = Some(message),
            DecodedGroup::Scid(message) => features.scid = Some(message),
            DecodedGroup::Text(_) => continue,
        }
        served.push(ServedGroup {
            name: group.as_str().to_string(),
            status: view.status().to_string(),
            reason: view.reason.unwrap_or_default().to_string(),
        });
    }
    (features, served)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::view;

    fn feed(sample: f64) -> ServedFeed {
        ServedFeed::new(sample, Arc::new(Metrics::new().expect("metrics")))
    }

    const GROUPS: [Group; 2] = [Group::Intra, Group::Text];

    /// One answer about so many users without features.
    fn offer(feed: &ServedFeed, users: usize, now_ms: i64) {
        let row = || GROUPS.iter().map(|group| view(None, *group, 0, 2)).collect();
        let rows: Vec<Vec<GroupView>> = (0..users).map(|_| row()).collect();
        let users: Vec<String> = (0..users).map(|user| format!("u{user}")).collect();
        feed.offer("r", "s", &users, &GROUPS, rows.iter().map(Vec::as_slice), now_ms);
    }

    #[test]
    fn the_sample_is_a_share_of_requests_and_the_same_everywhere() {
        let (one, other) = (feed(0.25), feed(0.25));
        let ids: Vec<String> = (0..10_000).map(|n| format!("request {n}")).collect();
        let taken = ids.iter().filter(|id| one.takes(id)).count();
        assert!((2200..2800).contains(&taken), "{taken}");
        assert!(ids.iter().all(|id| one.takes(id) == other.takes(id)));
        assert!(ids.iter().all(|id| feed(1.0).takes(id) && !feed(0.0).takes(id)));
    }

    #[test]
    fn defaults_are_told_as_they_were_served_and_text_is_not() {
        let feed = feed(1.0);
        offer(&feed, 1, 5);
        let served = feed.take(10).remove(0);
        assert_eq!((served.request_id.as_str(), served.served_at_ms, served.space.as_str()), ("r", 5, "s"));
        let features = served.features.expect("features");
        assert_eq!((features.user_id.as_str(), features.status.as_str()), ("u0", "MISSING"));
        assert_eq!(features.intra.expect("intra").sparse_ids, [0, 0]);
        let names: Vec<(&str, &str)> =
            served.groups.iter().map(|group| (group.name.as_str(), group.reason.as_str())).collect();
        assert_eq!(names, [("intra", "no_features")]);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let feed = feed(1.0);
        let dropped = feed.metrics.kafka_served.with_label_values(&["dropped"]);
        for _ in 0..11 {
            offer(&feed, 1000, 0);
        }
        assert_eq!(dropped.get(), 1000);
        assert_eq!(feed.take(usize::MAX).len(), CAP);
        offer(&feed, 2, 0);
        feed.close();
        offer(&feed, 3, 0);
        assert_eq!((dropped.get(), feed.take(1).len()), (1005, 0));
    }
}
