//! A service that stands still for a second: the open loop reports it, whatever rate and law; a closed loop hardly notices.

use crate::stalling_server;
use loadtest::arrivals::Law;
use loadtest::load::calls::{Peer, Prepared, Source};
use loadtest::load::closed::{self, ClosedLoad};
use loadtest::load::open::{self, OpenLoad};
use loadtest::load::tally::{Tally, quantile_ms};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const STALL: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_millis(400);
const TIME: Duration = Duration::from_millis(2000);

fn source(address: &str) -> Result<Box<dyn Source>, loadtest::load::LoadError> {
    let peer = Peer { address: address.to_string(), key: None };
    Ok(Box::new(Prepared::new(0, Arc::new(vec![peer.request("GET", "/", "")]), 0.0, (1, 0))?))
}

fn open_loop(rate: f64, law: Law, bound: usize, threads: usize, seed: u64) -> Tally {
    let address = stalling_server::start(AFTER, STALL);
    let timeout = Duration::from_secs(10);
    let load = OpenLoad { address, law, rate, time: TIME, bound, warm: 4, timeout, threads, seed, phases: Vec::new() };
    open::run(&load, 1, |_| source(&load.address)).expect("load").remove(0)
}

proptest! {
    // Each takes two seconds.
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Half of the calls are due while it stalls and wait half a second on average, so that the 99th percentile is nearly the whole stall.
    #[test]
    fn the_p99_is_the_stall(rate in 100.0..600.0f64, is_poisson: bool, threads in 1..3usize, seed: u64) {
        let law = if is_poisson { Law::Poisson } else { Law::Constant };
        let found = open_loop(rate, law, 2000, threads, seed);
        let expected = rate * TIME.as_secs_f64();
        prop_assert!((found.meant() as f64 - expected).abs() < 6.0 * expected.sqrt() + 2.0, "{} calls", found.meant());
        prop_assert_eq!((found.good(), found.failed_to_start, found.timed_out), (found.meant(), 0, 0));
        let (p50, p99, most) = (quantile_ms(&found.accepted, 0.5), quantile_ms(&found.accepted, 0.99), quantile_ms(&found.accepted, 1.0));
        prop_assert!((900.0..2500.0).contains(&p99) && most >= p99, "p50 {p50}, p99 {p99}, most {most}");
        let waited = found.accepted.iter_recorded().filter(|one| one.value_iterated_to() > 50_000_000);
        let waited: u64 = waited.map(|one| one.count_since_last_iteration()).sum();
        prop_assert!(waited as f64 > 0.35 * found.meant() as f64, "{waited} of {} calls saw it", found.meant());
    }
}

#[test]
fn a_closed_loop_sees_it_once_a_connection() {
    let address = stalling_server::start(AFTER, STALL);
    let load = ClosedLoad { address, connections: 2, time: TIME, timeout: Duration::from_secs(10), threads: 1 };
    let found = closed::run(&load, 1, |_| source(&load.address)).expect("load");
    let tally = &found.tallies[0];
    assert!(tally.good() > 500 && tally.good() == tally.sent, "{} answers", tally.good());
    assert!(quantile_ms(&tally.accepted, 0.99) < 500.0, "this is why it is not believed");
    assert!(quantile_ms(&tally.accepted, 1.0) >= 990.0);
    assert!((found.rate() * found.seconds - tally.good() as f64).abs() < 1.0);
}

#[test]
fn what_finds_no_room_is_counted_and_not_sent() {
    let found = open_loop(300.0, Law::Constant, 10, 1, 1);
    assert_eq!(found.meant(), 600);
    assert!((200..=450).contains(&found.failed_to_start), "{} of the 300 in the stall", found.failed_to_start);
    assert_eq!(found.good() + found.failed_to_start, 600);
    let failed: u64 = found.timeline.iter().map(|slot| slot.failed).sum();
    assert_eq!(failed, found.failed_to_start, "the timeline says when");
}

#[test]
fn a_server_that_is_not_there_breaks_every_call() {
    let address = testkit::process::free_address();
    let (time, timeout) = (Duration::from_millis(200), Duration::from_secs(1));
    let load = OpenLoad {
        address,
        law: Law::Constant,
        rate: 100.0,
        time,
        bound: 100,
        warm: 4,
        timeout,
        threads: 1,
        seed: 1,
        phases: Vec::new(),
    };
    let found = open::run(&load, 1, |_| source(&load.address)).expect("load").remove(0);
    assert_eq!((found.broken, found.good(), found.sent), (20, 0, 20));
}

#[test]
fn loads_that_are_none_are_refused() {
    let load = |rate, bound, threads| OpenLoad {
        address: "127.0.0.1:1".into(),
        law: Law::Constant,
        rate,
        time: TIME,
        bound,
        warm: 0,
        timeout: TIME,
        threads,
        seed: 1,
        phases: Vec::new(),
    };
    for (word, load) in [("--rate", load(0.0, 1, 1)), ("--rate", load(f64::NAN, 1, 1)), ("--bound", load(1.0, 1, 2))] {
        let said = open::run(&load, 1, |_| source(&load.address)).expect_err("refused").to_string();
        assert!(said.contains(word), "{said}");
    }
}
