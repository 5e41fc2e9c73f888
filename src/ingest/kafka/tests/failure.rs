//! What breaks around the ingest: the group, the store, the broker. Nothing is lost, nothing counts twice.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_partitions_is_ready_and_takes_over() {
    let broker = Broker::shared();
    let world = World::new(broker, 1);
    let store = Double::new();
    let first = world.start(&store);
    first.ready().await;
    let second = world.start(&store);
    second.ready().await;
    let events = clicks(4, 10);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    let (mut one, mut other) = (first, second);
    if other.records(&world, "accepted") > 0 {
        std::mem::swap(&mut one, &mut other);
    }
    one.stop().await;
    let more = clicks(4, 20);
    world.produce_events(&more).await;
    wait_for(&store, &more).await;
    assert_eq!(other.records(&world, "accepted"), 40);
    other.stop().await;
}

/// Appends are held back while a second member joins and the first leaves; offsets of older records are being committed all
/// the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_in_the_middle_of_a_commit_loses_and_repeats_nothing() {
    let broker = Broker::shared();
    let world = World::new(broker, 4);
    let store = Double::new();
    let first = world.start(&store);
    let before = clicks(30, 20);
    world.produce_events(&before).await;
    wait_for(&store, &before).await;
    store.held.send_replace(true);
    let all = clicks(30, 40);
    world.produce_events(&all[before.len()..]).await;
    until("appends under way", || store.waiting.load(Ordering::SeqCst) > 0).await;
    let revoked = || first.metrics.kafka_rebalances.with_label_values(&["revoke"]).get();
    let second = world.start(&store);
    // The first member waits for its appends inside the callback, then gives partitions away all the same.
    until("a revoke with appends under way", || revoked() > 0).await;
    second.ready().await;
    let leaving = tokio::spawn(first.stop());
    until("appends of the new owner", || store.waiting.load(Ordering::SeqCst) > 1).await;
    store.held.send_replace(false);
    leaving.await.unwrap();
    wait_for(&store, &all).await;
    world.wait_until_all_is_committed(broker).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_reading_pauses_and_nothing_is_lost() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.max_in_flight_records = 50;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(20, 30);
    world.produce_events(&events[..100]).await;
    wait_for(&store, &events[..100]).await;
    world.wait_until_all_is_committed(broker).await;
    store.is_away.store(true, Ordering::SeqCst);
    world.produce_events(&events[100..]).await;
    until("a pause", || running.metrics.kafka_paused.get() == 1).await;
    until("unready", || !running.readiness.is_ready()).await;
    let latch = running.readiness.latches()[KAFKA_LATCH].clone().unwrap();
    assert!(latch.contains("the double is away"), "{latch}");
    let before: Vec<Option<i64>> = broker.committed(&world.settings.kafka.group, world.events_topic(), 2);
    store.is_away.store(false, Ordering::SeqCst);
    wait_for(&store, &events).await;
    until("readiness", || running.readiness.is_ready()).await;
    until("going on", || running.metrics.kafka_paused.get() == 0).await;
    world.wait_until_all_is_committed(broker).await;
    let after = broker.committed(&world.settings.kafka.group, world.events_topic(), 2);
    assert!(after.iter().zip(&before).all(|(after, before)| after >= before));
    assert_eq!(running.metrics.kafka_rebalances.with_label_values(&["lost"]).get(), 0, "the group kept us");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_under_way_pauses_reading_and_all_of_it_is_stored_in_the_end() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.max_in_flight_records = 20;
    let store = Double::new();
    let running = world.start(&store);
    running.ready().await;
    store.held.send_replace(true);
    let events = clicks(20, 30);
    world.produce_events(&events).await;
    until("a pause", || running.metrics.kafka_paused.get() == 1).await;
    assert!(running.readiness.is_ready(), "slow is not broken");
    assert!(running.metrics.kafka_in_flight.get() < 60, "{}", running.metrics.kafka_in_flight.get());
    store.held.send_replace(false);
    wait_for(&store, &events).await;
    world.wait_until_all_is_committed(broker).await;
    running.stop().await;
}

/// Every place is taken nearly all of the time, as behind a backlog: what librdkafka has fetched ahead is not thrown away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_fills_every_place_does_not_pause_reading() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.max_in_flight_records = 20;
    let store = Double::new();
    // 20 records at a time: seconds in all, and a pause needs half a second.
    store.append_takes_ms.store(25, Ordering::SeqCst);
    let running = world.start(&store);
    running.ready().await;
    let events = clicks(100, 30);
    world.produce_events(&events).await;
    let began = Instant::now();
    let watch = async {
        loop {
            assert_eq!(running.metrics.kafka_paused.get(), 0, "paused after {} appends", store.appends());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = wait_for(&store, &events) => {}
        () = watch => {}
    }
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}: no load", began.elapsed());
    running.stop().await;
}

/// The store comes back without its last appends, which were acknowledged but not released: they are read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_lost_its_tail_is_healed_by_a_rewind() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 4);
    world.settings.kafka.commit_delay_ms = 3_000;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(25, 30);
    world.produce_events(&events[..300]).await;
    wait_for(&store, &events[..300]).await;
    world.wait_until_all_is_committed(broker).await;
    let safe = store.appends();
    world.produce_events(&events[300..]).await;
    wait_for(&store, &events).await;
    // Twice, so that the second rewind falls into what the first one repeats.
    for turn in 1..=2 {
        until("appends behind the safe ones", || store.appends() > safe).await;
        assert!(store.lose_tail(store.appends() - safe) > 0, "nothing was lost");
        until("a rewind", || running.metrics.kafka_rewinds.get() >= turn).await;
    }
    wait_for(&store, &events).await;
    world.wait_until_all_is_committed(broker).await;
    running.stop().await;
}

/// However old an append is: while a replica lacks it, its offset stays, and a replica that takes over loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_11_offsets_stand_still_while_a_replica_lags() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.commit_delay_ms = 2_000;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(10, 30);
    world.produce_events(&events[..100]).await;
    wait_for(&store, &events[..100]).await;
    world.wait_until_all_is_committed(broker).await;
    let safe = store.appends();

    store.replica_lags.store(true, Ordering::SeqCst);
    until("the gauge", || running.metrics.kafka_offsets_held.get() == 1).await;
    let committed = || broker.committed(&world.settings.kafka.group, world.events_topic(), 2);
    let before = committed();
    world.produce_events(&events[100..]).await;
    wait_for(&store, &events).await;
    // More than twice the delay, and what a commit takes.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(committed(), before, "nothing was released");
    assert!(store.lose_tail(store.appends() - safe) > 0, "a replica took over without them");
    store.replica_lags.store(false, Ordering::SeqCst);
    wait_for(&store, &events).await;
    world.wait_until_all_is_committed(broker).await;
    assert_eq!(running.metrics.kafka_offsets_held.get(), 0);
    println!("audit 11: events lost to a replica that lagged for 6 s and took over: 0 of {}", events.len());
    running.stop().await;
}

/// Nothing was released yet: the rewind goes to where the assignment began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_before_the_first_offset_was_let_go_reads_everything_again() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 2);
    world.settings.kafka.commit_delay_ms = 600_000;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(10, 10);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    assert!(store.lose_tail(usize::MAX) > 0);
    wait_for(&store, &events).await;
    assert_eq!(running.metrics.kafka_rewinds.get(), 1);
    running.stop().await;
}

/// A revoke while the store may have lost its tail releases nothing: the next owner reads it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_lost_just_before_the_end_is_not_committed() {
    let broker = Broker::shared();
    let mut world = World::new(broker, 1);
    world.settings.kafka.commit_delay_ms = 600_000;
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(5, 20);
    world.produce_events(&events).await;
    wait_for(&store, &events).await;
    store.held.send_replace(true);
    store.lose_tail(usize::MAX);
    running.stop().await;
    assert_eq!(broker.committed(&world.settings.kafka.group, world.events_topic(), 1), [None]);
    store.held.send_replace(false);
    let again = world.start(&store);
    wait_for(&store, &events).await;
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_and_comes_back_costs_time_only() {
    let Some(mut broker) = Broker::start_if_real() else { return };
    let world = World::new(&broker, 2);
    let store = Double::new();
    let running = world.start(&store);
    let events = clicks(20, 40);
    world.produce_events(&events[..400]).await;
    wait_for(&store, &events[..400]).await;
    broker.kill();
    assert!(running.readiness.is_ready(), "reads go on without a broker");
    broker.start_again();
    world.produce_events(&events[400..]).await;
    wait_for(&store, &events).await;
    world.wait_until_all_is_committed(&broker).await;
    running.stop().await;
}
