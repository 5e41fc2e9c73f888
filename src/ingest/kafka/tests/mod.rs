//! The ingest against a real broker (the rig says where a stand-in had to do).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_records;
mod consume;
mod double;
mod failure;
mod features;
mod secured;

use super::*;
use crate::bundle::testing;
use crate::catalogue::Catalogue;
use crate::config::{Settings, load};
use crate::due::DuePolicy;
use crate::event::{ActionTable, Event};
use crate::store::{HISTORY_CAP, Histories, UserHistory};
use double::Double;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use testkit::kafka::Broker;
use tokio::task::JoinHandle;

const SPACE: &str = "space";
const SOON: Duration = Duration::from_secs(60);
/// A little after 2023; events of the tests happen from here on.
const BASE_MS: i64 = 1_700_000_000_000;

/// Topics and a group of a test's own.
struct World {
    broker: String,
    settings: Settings,
    partitions: i32,
}

impl World {
    fn new(broker: &Broker, partitions: i32) -> World {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = |what: &str| format!("t{}-{number}.{what}", std::process::id());
        let mut settings = load(None, std::iter::empty(), &[("kafka.brokers", broker.address().to_string())]).unwrap();
        let kafka = &mut settings.kafka;
        kafka.group = name("group");
        kafka.events_topic = name("events");
        kafka.items_topic = name("items");
        kafka.dead_letter_topic = name("dlq");
        kafka.commit_delay_ms = 300;
        for (key, value) in
            [("auto.commit.interval.ms", "100"), ("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "300")]
        {
            kafka.properties.insert(key.to_string(), value.to_string());
        }
        broker.create_topic(&kafka.events_topic, partitions, &[]);
        broker.create_topic(&kafka.items_topic, 1, &[]);
        broker.create_topic(&kafka.dead_letter_topic, 1, &[]);
        World { broker: broker.address().to_string(), settings, partitions }
    }

    fn events_topic(&self) -> &str {
        &self.settings.kafka.events_topic
    }

    fn producer(&self) -> FutureProducer {
        let mut config = rdkafka::ClientConfig::new();
        config.set("bootstrap.servers", &self.broker).set("message.max.bytes", "33554432").set("linger.ms", "1");
        config.create().unwrap()
    }

    /// Produces in order and waits until all are acknowledged.
    async fn produce(&self, records: &[Outgoing]) {
        let producer = self.producer();
        let mut sent = Vec::new();
        for record in records {
            let headers = record
                .headers
                .iter()
                .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
            let mut out = FutureRecord::<[u8], [u8]>::to(&record.topic).headers(headers);
            out.key = record.key.as_deref();
            out.payload = record.value.as_deref();
            sent.push(producer.send_result(out).map_err(|(error, _)| error).unwrap());
        }
        for delivery in sent {
            delivery.await.unwrap().map_err(|(error, _)| error).unwrap();
        }
    }

    async fn produce_events(&self, events: &[Event]) {
        let records: Vec<Outgoing> = events.iter().map(|event| Outgoing::event(self, event)).collect();
        self.produce(&records).await;
    }

    /// A member of the group over a store.
    fn start(&self, store: &Arc<Double>) -> Running {
        let store: Arc<dyn FeatureStore> = store.clone();
        let metrics = Arc::new(Metrics::new().unwrap());
        let readiness = Readiness::default();
        let actions = ActionTable::default();
        let policy = DuePolicy::new(&self.settings.refresh);
        let live = Live::new(testing::bundle(1, SPACE, None));
        let catalogue = live.view().bundle().catalogue.clone();
        let parts = KafkaParts {
            store: store.clone(),
            ingest: Arc::new(Ingest::new(store, actions.clone(), policy)),
            decoder: EventDecoder::new(actions, BTreeMap::new()),
            live,
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            wake: Arc::new(Notify::new()),
            drain_limit: Duration::from_secs(5),
        };
        let ingest = KafkaIngest::new(self.settings.kafka.clone(), parts).unwrap();
        let (stop, stopped) = watch::channel(false);
        let runtime = Handle::current();
        let task = tokio::task::spawn_blocking(move || ingest.run_blocking(&runtime, stopped));
        Running { stop, task: Some(task), metrics, readiness, catalogue }
    }

    /// Waits until the group's committed offsets are the topic's ends.
    async fn wait_until_all_is_committed(&self, broker: &Broker) {
        let ends: Vec<i64> = broker.ends(self.events_topic(), self.partitions);
        let group = &self.settings.kafka.group;
        until("everything to be committed", || {
            let committed = broker.committed(group, self.events_topic(), self.partitions);
            let found: Vec<i64> = committed.iter().map(|offset| offset.unwrap_or(0)).collect();
            found == ends
        })
        .await;
    }
}

/// A running ingest; told to stop when dropped.
struct Running {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    catalogue: Arc<Catalogue>,
}

impl Running {
    /// Drains to the end.
    async fn stop(mut self) {
        self.stop.send_replace(true);
        self.task.take().unwrap().await.unwrap();
    }

    async fn ready(&self) {
        until("the first assignment", || self.readiness.is_ready()).await;
    }

    /// Events taken, by outcome.
    fn records(&self, world: &World, outcome: &str) -> u64 {
        self.metrics.kafka_records.with_label_values(&[world.events_topic(), outcome]).get()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A record to be produced.
#[derive(Clone)]
struct Outgoing {
    topic: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Outgoing {
    fn event(world: &World, event: &Event) -> Outgoing {
        Outgoing {
            topic: world.events_topic().to_string(),
            key: Some(event.user_id.clone().into_bytes()),
            value: Some(serde_json::to_vec(event).unwrap()),
            headers: Vec::new(),
        }
    }

    fn raw(world: &World, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, &[u8])]) -> Outgoing {
        Outgoing {
            topic: world.events_topic().to_string(),
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec),
            headers: headers.iter().map(|(name, value)| (name.to_string(), value.to_vec())).collect(),
        }
    }
}

fn click(user: usize, number: usize) -> Event {
    Event {
        event_id: format!("e{user}-{number}"),
        user_id: format!("user {user} {{%}} 😀"),
        item_id: Some(format!("i{}", number % 7)),
        action: "click".into(),
        ts_ms: BASE_MS + number as i64 * 1000,
        value: None,
        domain: None,
        request_id: None,
        context: BTreeMap::new(),
    }
}

/// `users` times `each` clicks, users taking turns.
fn clicks(users: usize, each: usize) -> Vec<Event> {
    (0..each).flat_map(|number| (0..users).map(move |user| click(user, number))).collect()
}

/// (ts, id) of each user's kept engagements, newest first: what these events must leave, in whatever order and however
/// often they come.
fn expected(events: &[Event]) -> BTreeMap<String, Vec<(i64, String)>> {
    let mut users: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
    for event in events {
        users.entry(event.user_id.clone()).or_default().push((event.ts_ms, event.event_id.clone()));
    }
    for kept in users.values_mut() {
        kept.sort_by(|left, right| right.cmp(left));
        kept.dedup();
        kept.truncate(HISTORY_CAP);
    }
    users
}

async fn stored(store: &Double, users: impl Iterator<Item = &String>) -> BTreeMap<String, Vec<(i64, String)>> {
    let users: Vec<String> = users.cloned().collect();
    let kept = |history: UserHistory| {
        history.engagements.into_iter().map(|behaviour| (behaviour.ts_ms, behaviour.event_id)).collect()
    };
    let histories = store.histories(&users).await.unwrap();
    users.into_iter().zip(histories).filter_map(|(user, history)| Some((user, kept(history?)))).collect()
}

/// Sum of the users' seq: how many events counted as new. Every event once = as many as there are distinct events.
async fn counted(store: &Double, users: impl Iterator<Item = &String>) -> u64 {
    let users: Vec<String> = users.cloned().collect();
    store.histories(&users).await.unwrap().into_iter().flatten().map(|history| history.state.seq).sum()
}

/// Waits until the store holds exactly what it must; the seq of every user counts each event once.
async fn wait_for(store: &Double, events: &[Event]) {
    let wanted = expected(events);
    let deadline = Instant::now() + SOON;
    loop {
        let found = stored(store, wanted.keys()).await;
        if found == wanted {
            break;
        }
        if Instant::now() > deadline {
            let count = |users: &BTreeMap<String, Vec<(i64, String)>>| users.values().map(Vec::len).sum::<usize>();
            panic!("{} of {} events are stored", count(&found), count(&wanted));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let distinct: usize = wanted.values().map(Vec::len).sum();
    assert_eq!(counted(store, wanted.keys()).await, distinct as u64, "an event counted twice");
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited {SOON:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
