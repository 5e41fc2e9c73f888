//! A Redis that was away: when it answers again, everybody gets through, whatever the shape of their calls.

use super::*;
use std::time::Instant;

/// Found by the chaos suite: each command of a batch counted as a try of its own, so a process that only sent batches shut
/// itself out for as long as nothing else happened to call.
#[tokio::test]
async fn batches_alone_get_through_again() {
    let mut server = RedisServer::start();
    let timeouts = Timeouts { connect: Duration::from_secs(2), response: Duration::from_secs(5), retries: 0 };
    let options = RedisOptions { timeouts, ..options(2) };
    let store = RedisStore::open(Address::parse(&server.url()).unwrap(), options).await.unwrap();
    let users = ["a", "b", "c"].map(String::from);
    assert!(store.features("s", &users).await.is_ok());

    server.kill();
    assert!(store.features("s", &users).await.is_err());
    let until = Instant::now() + Duration::from_secs(10);
    while !store.features("s", &users).await.unwrap_err().to_string().contains("not asked until it answers") {
        assert!(Instant::now() < until, "the circuit stays closed");
    }
    server.restart();
    // The longest pause between two tries is 2 s.
    let until = Instant::now() + Duration::from_secs(10);
    while let Err(error) = store.features("s", &users).await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
