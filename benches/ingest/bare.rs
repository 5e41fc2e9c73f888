//! The bare pair: an rdkafka consumer and pipelined writers, as somebody would write it who wants speed and nothing else.
//!
//! In: a broker, a group, a Redis. Out: what [`Writer`] writes; a count of what is written. No ledger, no dead letters, no
//! retries, offsets committed by librdkafka as they are read. Caller: `main`.

use futures::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use redis::{AsyncConnectionConfig, Pipeline, Value, cmd};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use taiji::event::{ActionClass, ActionTable};
use taiji::proto::Behaviour;
use taiji::store::redis::function_name;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

/// Pipelines in flight, and most events of one: what `taiji serve` has by default.
const WRITERS: usize = 4;
const BATCH: usize = 500;

/// A shard's queue.
const QUEUE_KEYS: [&str; 10] = [
    "due:{}:0",
    "due:{}:1",
    "due:{}:2",
    "due:{}:3",
    "lease:{}",
    "leased:{}",
    "awaited:{}:until",
    "awaited:{}:stood",
    "unreadable:{}",
    "unreadable:{}:v",
];

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The function calls of `taiji serve`: the same keys in the end.
    SameWrites,
    /// Plain commands, as written by hand: a sorted set of JSON, counters, a due mark. Not idempotent.
    Plain,
}

/// Where it writes.
pub struct Target {
    pub redis: String,
    pub space: String,
    pub shards: u32,
}

/// The fields that the writes need.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    event_id: Cow<'a, str>,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow, default)]
    item_id: Cow<'a, str>,
    #[serde(borrow)]
    action: Cow<'a, str>,
    ts_ms: i64,
    #[serde(borrow, default)]
    domain: Cow<'a, str>,
    #[serde(borrow, default)]
    context: Context<'a>,
}

#[derive(Deserialize, Default)]
struct Context<'a> {
    #[serde(borrow, default)]
    query: Cow<'a, str>,
}

/// One event, ready to be written.
struct Incoming {
    user: String,
    id: String,
    item: String,
    ts_ms: i64,
    kind: u8,
    weight: f64,
    /// `SameWrites`: the function's bytes. `Plain`: the JSON.
    body: Vec<u8>,
}

/// Reads `total` records of the topic and writes them; `written` counts.
pub async fn run(
    config: ClientConfig,
    topic: &str,
    total: u64,
    writer: Writer,
    target: Target,
    written: Arc<AtomicU64>,
) {
    let consumer: StreamConsumer = config.create().expect("consumer");
    consumer.subscribe(&[topic]).expect("subscribe");
    let client = redis::Client::open(target.redis.as_str()).expect("address");
    let patience = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(10)));
    let connection = client.get_multiplexed_async_connection_with_config(&patience).await.expect("redis");
    let (target, full_items) = (Arc::new(target), Arc::new(Mutex::new(HashSet::new())));
    let mut senders = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..WRITERS {
        let (sender, mut receiver) = mpsc::channel::<Incoming>(4 * BATCH);
        senders.push(sender);
        let (mut connection, target) = (connection.clone(), target.clone());
        let (full_items, written) = (full_items.clone(), written.clone());
        tasks.push(tokio::spawn(async move {
            let (mut batch, mut new_users) = (Vec::new(), 0);
            while receiver.recv_many(&mut batch, BATCH).await > 0 {
                let (pipeline, users, items) = match writer {
                    Writer::SameWrites => same_writes(&batch, &target, &full_items, new_users),
                    Writer::Plain => (plain(&batch), 0, Vec::new()),
                };
                let answers: Vec<Value> = pipeline.query_async(&mut connection).await.expect("pipeline");
                new_users = learn(&answers, users, items, &full_items);
                written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                batch.clear();
            }
            // The last new users; the plain writer counts none.
            if new_users > 0 {
                let count = cmd("INCRBY").arg("taiji:users").arg(new_users).to_owned();
                let _: Value = count.query_async(&mut connection).await.expect("count");
            }
        }));
    }
    let actions = ActionTable::default();
    let mut messages = consumer.stream();
    for _ in 0..total {
        let message = messages.next().await.expect("message").expect("message");
        let event = decode(message.payload().expect("value"), writer, &actions);
        let lane = xxh3_64(event.user.as_bytes()) as usize % WRITERS;
        senders[lane].send(event).await.expect("writer");
    }
    drop((messages, senders));
    for task in tasks {
        task.await.expect("writer");
    }
}

fn decode(json: &[u8], writer: Writer, actions: &ActionTable) -> Incoming {
    let fields: Fields<'_> = serde_json::from_slice(json).expect("json");
    let rule = actions.get(&fields.action).expect("action");
    let kind = match rule.class {
        ActionClass::Engagement => b'e',
        ActionClass::Impression => b'i',
        ActionClass::None => b'q',
    };
    let body = match writer {
        Writer::Plain => json.to_vec(),
        Writer::SameWrites => stored_bytes(&fields, kind),
    };
    Incoming {
        user: fields.user_id.into_owned(),
        id: fields.event_id.into_owned(),
        item: fields.item_id.into_owned(),
        ts_ms: fields.ts_ms,
        kind,
        weight: rule.weight,
        body,
    }
}

/// `ts | body`, as the store keeps it.
fn stored_bytes(fields: &Fields<'_>, kind: u8) -> Vec<u8> {
    let [_, _, ts @ ..] = (fields.ts_ms + (1 << 47) + (1 << 45)).to_be_bytes();
    let mut bytes = ts.to_vec();
    if kind == b'q' {
        bytes.extend_from_slice(fields.context.query.as_bytes());
        return bytes;
    }
    let behaviour = Behaviour {
        item_id: fields.item_id.to_string(),
        action: fields.action.to_string(),
        domain: fields.domain.to_string(),
        ..Behaviour::default()
    };
    prost::Message::encode(&behaviour, &mut bytes).expect("room");
    bytes
}

fn by_user(batch: &[Incoming]) -> BTreeMap<&str, Vec<&Incoming>> {
    let mut users: BTreeMap<&str, Vec<&Incoming>> = BTreeMap::new();
    for event in batch {
        users.entry(&event.user).or_default().push(event);
    }
    users
}

/// One pipeline: appends, users of items, due marks. Returns the number of appends, and the items asked about.
fn same_writes(
    batch: &[Incoming],
    target: &Target,
    full_items: &Mutex<HashSet<String>>,
    new_users: i64,
) -> (Pipeline, usize, Vec<String>) {
    let (mut pipeline, users) = (Pipeline::new(), by_user(batch));
    let mut shards: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    let mut engaged: BTreeMap<&str, BTreeSet<i64>> = BTreeMap::new();
    for (user, events) in &users {
        let call = pipeline.cmd("FCALL").arg(function_name("append")).arg(6);
        for part in ["st", "h:e", "h:i", "q", "prof", "remembered"] {
            call.arg(format!("taiji:{{{user}}}:{part}"));
        }
        call.arg("").arg(1).arg(&target.space).arg(0).arg(events.iter().map(|event| event.kind).collect::<Vec<u8>>());
        for event in events {
            call.arg(event.weight).arg(&event.id).arg(&event.body);
            if event.kind == b'e' {
                engaged.entry(&event.item).or_default().insert(xxh3_64(user.as_bytes()) as i64);
            }
        }
        shards.entry((xxh3_64(user.as_bytes()) % u64::from(target.shards)) as u32).or_default().push(user);
    }
    let mut asked = Vec::new();
    for (item, who) in engaged {
        if !full_items.lock().expect("items").contains(item) {
            let key = format!("taiji:item:{{{item}}}:users");
            pipeline.cmd("FCALL").arg(function_name("item_users")).arg(1).arg(key).arg("").arg(Vec::from_iter(who));
            asked.push(item.to_string());
        }
    }
    let due_ms = taiji::clock::unix_ms();
    let call = pipeline.cmd("FCALL").arg(function_name("mark")).arg(QUEUE_KEYS.len() * shards.len());
    for shard in shards.keys() {
        for key in QUEUE_KEYS {
            call.arg(format!("taiji:{}", key.replace("{}", &format!("{{{shard}}}"))));
        }
    }
    // The clock is Redis' own; one form of the queue, in which users are marked.
    call.arg("").arg(1).arg(1);
    for (queue, users) in shards.values().enumerate() {
        for user in users {
            call.arg(queue + 1).arg(user).arg(1).arg(due_ms);
        }
    }
    pipeline.cmd("INCRBY").arg("taiji:users").arg(new_users);
    (pipeline, users.len(), asked)
}

/// Items that have all their users are not asked about again. Returns how many users were new.
fn learn(answers: &[Value], users: usize, items: Vec<String>, full_items: &Mutex<HashSet<String>>) -> i64 {
    for (item, answer) in items.into_iter().zip(&answers[users..]) {
        if matches!(answer, Value::Int(5..)) {
            full_items.lock().expect("items").insert(item);
        }
    }
    let is_new = |answer: &&Value| matches!(answer, Value::Array(parts) if matches!(parts.get(1), Some(Value::Int(1))));
    answers[..users].iter().filter(is_new).count() as i64
}

fn plain(batch: &[Incoming]) -> Pipeline {
    let mut pipeline = Pipeline::new();
    for event in batch {
        let key = |part: &str| format!("plain:{{{}}}:{part}", event.user);
        pipeline.cmd("ZADD").arg(key("h")).arg(event.ts_ms).arg(&event.body);
        pipeline.cmd("ZREMRANGEBYRANK").arg(key("h")).arg(0).arg(-101);
        pipeline.cmd("HINCRBY").arg(key("st")).arg("seq").arg(1);
        pipeline.cmd("HINCRBYFLOAT").arg(key("st")).arg("weight").arg(event.weight);
        pipeline.cmd("ZADD").arg("plain:due").arg("NX").arg(event.ts_ms).arg(&event.user);
    }
    pipeline
}
