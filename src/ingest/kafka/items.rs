//! The items topic → the catalogue overlay: a put, or a tombstone that pauses what is known under that id.
//!
//! One task, in order of delivery: the topic is compacted, so its last record of an item is the one that counts. In: decoded
//! records. Out: completed places. Callers: [`super::consumer`].

use super::decode::ItemChange;
use super::health::Part;
use super::partitions::{Place, Role};
use super::record::Record;
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::catalogue::Catalogue;
use crate::event::{Item, ItemState};
use crate::store::StoreResult;
use crate::telemetry::events::ItemsStored;
use crate::telemetry::kafka::KafkaRetried;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// A change with the record it came from.
pub(super) struct ItemRecord {
    pub record: Record,
    pub change: ItemChange,
}

/// The part that stores them; one a session.
pub(super) struct ItemLane {
    pub batch_records: usize,
    pub catalogue: Arc<Catalogue>,
    pub shared: Arc<Shared>,
    /// Turns true when the drain's time is over.
    pub give_up: watch::Receiver<bool>,
}

impl ItemLane {
    /// Runs until all senders are gone.
    pub async fn run(mut self, mut receiver: mpsc::UnboundedReceiver<ItemRecord>) {
        let mut batch = Vec::new();
        while receiver.recv_many(&mut batch, self.batch_records).await > 0 {
            let taken = batch.len();
            let entries = self.shared.partitions.start(std::mem::take(&mut batch), |entry| entry.record.place);
            self.shared.count(Role::Items, "dropped", (taken - entries.len()) as u64);
            if !entries.is_empty() {
                self.until_stored(&entries).await;
            }
        }
    }

    async fn until_stored(&mut self, entries: &[ItemRecord]) {
        let places: Vec<Place> = entries.iter().map(|entry| entry.record.place).collect();
        let mut backoff = Backoff::default();
        loop {
            let error = match self.store(entries).await {
                Ok(()) => {
                    self.shared.health.well(Part::Items);
                    self.shared.partitions.complete(places);
                    self.shared.count(Role::Items, "accepted", entries.len() as u64);
                    ItemsStored { accepted: entries.len() as u64, rejected: 0 }.emit(&self.shared.metrics);
                    return;
                }
                Err(error) => error,
            };
            KafkaRetried { what: "items", error: &error }.emit(&self.shared.metrics);
            let again = self.shared.wait_to_retry(Part::Items, &error, &places, &mut backoff, &mut self.give_up).await;
            if !again {
                return self.shared.partitions.abandon(places);
            }
        }
    }

    async fn store(&self, entries: &[ItemRecord]) -> StoreResult<()> {
        if entries.iter().any(|entry| matches!(entry.change, ItemChange::Pause(_))) {
            // A tombstone keeps title and categories: histories still show the item.
            self.catalogue.catch_up(self.shared.store.as_ref()).await?;
        }
        let mut latest: BTreeMap<&str, Item> = BTreeMap::new();
        for entry in entries {
            match &entry.change {
                ItemChange::Put(item) => {
                    latest.insert(&item.id, item.clone());
                }
                ItemChange::Pause(id) => {
                    let known = latest.get(id.as_str()).cloned();
                    let known = known.or_else(|| self.catalogue.get(id).map(|item| item.as_ref().clone()));
                    // An item nobody ever heard of needs no pausing.
                    if let Some(item) = known {
                        latest.insert(id, Item { state: ItemState::Paused, ..item });
                    }
                }
            }
        }
        let items: Vec<Item> = latest.into_values().collect();
        if items.is_empty() { Ok(()) } else { self.shared.store.put_items(&items).await }
    }
}
