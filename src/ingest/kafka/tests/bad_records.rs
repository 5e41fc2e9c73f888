//! Records that cannot be stored: set aside as they came, and nobody waits for them.

use super::super::dead_letter::*;
use super::*;
use rdkafka::message::{Headers, Message, OwnedMessage};

fn header_of(message: &OwnedMessage, name: &str) -> Option<String> {
    let headers = message.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    Some(String::from_utf8(found.value?.to_vec()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_is_the_record_as_it_was_with_the_reason_in_its_headers() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let large = vec![b' '; 2 << 20];
    let own: (&str, &[u8]) = ("trace", b"t-1");
    let stale: (&str, &[u8]) = ("__connect.errors.topic", b"another");
    let replayed: (&str, &[u8]) = ("taiji.dlq.replays", b"2");
    let binary = b"\xff\x00\xfe";
    let bad = [
        (Outgoing::raw(&world, Some(binary), Some(binary), &[own, stale, replayed]), "json", "2"),
        (Outgoing::raw(&world, None, None, &[own]), "null", "0"),
        (Outgoing::raw(&world, Some(b"k"), Some(b"\x00\x00\x00\x01\x02{}"), &[]), "schema_registry", "0"),
        (Outgoing::raw(&world, Some(b"k"), Some(b"{}"), &[("Content-Type", b"avro/binary")]), "content_type", "0"),
        (Outgoing::raw(&world, Some(b"k"), Some(b"{\"user_id\":\"u\",\"action\":\"fly\"}"), &[]), "field", "0"),
        (Outgoing::raw(&world, Some(b"k"), Some(&large), &[]), "too_large", "0"),
    ];
    let records: Vec<Outgoing> = bad.iter().map(|(record, _, _)| record.clone()).collect();
    // The topic for dead letters takes the large one, too.
    let mut world = world;
    world.settings.kafka.dead_letter_topic.push_str(".large");
    let topic = world.settings.kafka.dead_letter_topic.clone();
    broker.create_topic(&topic, 1, &[("max.message.bytes", "4194304")]);
    let store = Double::new();
    let running = world.start(&store);
    world.produce(&records).await;
    let good = [click(1, 1)];
    world.produce_events(&good).await;
    wait_for(&store, &good).await;
    world.wait_until_all_is_committed(broker).await;
    running.stop().await;
    let mut letters = broker.read_all(&topic, 1);
    letters.sort_by_key(|letter| header_of(letter, OFFSET_HEADER).unwrap().parse::<i64>().unwrap());
    assert_eq!(letters.len(), bad.len());
    for (offset, (letter, (record, reason, replays))) in letters.iter().zip(&bad).enumerate() {
        assert_eq!(letter.key(), record.key.as_deref(), "{reason}");
        assert_eq!(letter.payload(), record.value.as_deref(), "{reason}");
        assert_eq!(header_of(letter, REASON_HEADER).as_deref(), Some(*reason));
        assert_eq!(header_of(letter, TOPIC_HEADER).as_deref(), Some(world.events_topic()), "{reason}");
        assert_eq!(header_of(letter, PARTITION_HEADER).as_deref(), Some("0"));
        assert_eq!(header_of(letter, OFFSET_HEADER), Some(offset.to_string()));
        assert_eq!(header_of(letter, REPLAYS_HEADER).as_deref(), Some(*replays), "{reason}");
        assert!(header_of(letter, MESSAGE_HEADER).is_some_and(|message| !message.is_empty()));
    }
    assert_eq!(header_of(&letters[0], "trace").as_deref(), Some("t-1"), "its own headers stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ten_megabyte_record_is_set_aside_without_its_value_where_the_topic_takes_no_such_size() {
    let Some(broker) = Broker::start_if_real() else { return };
    let mut world = World::new(&broker, 1);
    world.settings.kafka.dead_letter_topic.push_str(".small");
    let topic = world.settings.kafka.dead_letter_topic.clone();
    broker.create_topic(&topic, 1, &[("max.message.bytes", "100000")]);
    let store = Double::new();
    let running = world.start(&store);
    let huge = vec![b'x'; 10 << 20];
    world.produce(&[Outgoing::raw(&world, Some(b"k"), Some(&huge), &[])]).await;
    let good = [click(1, 1)];
    world.produce_events(&good).await;
    wait_for(&store, &good).await;
    world.wait_until_all_is_committed(&broker).await;
    running.stop().await;
    let letters = broker.read_all(&topic, 1);
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].key(), letters[0].payload()), (Some(&b"k"[..]), None));
    assert_eq!(header_of(&letters[0], DROPPED_HEADER), Some((10 << 20).to_string()));
    assert_eq!(header_of(&letters[0], REASON_HEADER).as_deref(), Some("too_large"));
}

/// What no letter can hold as it is: key or headers alone are larger than the topic takes. Waiting for that to change would
/// hold every later offset back for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_key_or_headers_are_too_large_for_a_letter_leaves_its_reason_only() {
    let broker = Broker::shared();
    if !broker.is_real_or_skip() {
        return;
    }
    let mut world = World::new(broker, 1);
    world.settings.kafka.dead_letter_topic.push_str(".small");
    let topic = world.settings.kafka.dead_letter_topic.clone();
    broker.create_topic(&topic, 1, &[("max.message.bytes", "100000")]);
    let store = Double::new();
    let running = world.start(&store);
    let (key, header) = (vec![b'k'; 200_000], vec![b'h'; 10 << 20]);
    let own: (&str, &[u8]) = ("own", &header);
    let long_name = format!("{{\"{}\":1}}", "n".repeat(50_000));
    let records = [
        Outgoing::raw(&world, Some(&key), Some(b"no json"), &[]),
        Outgoing::raw(&world, Some(b"k"), None, &[own]),
        Outgoing::raw(&world, Some(b"k"), Some(long_name.as_bytes()), &[]),
    ];
    world.produce(&records).await;
    let good = [click(1, 1)];
    world.produce_events(&good).await;
    wait_for(&store, &good).await;
    world.wait_until_all_is_committed(broker).await;
    running.stop().await;
    let mut letters = broker.read_all(&topic, 1);
    letters.sort_by_key(|letter| header_of(letter, OFFSET_HEADER));
    let reasons: Vec<Option<String>> = letters.iter().map(|letter| header_of(letter, REASON_HEADER)).collect();
    assert_eq!(reasons, ["json", "null", "field"].map(|reason| Some(reason.to_string())));
    let kept: Vec<_> = letters.iter().map(|letter| (letter.key(), letter.payload())).collect();
    assert_eq!(kept, [(None, None), (None, None), (Some(&b"k"[..]), Some(long_name.as_bytes()))]);
    let dropped: Vec<Option<String>> = letters.iter().map(|letter| header_of(letter, DROPPED_HEADER)).collect();
    assert_eq!(dropped, [Some("7".to_string()), Some("0".to_string()), None]);
    assert!(header_of(&letters[1], "own").is_none());
    assert!(header_of(&letters[2], MESSAGE_HEADER).unwrap().len() < 1100, "what is said of a name is short");
}

/// Producers with wrong clocks: what lies too far ahead or before all reason is set aside, what is merely late or early is kept
/// in its order, and nobody after it is refused for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_clocks_cost_their_own_records_only() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let running = world.start(&store);
    let now_ms = crate::clock::unix_ms();
    const HOUR: i64 = 3_600_000;
    let at = |number: usize, ts_ms: i64| Event { ts_ms, ..click(1, number) };
    let refused = [
        at(1, now_ms + 48 * HOUR),
        at(2, i64::MAX),
        at(3, now_ms / 1000),
        at(4, -1),
        at(5, i64::MIN),
        at(6, crate::event::MIN_TS_MS - 1),
    ];
    let kept = [at(7, now_ms + 23 * HOUR), at(8, now_ms), at(9, crate::event::MIN_TS_MS), at(10, now_ms - HOUR)];
    world.produce_events(&[&refused[..3], &kept[..2], &refused[3..], &kept[2..]].concat()).await;
    wait_for(&store, &kept).await;
    world.wait_until_all_is_committed(broker).await;
    assert_eq!(running.metrics.kafka_dead_letters.with_label_values(&["field"]).get(), refused.len() as u64);
    let next = [&kept[..], &[at(11, now_ms + 1)]].concat();
    world.produce_events(&next[4..]).await;
    wait_for(&store, &next).await;
    running.stop().await;
    for letter in broker.read_all(&world.settings.kafka.dead_letter_topic, 1) {
        let message = header_of(&letter, MESSAGE_HEADER).unwrap();
        assert!(message.starts_with("ts_ms: "), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_cannot_be_stored_does_not_hold_up_the_others() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let poison = click(0, 0).user_id;
    *store.corrupt_user.lock() = Some(poison.clone());
    // Held back, so that all of them come in a few batches.
    store.held.send_replace(true);
    let running = world.start(&store);
    let events = clicks(12, 8);
    world.produce_events(&events).await;
    store.held.send_replace(false);
    let others: Vec<Event> = events.iter().filter(|event| event.user_id != poison).cloned().collect();
    wait_for(&store, &others).await;
    world.wait_until_all_is_committed(broker).await;
    assert_eq!(running.metrics.kafka_dead_letters.with_label_values(&["store"]).get(), 8);
    running.stop().await;
    let letters = broker.read_all(&world.settings.kafka.dead_letter_topic, 1);
    let ids: Vec<String> = letters
        .iter()
        .map(|letter| serde_json::from_slice::<Event>(letter.payload().unwrap()).unwrap().event_id)
        .collect();
    let wanted: Vec<String> = events.iter().filter(|e| e.user_id == poison).map(|e| e.event_id.clone()).collect();
    assert_eq!(ids.len(), wanted.len());
    assert!(wanted.iter().all(|id| ids.contains(id)), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_topic_for_dead_letters_nothing_is_lost_and_the_offset_waits() {
    let broker = Broker::shared();
    if !broker.is_real_or_skip() {
        return;
    }
    let mut world = World::new(broker, 1);
    world.settings.kafka.dead_letter_topic.push_str(".later");
    // A produce to a topic that does not exist fails after this time.
    world.settings.kafka.properties.insert("topic.metadata.propagation.max.ms".into(), "300".into());
    let topic = world.settings.kafka.dead_letter_topic.clone();
    let store = Double::new();
    let running = world.start(&store);
    world.produce(&[Outgoing::raw(&world, None, Some(b"no json"), &[])]).await;
    let good = clicks(3, 3);
    world.produce_events(&good).await;
    wait_for(&store, &good).await;
    until("a failed dead letter", || running.metrics.kafka_retries.with_label_values(&["dead_letter"]).get() > 0).await;
    assert!(running.readiness.is_ready(), "reads go on");
    assert_eq!(broker.committed(&world.settings.kafka.group, world.events_topic(), 1), [None]);
    broker.create_topic(&topic, 1, &[]);
    world.wait_until_all_is_committed(broker).await;
    assert_eq!(broker.read_all(&topic, 1).len(), 1);
    running.stop().await;
}

/// The cause stays, so every replay fails again: each time one letter more, until the cap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_sends_each_record_back_once_and_the_cap_ends_the_loop() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let running = world.start(&store);
    let unstorable = click(0, 0);
    *store.corrupt_user.lock() = Some(unstorable.user_id.clone());
    world.produce_events(std::slice::from_ref(&unstorable)).await;
    world.produce(&[Outgoing::raw(&world, Some(b"k"), Some(b"no json"), &[("own", b"1")])]).await;
    let letters = || broker.ends(&world.settings.kafka.dead_letter_topic, 1)[0];
    until("two letters", || letters() == 2).await;
    let settings = world.settings.kafka.clone();
    let replay = |filter: dlq::LetterFilter, is_dry_run: bool| {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || dlq::replay(&settings, &filter, 3, is_dry_run).unwrap())
    };
    let only = |reason: &str| dlq::LetterFilter { reason: Some(reason.into()), ..dlq::LetterFilter::default() };
    assert_eq!(replay(only("json"), true).await.unwrap().sent, 1);
    for turn in 1..=3 {
        let done = replay(only("json"), false).await.unwrap();
        assert_eq!((done.sent, done.superseded, done.capped), (1, turn - 1, 0));
        until("the next letter", || letters() == 2 + turn as i64).await;
    }
    let done = replay(only("json"), false).await.unwrap();
    assert_eq!((done.sent, done.superseded, done.capped), (0, 3, 1));

    // The cause of the other is gone.
    *store.corrupt_user.lock() = None;
    let limited = dlq::LetterFilter { limit: Some(1), to_ms: Some(i64::MAX), ..only("store") };
    assert_eq!(replay(limited, false).await.unwrap().sent, 1);
    wait_for(&store, &[unstorable]).await;
    running.stop().await;
    let all = broker.read_all(&world.settings.kafka.dead_letter_topic, 1);
    let last = all.last().unwrap();
    assert_eq!((header_of(last, REPLAYS_HEADER).as_deref(), header_of(last, "own").as_deref()), (Some("3"), Some("1")));
    let replays = last.headers().unwrap().iter().filter(|header| header.key == REPLAYS_HEADER).count();
    assert_eq!(replays, 1, "one count, not a list of them");
    let nothing = dlq::LetterFilter { from_ms: Some(i64::MAX), ..dlq::LetterFilter::default() };
    let mut seen = 0;
    let count = |_| {
        seen += 1;
        std::ops::ControlFlow::Continue(())
    };
    tokio::task::block_in_place(|| dlq::read_letters(&settings, &nothing, count)).unwrap();
    assert_eq!(seen, 0);
}
