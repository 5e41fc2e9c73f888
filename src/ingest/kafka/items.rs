//! The items topic → the catalogue overlay: a put, or a tombstone that deletes what is known under that id.
//!
//! One task, in order of delivery: the topic is compacted, so its last record of an item is the one that counts. In: decoded
//! records. Out: completed places. Callers: [`super::consumer`].

use super::dead_letter::DeadLetter;
use super::decode::{BadRecord, ItemChange};
use super::health::Part;
use super::partitions::{Place, Role};
use super::record::Record;
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::catalogue::NO_ROOM;
use crate::event::{BadReason, Item};
use crate::live::Live;
use crate::store::StoreResult;
use crate::telemetry::events::ItemsStored;
use crate::telemetry::kafka::KafkaRetried;
use std::collections::{BTreeMap, BTreeSet};
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
    pub live: Arc<Live>,
    pub shared: Arc<Shared>,
    pub dead_letters: mpsc::UnboundedSender<DeadLetter>,
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
                self.until_stored(entries).await;
            }
        }
    }

    async fn until_stored(&mut self, entries: Vec<ItemRecord>) {
        let places: Vec<Place> = entries.iter().map(|entry| entry.record.place).collect();
        let mut backoff = Backoff::default();
        loop {
            let error = match self.store(&entries).await {
                Ok(without_room) => {
                    self.shared.health.well(Part::Items);
                    return self.finish(entries, &without_room);
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

    /// What is stored is done; what there was no room for goes to the dead letters.
    fn finish(&self, entries: Vec<ItemRecord>, without_room: &BTreeSet<String>) {
        let is_refused = |entry: &ItemRecord| match &entry.change {
            ItemChange::Put(item) => without_room.contains(&item.id),
            ItemChange::Delete(_) => false,
        };
        let (refused, stored): (Vec<ItemRecord>, Vec<ItemRecord>) = entries.into_iter().partition(is_refused);
        self.shared.partitions.complete(stored.iter().map(|entry| entry.record.place));
        self.shared.count(Role::Items, "accepted", stored.len() as u64);
        ItemsStored { accepted: stored.len() as u64, rejected: refused.len() as u64 }.emit(&self.shared.metrics);
        for ItemRecord { record, .. } in refused {
            let bad = BadRecord::new(BadReason::Full, NO_ROOM);
            // Nobody listens any more when the session ends; the record is read again.
            let _ = self.dead_letters.send(DeadLetter { record, bad });
        }
    }

    /// Stores the last change of each item; returns the ids of those there is no room for.
    async fn store(&self, entries: &[ItemRecord]) -> StoreResult<BTreeSet<String>> {
        let view = self.live.view();
        let catalogue = &view.bundle().catalogue;
        let deletes = entries.iter().any(|entry| matches!(entry.change, ItemChange::Delete(_)));
        if deletes || catalogue.is_limited() {
            catalogue.catch_up(self.shared.store.as_ref()).await?;
        }
        let mut latest: BTreeMap<&str, Item> = BTreeMap::new();
        for entry in entries {
            match &entry.change {
                ItemChange::Put(item) => {
                    latest.insert(&item.id, item.clone());
                }
                // An item nobody ever heard of leaves no mark.
                ItemChange::Delete(id) => match catalogue.get(id) {
                    Some(_) => drop(latest.insert(id, Item::deleted(id))),
                    None => drop(latest.remove(id.as_str())),
                },
            }
        }
        let mut items: Vec<Item> = latest.into_values().collect();
        let full = catalogue.without_room(&items);
        let without_room: BTreeSet<String> = full.iter().map(|position| items[*position].id.clone()).collect();
        items.retain(|item| !without_room.contains(&item.id));
        if !items.is_empty() {
            self.shared.store.put_items(&items).await?;
        }
        Ok(without_room)
    }
}
