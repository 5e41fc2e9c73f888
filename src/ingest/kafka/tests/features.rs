//! The change feed: what stands in the store, keyed by user.

use super::*;
use crate::erase::Eraser;
use crate::feature::{Group, GroupBlob, Version};
use crate::proto::{IntraGroup, TextGroup, UserFeatures};
use crate::publish::{ChangeFeed, FeaturePublisher};
use crate::store::{Erasures, FeaturePut, Features, PutBody, PutOutcome};
use prost::Message;
use rdkafka::message::Message as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_go_out_without_text_and_a_user_without_any_gets_a_tombstone() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 1);
    world.settings.kafka.features_topic = format!("{}.features", world.events_topic());
    let topic = world.settings.kafka.features_topic.clone();
    broker.create_topic(&topic, 1, &[]);
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(1, 3);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    let user = events[0].user_id.clone();
    let erased = user.clone();
    let version = Version { seq: 3, turn: 0 };
    let blob = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 0 };
    let intra = IntraGroup { sparse_ids: vec![5, 6], has_llm_feature: true, ..IntraGroup::default() };
    let text = TextGroup { answer: "secret".into(), ..TextGroup::default() };
    let groups = vec![blob(Group::Intra, intra.encode_to_vec()), blob(Group::Text, text.encode_to_vec())];
    let body = PutBody::Write { groups, prompt_hash: 1, embedding: Vec::new() };
    let put = FeaturePut { user: user.clone(), era: 0, version, tier: 1, body };
    assert!(matches!(store.put(SPACE, put).await.unwrap(), PutOutcome::Written { .. }));

    let changes = Arc::new(ChangeFeed::default());
    let metrics = running.metrics.clone();
    let live = Live::new(testing::bundle(1, SPACE, None));
    let publisher =
        FeaturePublisher::new(&world.settings.kafka, live, store.clone(), changes.clone(), metrics).unwrap();
    let (stop, stopped) = watch::channel(false);
    // Away at first: nothing is lost by that.
    store.is_away.store(true, Ordering::SeqCst);
    changes.note(&user);
    changes.note("nobody");
    let task = tokio::spawn(publisher.run(stopped));
    let retried = running.metrics.kafka_retries.with_label_values(&["features"]);
    until("a failed read", || retried.get() > 0).await;
    store.is_away.store(false, Ordering::SeqCst);
    until("both records", || broker.ends(&topic, 1)[0] == 2).await;

    store.note_space(SPACE).await.unwrap();
    let hour = Duration::from_secs(3600);
    let eraser = Eraser::new(store.clone(), running.metrics.clone(), 1_000_000, hour).telling(Some(changes.clone()));
    eraser.erase(&user).await.unwrap();
    let erasing = tokio::spawn({
        let stopped = stop.subscribe();
        async move { eraser.run(stopped).await }
    });
    let finished = running.metrics.erasures.with_label_values(&["finished"]);
    until("the end of the erasure", || finished.get() == 1).await;
    stop.send_replace(true);
    erasing.await.unwrap();
    task.await.unwrap();
    running.stop().await;
    let records = broker.read_all(&topic, 1);
    let of = |key: &str| records.iter().find(|record| record.key() == Some(key.as_bytes())).unwrap();
    let value = of(&user).payload().unwrap();
    assert!(!value.windows(6).any(|part| part == b"secret"));
    let message = UserFeatures::decode(value).unwrap();
    assert_eq!((message.user_id, message.intra.unwrap().sparse_ids), (user, vec![5, 6]));
    assert_eq!(of("nobody").payload(), None);
    let last = records.iter().rfind(|record| record.key() == Some(erased.as_bytes())).unwrap();
    assert_eq!(last.payload(), None, "the topic forgets the erased user before the erasure ends");
}
