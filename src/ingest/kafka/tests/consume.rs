//! What comes in is stored once, in spite of what the topic looks like.

use super::*;
use crate::event::ItemState;
use crate::proto;
use prost::Message;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::Producer as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_events_with_duplicates_late_and_bad_ones_are_kept_exactly() {
    let broker = Broker::shared();
    let world = World::new(broker, 4);
    let events = clicks(60, 70);
    let mut records: Vec<Outgoing> = events.iter().map(|event| Outgoing::event(&world, event)).collect();
    // A sixth comes twice, in other forms, and everything comes in any order.
    for (index, event) in events.iter().enumerate().filter(|(index, _)| index % 6 == 0) {
        let key = event.user_id.as_bytes();
        records.push(match index % 24 {
            0 => Outgoing::event(&world, event),
            12 => {
                let attributes: [(&str, &[u8]); 5] = [
                    ("ce_specversion", b"1.0"),
                    ("ce_id", b"1"),
                    ("ce_source", b"s"),
                    ("ce_type", b"t"),
                    ("content-type", b"application/json"),
                ];
                Outgoing::raw(&world, Some(key), Some(&serde_json::to_vec(event).unwrap()), &attributes)
            }
            6 => {
                let message = as_protobuf(event).encode_to_vec();
                Outgoing::raw(&world, Some(key), Some(&message), &[("content-type", b"application/x-protobuf")])
            }
            _ => {
                let envelope = serde_json::json!({"specversion":"1.0","type":"t","source":"s","id":"1","data":event});
                let value = envelope.to_string();
                let header: (&str, &[u8]) = ("content-type", b"application/cloudevents+json; charset=UTF-8");
                Outgoing::raw(&world, None, Some(value.as_bytes()), &[header])
            }
        });
    }
    let bad = 100;
    for number in 0..bad {
        let value = format!("{{\"user_id\": \"u{number}\"");
        records.push(Outgoing::raw(&world, Some(b"bad"), Some(value.as_bytes()), &[]));
    }
    records.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(7));
    assert_eq!(records.len(), 5_000);
    let store = Double::new();
    let running = world.start(&store);
    world.produce(&records).await;
    wait_for(&store, &events).await;
    world.wait_until_all_is_committed(broker).await;
    assert_eq!(running.records(&world, "accepted"), 4_200);
    assert_eq!(running.records(&world, "duplicate"), 700);
    assert_eq!(running.records(&world, "dead_letter"), bad);
    assert_eq!(running.metrics.kafka_dead_letters.with_label_values(&["json"]).get(), bad);
    running.stop().await;
    assert_eq!(broker.ends(&world.settings.kafka.dead_letter_topic, 1), [bad as i64]);
}

fn as_protobuf(event: &Event) -> proto::Event {
    proto::Event {
        event_id: event.event_id.clone(),
        user_id: event.user_id.clone(),
        item_id: event.item_id.clone().unwrap_or_default(),
        action: event.action.clone(),
        ts_ms: event.ts_ms,
        ..proto::Event::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloudevent_is_one_event_in_either_mode() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let running = world.start(&store);
    let data = serde_json::json!({"user_id": "cloud", "item_id": "i", "action": "click"});
    let time = "2023-11-14T22:13:20Z";
    let whole =
        serde_json::json!({"specversion": "1.0", "type": "t", "source": "/s", "id": "7", "time": time, "data": data});
    let structured: (&str, &[u8]) = ("content-type", b"application/cloudevents+json");
    let binary: [(&str, &[u8]); 5] = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"7"),
        ("ce_source", b"/s"),
        ("ce_type", b"t"),
        ("ce_time", time.as_bytes()),
    ];
    let protobuf: (&str, &[u8]) = ("content-type", b"application/x-protobuf");
    let message = proto::Event {
        user_id: "cloud".into(),
        item_id: "i".into(),
        action: "click".into(),
        ..proto::Event::default()
    };
    let half = Outgoing::raw(&world, None, Some(data.to_string().as_bytes()), &binary[..2]);
    let records = [
        Outgoing::raw(&world, None, Some(whole.to_string().as_bytes()), &[structured]),
        Outgoing::raw(&world, None, Some(data.to_string().as_bytes()), &binary),
        Outgoing::raw(&world, None, Some(&message.encode_to_vec()), &[&binary[..], &[protobuf]].concat()),
        half,
    ];
    world.produce(&records).await;
    world.wait_until_all_is_committed(broker).await;
    assert_eq!((running.records(&world, "accepted"), running.records(&world, "duplicate")), (1, 2));
    running.stop().await;
    let history = store.histories(&["cloud".into()]).await.unwrap().remove(0).unwrap();
    assert_eq!((history.state.seq, history.engagements[0].ts_ms), (1, BASE_MS));
    let letters = broker.read_all(&world.settings.kafka.dead_letter_topic, 1);
    let headers = letters[0].headers().unwrap();
    let reason = headers.iter().find(|header| header.key == "__connect.errors.exception.message").unwrap();
    assert_eq!(reason.value, Some(&b"source: is missing among the cloudevent's headers"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_let_go_late_and_a_drained_start_reads_nothing_twice() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.commit_delay_ms = 600_000;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(10, 20);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    until("the records to be counted", || running.records(&world, "accepted") == 200).await;
    assert_eq!(broker.committed(&world.settings.kafka.group, world.events_topic(), 2), [None, None]);
    running.stop().await;
    let group = &world.settings.kafka.group;
    let committed: Vec<i64> = broker.committed(group, world.events_topic(), 2).into_iter().flatten().collect();
    assert_eq!(committed, broker.ends(world.events_topic(), 2), "the drain releases what a flushed store holds");

    let again = world.start(&store);
    again.ready().await;
    let more = [click(3, 20)];
    world.produce_events(&more).await;
    until("the new event", || again.records(&world, "accepted") == 1).await;
    assert_eq!(again.records(&world, "duplicate"), 0, "read twice");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_over_a_store_that_may_fail_over_waits_for_the_delay() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    store.may_lose_flushed.store(true, Ordering::SeqCst);
    let running = world.start(&store);
    let events = clicks(5, 5);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    let stopping = Instant::now();
    running.stop().await;
    assert!(stopping.elapsed() >= Duration::from_millis(200), "released at once: {:?}", stopping.elapsed());
    assert_eq!(broker.committed(&world.settings.kafka.group, world.events_topic(), 1), [Some(25)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_08_items_replace_and_tombstones_delete() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let running = world.start(&store);
    let item = |id: &str, value: Option<String>| Outgoing {
        topic: world.settings.kafka.items_topic.clone(),
        key: Some(id.as_bytes().to_vec()),
        value: value.map(String::into_bytes),
        headers: Vec::new(),
    };
    let put = |id: &str, title: &str| item(id, Some(format!(r#"{{"id":"{id}","title":"{title}"}}"#)));
    let records = [put("a", "Tea"), put("b", "Cup"), put("a", "Green tea"), item("a", None), item("unknown", None)];
    world.produce(&records).await;
    let topic = world.settings.kafka.items_topic.clone();
    until("five item records", || running.metrics.kafka_records.with_label_values(&[&topic, "accepted"]).get() == 5)
        .await;
    running.catalogue.catch_up(store.as_ref()).await.unwrap();
    assert!(running.catalogue.get("a").is_none());
    assert_eq!(running.catalogue.get("b").unwrap().state, ItemState::Active);
    assert!(running.catalogue.get("unknown").is_none());
    running.stop().await;
}

/// Aborted records and markers leave gaps, and an open transaction is not read past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_read_when_committed_and_their_gaps_hold_nothing() {
    let Some(broker) = Broker::start_if_real() else { return };
    let world = World::new(&broker, 1);
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(6, 20);
    let topic = world.events_topic().to_string();
    let client = broker.client().set("transactional.id", "t1").clone();
    let (transactions, published) = tokio::task::spawn_blocking(move || {
        let producer: FutureProducer = client.create().unwrap();
        producer.init_transactions(SOON).unwrap();
        let mut published = Vec::new();
        for (number, chunk) in events.chunks(10).enumerate() {
            producer.begin_transaction().unwrap();
            for event in chunk {
                let value = serde_json::to_vec(event).unwrap();
                let record = FutureRecord::<[u8], [u8]>::to(&topic).payload(value.as_slice()).partition(0);
                producer.send_result(record).map_err(|(error, _)| error).unwrap();
            }
            producer.flush(SOON).unwrap();
            if number % 3 == 1 {
                producer.abort_transaction(SOON).unwrap();
            } else {
                producer.commit_transaction(SOON).unwrap();
                published.extend_from_slice(chunk);
            }
        }
        (events.len() / 10, published)
    })
    .await
    .unwrap();
    wait_for(&store, &published).await;
    // The last record is data or an aborted one; behind it stands one marker.
    let end = broker.ends(world.events_topic(), 1)[0];
    assert_eq!(end, 120 + transactions as i64);
    let last_published = end - 1;
    until("the commit behind all gaps", || {
        broker.committed(&world.settings.kafka.group, world.events_topic(), 1)[0] == Some(last_published)
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gaps_of_a_compacted_topic_hold_nothing() {
    let Some(broker) = Broker::start_if_real() else { return };
    let mut world = World::new(&broker, 1);
    world.settings.kafka.events_topic.push_str(".compacted");
    let compacted = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
    ];
    broker.create_topic(world.events_topic(), 1, &compacted);
    // One key: every event replaces the one before, so most of what is old disappears.
    let events = clicks(1, 60);
    for chunk in events.chunks(20) {
        world.produce_events(chunk).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until("the cleaner", || broker.read_all(world.events_topic(), 1).len() < 40).await;
    let left = broker.read_all(world.events_topic(), 1);
    let offsets: Vec<i64> = left.iter().map(|message| message.offset()).collect();
    assert!(offsets.windows(2).any(|pair| pair[1] > pair[0] + 1) || offsets[0] > 0, "no gaps: {offsets:?}");
    let kept: Vec<Event> = left.iter().map(|m| serde_json::from_slice(m.payload().unwrap()).unwrap()).collect();
    let store = Double::new();
    let running = world.start(&store);
    wait_for(&store, &kept).await;
    world.wait_until_all_is_committed(&broker).await;
    running.stop().await;
}
