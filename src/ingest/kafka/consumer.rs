//! One session of the group's consumer: poll, hand out, release, rewind, pause, drain.
//!
//! In: records. Out: work for the lanes, offsets for librdkafka to commit. Callers: [`super::KafkaIngest`], which makes a new
//! session when one ends by itself.

use super::KafkaParts;
use super::dead_letter::{DeadLetter, DeadLetters};
use super::decode::{BadRecord, ItemChange, RecordDecoder};
use super::health::Health;
use super::items::{ItemLane, ItemRecord};
use super::lanes::{EventRecord, Lane, lane_of};
use super::partitions::{PartitionKey, Partitions, Role};
use super::rebalance::GroupContext;
use super::record::{Body, Record, Topics};
use super::shared::{Shared, StoreState};
use crate::backoff::Backoff;
use crate::clock::unix_ms;
use crate::config::KafkaSettings;
use crate::event::BadReason;
use crate::event::Event;
use crate::kafka::client::{Producer, consumer_config};
use crate::telemetry::kafka::{KafkaRetried, PauseChanged, Rewound, observe_lag};
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How often offsets are released and the store is asked whether it is whole.
const TICK: Duration = Duration::from_millis(250);
/// Nothing was taken for so long because all places are taken: partitions are paused. Under a load that never ends there is no
/// place most of the time, and pausing would throw away what librdkafka has fetched ahead.
const FULL_BEFORE_PAUSE: Duration = Duration::from_millis(500);
/// Longest wait for a seek.
const SEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// Most records taken between two looks at the other things to do.
const POLL_BURST: usize = 1000;
/// What a record costs beside its bytes, roughly.
const RECORD_OVERHEAD: usize = 256;

type GroupConsumer = StreamConsumer<GroupContext>;

/// How a session ended.
pub(super) enum SessionEnd {
    /// As told, drained.
    Stopped,
    /// The consumer or a part of ours broke.
    Failed(String),
}

/// One consumer with its lanes.
pub(super) struct Session<'a> {
    settings: &'a KafkaSettings,
    parts: &'a KafkaParts,
    producer: Producer,
    shared: Arc<Shared>,
    decoder: RecordDecoder,
}

/// Ends of the channels into the lanes; dropping it lets them finish.
struct Outlets {
    lanes: Vec<mpsc::UnboundedSender<EventRecord>>,
    items: mpsc::UnboundedSender<ItemRecord>,
    dead_letters: mpsc::UnboundedSender<DeadLetter>,
}

impl<'a> Session<'a> {
    pub fn new(
        settings: &'a KafkaSettings,
        parts: &'a KafkaParts,
        producer: Producer,
        health: Arc<Health>,
    ) -> Session<'a> {
        let shared = Arc::new(Shared {
            partitions: Partitions::new(Duration::from_millis(settings.commit_delay_ms)),
            topics: Topics::new(settings),
            store: parts.store.clone(),
            metrics: parts.metrics.clone(),
            health,
            incarnation: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            undelivered: Mutex::new(BTreeMap::new()),
            shown: Mutex::default(),
        });
        for role in [Role::Events, Role::Items] {
            for outcome in ["accepted", "duplicate", "dead_letter", "dropped"] {
                // A rate is defined before the first record.
                shared.metrics.kafka_records.with_label_values(&[shared.topics.name(role), outcome]);
            }
        }
        let decoder = RecordDecoder::new(parts.decoder.clone(), settings.max_record_bytes);
        Session { settings, parts, producer, shared, decoder }
    }

    /// Runs to the end; see [`super::KafkaIngest::run_blocking`].
    pub fn run_blocking(self, runtime: &Handle, mut stop: watch::Receiver<bool>) -> SessionEnd {
        if !runtime.block_on(self.learn_incarnation(&mut stop)) {
            return SessionEnd::Stopped;
        }
        let context = GroupContext { shared: self.shared.clone(), runtime: runtime.clone() };
        // The consumer spawns a task of its own, so it must be made inside the runtime.
        let made: Result<GroupConsumer, KafkaError> =
            runtime.block_on(async { consumer_config(self.settings).create_with_context(context) });
        let consumer = match made {
            Ok(consumer) => consumer,
            Err(error) => return SessionEnd::Failed(error.to_string()),
        };
        if let Err(error) = consumer.subscribe(&self.shared.topics.names()) {
            return SessionEnd::Failed(error.to_string());
        }
        let end = runtime.block_on(self.work(&consumer, stop));
        self.shared.closing.store(true, Ordering::Release);
        // Commits what was stored and leaves the group. Its callbacks may still run, on this thread.
        drop(consumer);
        observe_lag(&self.shared.metrics, &[], &mut self.shared.shown.lock());
        end
    }

    /// Every generation must know which store it began under. False when told to stop.
    async fn learn_incarnation(&self, stop: &mut watch::Receiver<bool>) -> bool {
        let mut backoff = Backoff::default();
        loop {
            match self.shared.store_state().await {
                StoreState::Whole => return true,
                StoreState::MayHaveLost(incarnation) => {
                    self.shared.incarnation.store(incarnation, Ordering::Release);
                    return true;
                }
                StoreState::Away => {}
            }
            if backoff.wait_unless(stop).await {
                return false;
            }
        }
    }

    async fn work(&self, consumer: &GroupConsumer, mut stop: watch::Receiver<bool>) -> SessionEnd {
        let (give_up, given_up) = watch::channel(false);
        let (outlets, mut lanes) = self.start_lanes(given_up);
        let mut messages = consumer.stream();
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut full_since = None;
        let end = loop {
            let has_room = self.has_room() || self.shared.paused.load(Ordering::Acquire);
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break SessionEnd::Stopped,
                Some(ended) = lanes.join_next() => break SessionEnd::Failed(format!("a lane ended: {ended:?}")),
                _ = ticker.tick() => self.tick(consumer, &mut full_since).await,
                _ = self.shared.partitions.freed(), if !has_room => {}
                Some(message) = messages.next(), if has_room => {
                    full_since = None;
                    if let Err(error) = self.take(message, &outlets) {
                        break SessionEnd::Failed(error);
                    }
                    for _ in 0..POLL_BURST {
                        if !self.has_room() {
                            break;
                        }
                        let Some(Some(message)) = messages.next().now_or_never() else { break };
                        if let Err(error) = self.take(message, &outlets) {
                            tracing::error!(target: "taiji::kafka", error, "consumer");
                            break;
                        }
                    }
                }
            }
        };
        drop(messages);
        if matches!(end, SessionEnd::Stopped) {
            self.drain(consumer).await;
        }
        give_up.send_replace(true);
        drop(outlets);
        while lanes.join_next().await.is_some() {}
        end
    }

    fn start_lanes(&self, give_up: watch::Receiver<bool>) -> (Outlets, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let (dead_letters, receiver) = mpsc::unbounded_channel();
        let writer = DeadLetters {
            producer: self.producer.clone(),
            topic: self.settings.dead_letter_topic.clone(),
            shared: self.shared.clone(),
            give_up: give_up.clone(),
        };
        tasks.spawn(writer.run(receiver));
        let (items, receiver) = mpsc::unbounded_channel();
        let lane = ItemLane {
            batch_records: self.settings.batch_records,
            live: self.parts.live.clone(),
            shared: self.shared.clone(),
            dead_letters: dead_letters.clone(),
            give_up: give_up.clone(),
        };
        tasks.spawn(lane.run(receiver));
        tasks.spawn(self.shared.clone().follow_replicas(give_up.clone()));
        let mut lanes = Vec::new();
        for number in 0..self.settings.lanes {
            let (sender, receiver) = mpsc::unbounded_channel();
            let lane = Lane {
                number,
                batch_records: self.settings.batch_records,
                ingest: self.parts.ingest.clone(),
                live: self.parts.live.clone(),
                shared: self.shared.clone(),
                dead_letters: dead_letters.clone(),
                wake: self.parts.wake.clone(),
                give_up: give_up.clone(),
            };
            tasks.spawn(lane.run(receiver));
            lanes.push(sender);
        }
        (Outlets { lanes, items, dead_letters }, tasks)
    }

    fn has_room(&self) -> bool {
        let (records, bytes) = self.shared.partitions.in_flight();
        records < self.settings.max_in_flight_records && bytes < self.settings.max_in_flight_bytes
    }

    /// Enters a record and hands it out. An error ends the session.
    fn take(&self, message: Result<BorrowedMessage<'_>, KafkaError>, outlets: &Outlets) -> Result<(), String> {
        let message = match message {
            Ok(message) => message,
            Err(error @ KafkaError::MessageConsumptionFatal(_)) => return Err(error.to_string()),
            Err(error) => {
                // It passes: a broker away, a topic not there yet. The client log has more.
                KafkaRetried { what: "poll", error: &error }.emit(&self.shared.metrics);
                return Ok(());
            }
        };
        let Some(key) = self.shared.topics.key(message.topic(), message.partition()) else { return Ok(()) };
        let now_ms = unix_ms();
        let timestamp_ms = message.timestamp().to_millis().unwrap_or(now_ms);
        let Some(place) = self.shared.partitions.deliver(key, message.offset(), timestamp_ms) else {
            self.shared.count(key.role, "dropped", 1);
            return Ok(());
        };
        let body = Body::of(&message);
        let carried = self.shared.partitions.carry(body.bytes() + RECORD_OVERHEAD);
        let record = Record { place, offset: message.offset(), body, _carried: carried };
        match key.role {
            Role::Events => self.hand_out_event(record, now_ms, outlets),
            Role::Items => self.hand_out_item(record, outlets),
        }
        Ok(())
    }

    // A lane whose channel is closed has died; the session ends at the next turn of the loop, and the record is read again.

    fn hand_out_event(&self, record: Record, now_ms: i64, outlets: &Outlets) {
        match self.decode_event(&record, now_ms) {
            Ok(event) => {
                let lane = lane_of(&event.user_id, outlets.lanes.len());
                let _ = outlets.lanes[lane].send(EventRecord { record, event });
            }
            Err(bad) => {
                let _ = outlets.dead_letters.send(DeadLetter { record, bad });
            }
        }
    }

    fn hand_out_item(&self, record: Record, outlets: &Outlets) {
        match self.decode_item(&record) {
            Ok(change) => {
                let _ = outlets.items.send(ItemRecord { record, change });
            }
            Err(bad) => {
                let _ = outlets.dead_letters.send(DeadLetter { record, bad });
            }
        }
    }

    fn decode_event(&self, record: &Record, now_ms: i64) -> Result<Event, BadRecord> {
        let body = &record.body;
        check_headers(body)?;
        self.decoder.event(body.value.as_deref(), |name| body.header_text(name), now_ms)
    }

    fn decode_item(&self, record: &Record) -> Result<ItemChange, BadRecord> {
        let body = &record.body;
        check_headers(body)?;
        self.decoder.item(body.key.as_deref(), body.value.as_deref(), body.content_type().as_deref())
    }

    /// Four times a second: seeks that are due, offsets, pause, gauges.
    async fn tick(&self, consumer: &GroupConsumer, full_since: &mut Option<Instant>) {
        let seeking = self.shared.partitions.seeking();
        if !seeking.is_empty() {
            self.seek(consumer, seeking);
        }
        // Taken before the store is asked: what finished after its answer is not covered by it.
        let now = self.shared.partitions.now();
        match self.shared.store_state().await {
            StoreState::Whole => {
                let keys = self.shared.partitions.keys();
                store_offsets(&self.shared, consumer, &self.shared.partitions.release(&keys, now));
            }
            StoreState::MayHaveLost(incarnation) => self.rewind(consumer, incarnation),
            StoreState::Away => {}
        }
        self.pause_or_resume(consumer, full_since);
        self.observe();
    }

    /// The store came back and may have lost its tail: everything that was not released is read again.
    fn rewind(&self, consumer: &GroupConsumer, incarnation: u64) {
        let targets = self.shared.partitions.rewind();
        self.shared.incarnation.store(incarnation, Ordering::Release);
        Rewound { partitions: targets.len(), incarnation }.emit(&self.shared.metrics);
        if !targets.is_empty() {
            self.seek(consumer, targets);
        }
    }

    /// Until a partition's seek is done its ledger takes nothing, so nothing of it is released; what fails is tried again.
    fn seek(&self, consumer: &GroupConsumer, targets: Vec<(PartitionKey, i64)>) {
        let sought = match consumer.seek_partitions(self.shared.list(&targets), SEEK_TIMEOUT) {
            Ok(list) => list,
            Err(error) => return KafkaRetried { what: "seek", error: &error }.emit(&self.shared.metrics),
        };
        for element in sought.elements() {
            let Some(key) = self.shared.topics.key(element.topic(), element.partition()) else { continue };
            match element.error() {
                Ok(()) => self.shared.partitions.sought(key),
                Err(error) => KafkaRetried { what: "seek", error: &error }.emit(&self.shared.metrics),
            }
        }
    }

    /// Paused partitions are still polled, so that the group keeps us and callbacks are served.
    fn pause_or_resume(&self, consumer: &GroupConsumer, full_since: &mut Option<Instant>) {
        let paused = self.shared.paused.load(Ordering::Acquire);
        let troubled = self.shared.health.is_store_troubled();
        *full_since = if self.has_room() { None } else { full_since.or_else(|| Some(Instant::now())) };
        let full = full_since.is_some_and(|since| since.elapsed() >= FULL_BEFORE_PAUSE);
        let (records, bytes) = self.shared.partitions.in_flight();
        let low = records <= self.settings.max_in_flight_records / 2 && bytes <= self.settings.max_in_flight_bytes / 2;
        let list = self.shared.names(&self.shared.partitions.keys());
        let done = match paused {
            false if troubled || full => consumer.pause(&list).map(|()| true),
            true if !troubled && low => consumer.resume(&list).map(|()| false),
            _ => return,
        };
        match done {
            Ok(now_paused) => {
                self.shared.paused.store(now_paused, Ordering::Release);
                PauseChanged { paused: now_paused, troubled, records }.emit(&self.shared.metrics);
            }
            Err(error) => KafkaRetried { what: "pause", error: &error }.emit(&self.shared.metrics),
        }
    }

    fn observe(&self) {
        let now_ms = unix_ms();
        let undelivered = self.shared.undelivered.lock().clone();
        let lags: Vec<(&str, i32, i64, f64)> = self
            .shared
            .partitions
            .view()
            .iter()
            .map(|view| {
                let records = view.unfinished as i64 + undelivered.get(&view.key).copied().unwrap_or(0);
                let age_ms = view.oldest_unfinished_ms.map_or(0, |oldest| (now_ms - oldest).max(0));
                (self.shared.topics.name(view.key.role), view.key.partition, records, age_ms as f64 / 1000.0)
            })
            .collect();
        observe_lag(&self.shared.metrics, &lags, &mut self.shared.shown.lock());
        self.shared.metrics.kafka_in_flight.set(self.shared.partitions.in_flight().0 as i64);
    }

    /// Finishes what is under way and releases what is safe, before the consumer closes (inside its own callback librdkafka
    /// takes no offsets).
    async fn drain(&self, consumer: &GroupConsumer) {
        let deadline = tokio::time::Instant::now() + self.parts.drain_limit;
        let partitions = &self.shared.partitions;
        let finished = tokio::time::timeout_at(deadline, async {
            while partitions.in_flight().0 > 0 {
                partitions.freed().await;
            }
        });
        if finished.await.is_err() {
            let (records, _) = partitions.in_flight();
            tracing::warn!(target: "taiji::kafka", records, "drain limit reached; these records are read again");
        }
        let keys = partitions.keys();
        let final_flush = match self.shared.store.flush().await {
            Ok(()) => self.shared.store.flush_is_final(),
            Err(error) => {
                KafkaRetried { what: "flush", error: &error }.emit(&self.shared.metrics);
                false
            }
        };
        if !final_flush && partitions.totals().1 > 0 {
            // A fail-over could still take back the last of them.
            let delay = Duration::from_millis(self.settings.commit_delay_ms);
            tokio::time::sleep_until(deadline.min(tokio::time::Instant::now() + delay)).await;
            self.shared.ask_replicas().await;
        }
        let now = partitions.now();
        if self.shared.store_state().await != StoreState::Whole {
            tracing::warn!(target: "taiji::kafka", "the store is not known to be whole: nothing is released at the end");
            return;
        }
        let offsets = if final_flush { partitions.release_finished(&keys) } else { partitions.release(&keys, now) };
        store_offsets(&self.shared, consumer, &offsets);
    }
}

/// Gives offsets to librdkafka, whose next commit takes them.
fn store_offsets(shared: &Shared, consumer: &GroupConsumer, offsets: &[(PartitionKey, i64)]) {
    if offsets.is_empty() {
        return;
    }
    if let Err(error) = consumer.store_offsets(&shared.list(offsets)) {
        KafkaRetried { what: "store_offsets", error: &error }.emit(&shared.metrics);
    }
}

fn check_headers(body: &Body) -> Result<(), BadRecord> {
    match body.headers {
        Some(_) => Ok(()),
        None => Err(BadRecord::new(BadReason::Headers, "the name of a header is not utf-8")),
    }
}
