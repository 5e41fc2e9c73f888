//! A broker that does not let everybody in: what is wrong stands on the latch, and the process waits for it to be put right.

use super::*;

/// A world whose clients come in by another listener, with these properties.
fn through(world: &World, listener: &str, properties: &[(&str, &str)]) -> World {
    let mut settings = world.settings.clone();
    settings.kafka.brokers = listener.to_string();
    for (name, value) in properties {
        settings.kafka.properties.insert(name.to_string(), value.to_string());
    }
    World { broker: world.broker.clone(), settings, partitions: world.partitions }
}

/// Waits, unready and alive, until the latch says this; then stops it.
async fn refused(world: &World, store: &Arc<Double>, wanted: [&str; 2]) {
    let running = world.start(store);
    let said = || running.readiness.latches()[KAFKA_LATCH].clone().unwrap_or_default();
    until(wanted[1], || wanted.iter().all(|part| said().contains(part))).await;
    assert!(said().starts_with("waiting for the first assignment"), "{}", said());
    assert!(!said().contains("wrong-password"), "{}", said());
    assert!(!running.task.as_ref().unwrap().is_finished(), "it waits");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_login_and_an_unknown_certificate_are_said_and_the_right_ones_are_let_in() {
    let Some(broker) = Broker::start_secured() else { return };
    let (world, store, secured) = (World::new(&broker, 1), Double::new(), broker.secured());
    let login = |password| {
        [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanisms", "PLAIN"),
            ("sasl.username", "taiji"),
            ("sasl.password", password),
        ]
    };
    let wrong = through(&world, &secured.sasl, &login("wrong-password"));
    refused(&wrong, &store, ["Authentication failed", "put the right sasl.username and sasl.password"]).await;
    let untrusted = through(&world, &secured.tls, &[("security.protocol", "SSL")]);
    refused(&untrusted, &store, ["certificate", "ssl.ca.location"]).await;
    let plain = through(&world, &secured.sasl, &[]);
    // The broker just closes such a connection, and the client has nothing to say about it.
    refused(&plain, &store, ["waiting for the first assignment", ""]).await;

    let authority = secured.authority.display().to_string();
    let tls = [("security.protocol", "SSL"), ("ssl.ca.location", authority.as_str())];
    let worlds = [through(&world, &secured.sasl, &login("right")), through(&world, &secured.tls, &tls)];
    let events = clicks(2, 4);
    for (turn, allowed) in worlds.iter().enumerate() {
        let running = allowed.start(&store);
        running.ready().await;
        let sent = &events[..(turn + 1) * 4];
        world.produce_events(&sent[turn * 4..]).await;
        wait_for(&store, sent).await;
        // Its dead letters go the same way.
        world.produce(&[Outgoing::raw(&world, None, Some(b"no json"), &[])]).await;
        world.wait_until_all_is_committed(&broker).await;
        running.stop().await;
    }
    assert_eq!(broker.ends(&world.settings.kafka.dead_letter_topic, 1), [2]);
}
