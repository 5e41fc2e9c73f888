//! Sends the stream to the topic at a rate, whatever happens to the broker meanwhile.
//!
//! In: messages. Out: how many a second were acknowledged. Callers: `run`, on a thread of its own.

use super::stream::Message;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, NoCustomPartitioner, Producer, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use testkit::kafka::Broker;

/// Counts what the broker acknowledged.
#[derive(Clone, Default)]
struct Acknowledged {
    records: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl ClientContext for Acknowledged {
    // A broker that is away is what the suite is about.
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => drop(self.records.fetch_add(1, Ordering::Relaxed)),
            Err((error, _)) => self.failures.lock().expect("failures").push(error.to_string()),
        }
    }
}

/// How the sending went.
pub struct Fed {
    /// From the first record sent to the last acknowledged.
    pub time: Duration,
    /// Records that no broker took: the stream is not what it should be.
    pub failures: Vec<String>,
}

/// Sends everything in order, evenly over `time`, and waits for the acknowledgements.
pub fn feed(address: &str, topic: &str, messages: &[Message], time: Duration) -> Fed {
    let context = Acknowledged::default();
    let producer = producer(address, context.clone());
    let started = Instant::now();
    for (number, message) in messages.iter().enumerate() {
        let due = time.mul_f64(number as f64 / messages.len() as f64);
        if let Some(early) = due.checked_sub(started.elapsed()).filter(|early| *early > Duration::from_millis(2)) {
            std::thread::sleep(early);
        }
        send(&producer, topic, message);
    }
    let flushed = producer.flush(Duration::from_secs(120));
    let time = started.elapsed();
    let mut failures = context.failures.lock().expect("failures").clone();
    failures.extend(flushed.err().map(|error| format!("not everything was acknowledged: {error}")));
    if context.records.load(Ordering::Relaxed) != messages.len() as u64 {
        failures.push("some records were not acknowledged".into());
    }
    Fed { time, failures }
}

fn producer(address: &str, context: Acknowledged) -> ThreadedProducer<Acknowledged, NoCustomPartitioner> {
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", address).set("log_level", "2");
    config.set("acks", "all").set("enable.idempotence", "true").set("message.timeout.ms", "120000");
    config.set("linger.ms", "5").set("queue.buffering.max.messages", "1000000");
    config.create_with_context(context).expect("producer")
}

fn send(producer: &ThreadedProducer<Acknowledged, NoCustomPartitioner>, topic: &str, message: &Message) {
    loop {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(topic).payload(message.value.as_str());
        record.key = message.key.as_deref();
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((error, _)) => panic!("produce to {topic}: {error}"),
        }
    }
}

#[test]
fn everything_is_sent_once_in_the_order_of_its_partition() {
    let broker = Broker::shared();
    broker.create_topic("chaos-feeder", 1, &[]);
    let messages: Vec<Message> =
        (0..500).map(|number| Message { key: Some("u".into()), value: format!("{number}") }).collect();
    let fed = feed(broker.address(), "chaos-feeder", &messages, Duration::from_millis(200));
    assert_eq!(fed.failures, Vec::<String>::new());
    assert!(fed.time >= Duration::from_millis(190), "{:?}", fed.time);
    let read = broker.read_all("chaos-feeder", 1);
    let values: Vec<&[u8]> = read.iter().filter_map(rdkafka::Message::payload).collect();
    assert_eq!(values, messages.iter().map(|message| message.value.as_bytes()).collect::<Vec<_>>());
}
