//! Events → the store: several appends under way at once, each user's records in order of delivery.
//!
//! A lane takes what has come while its last append was under way, so a batch grows with the load and a lone record does
//! not wait. Users are spread over lanes by hash: all records of one user go through one lane. In: decoded records. Out:
//! completed places, dead letters. Callers: [`super::consumer`].

use super::dead_letter::DeadLetter;
use super::decode::BadRecord;
use super::health::Part;
use super::partitions::{Place, Role};
use super::record::Record;
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::event::BadReason;
use crate::event::Event;
use crate::ingest::{Appended, Ingest, Prepared};
use crate::live::Live;
use crate::telemetry::events::EventsStored;
use crate::telemetry::kafka::KafkaRetried;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};
use xxhash_rust::xxh3::xxh3_64;

/// An event with the record it came from.
pub(super) struct EventRecord {
    pub record: Record,
    pub event: Event,
}

/// The lane of a user.
pub(super) fn lane_of(user: &str, lanes: usize) -> usize {
    (xxh3_64(user.as_bytes()) % lanes as u64) as usize
}

/// One lane; a task of its own.
pub(super) struct Lane {
    pub number: usize,
    pub batch_records: usize,
    pub ingest: Arc<Ingest>,
    pub live: Arc<Live>,
    pub shared: Arc<Shared>,
    pub dead_letters: mpsc::UnboundedSender<DeadLetter>,
    /// Rung when users became due.
    pub wake: Arc<Notify>,
    /// Turns true when the drain's time is over.
    pub give_up: watch::Receiver<bool>,
}

impl Lane {
    /// Runs until all senders are gone.
    pub async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<EventRecord>) {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, self.batch_records).await > 0 {
            let taken = batch.len();
            let records = self.shared.partitions.start(std::mem::take(&mut batch), |entry| entry.record.place);
            self.shared.count(Role::Events, "dropped", (taken - records.len()) as u64);
            if !records.is_empty() {
                self.store(records).await;
            }
        }
    }

    async fn store(&mut self, entries: Vec<EventRecord>) {
        let (records, events): (Vec<Record>, Vec<Event>) =
            entries.into_iter().map(|entry| (entry.record, entry.event)).unzip();
        let places: Vec<Place> = records.iter().map(|record| record.place).collect();
        let prepared = self.ingest.prepare(events);
        match self.until_stored(&prepared, &places).await {
            Some(appended) => self.stored(records, appended),
            None => self.shared.partitions.abandon(places),
        }
    }

    /// `None` when nobody counts these records any more, or the drain's time is over.
    async fn until_stored(&mut self, prepared: &Prepared, places: &[Place]) -> Option<Appended> {
        let mut backoff = Backoff::default();
        let part = Part::Lane(self.number);
        loop {
            let error = match self.ingest.store(self.live.view().spaces(), prepared).await {
                Ok(appended) => {
                    self.shared.health.well(part);
                    return Some(appended);
                }
                Err(error) => error,
            };
            KafkaRetried { what: "append", error: &error }.emit(&self.shared.metrics);
            let again = self.shared.wait_to_retry(part, &error, places, &mut backoff, &mut self.give_up).await;
            if !again {
                return None;
            }
        }
    }

    /// Events of users whom the store cannot read go to the dead letters: trying again changes nothing.
    fn stored(&self, records: Vec<Record>, Appended { counts, refused }: Appended) {
        let mut records: Vec<Option<Record>> = records.into_iter().map(Some).collect();
        for (position, error) in refused {
            if let Some(record) = records[position].take() {
                let bad = BadRecord::new(BadReason::Store, error.to_string());
                // Without a receiver the session is over, and the record will be read again.
                let _ = self.dead_letters.send(DeadLetter { record, bad });
            }
        }
        self.shared.partitions.complete(records.iter().flatten().map(|record| record.place));
        self.shared.count(Role::Events, "accepted", counts.accepted);
        self.shared.count(Role::Events, "duplicate", counts.duplicates);
        EventsStored { accepted: counts.accepted, duplicates: counts.duplicates, rejected: 0 }
            .emit(&self.shared.metrics);
        if counts.due_now > 0 {
            self.wake.notify_one();
        }
    }
}
