//! `overload`: what a service does with more than it can. In: a filled service. Out: its capacity by a closed loop; then, open, goodput and
//! latency at three times as much, beside 60 % of it, and memory.

use super::{Pace, Reads, ScenarioError, rows_of};
use crate::load::closed::{self, Capacity, ClosedLoad};
use crate::load::open;
use crate::load::tally::{Tally, quantile_ms};
use crate::process::{Sampler, resident_bytes};
use crate::report::Wanted::{AtLeast, AtMost};
use crate::report::{RATIO, Report, Row, curves};
use crate::rig::{Place, Rig, Roles};
use std::time::Duration;

/// A load that a service bears easily.
const EASY: f64 = 0.6;
/// Goodput at least, of the capacity; p99 and memory at most, of those at the easy load.
const GOODPUT: f64 = 0.9;
const P99: f64 = 3.0;
const MEMORY: f64 = 1.5;
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn play(place: &Place, pace: &Pace, times: f64) -> Result<Report, ScenarioError> {
    let rig = Rig::start(place, Roles::Api, false)?;
    let reads = Reads::native(&rig.peer, place.users, pace)?;
    let capacity = find_capacity(&rig, &reads, pace)?;
    if capacity.rate() <= 0.0 {
        return Err(ScenarioError::NoAnswer("the closed loop"));
    }
    let at = |share: f64| -> Result<Tally, ScenarioError> {
        // All connections are there before, and at both loads: opening thousands at once is another experiment, and they cost memory.
        let warm = pace.warm.or(Some(pace.bound));
        let load = Pace { rate: capacity.rate() * share, warm, ..pace.clone() }.open(&rig.peer.address);
        Ok(open::run(&load, 1, |thread| reads.source(0, thread))?.remove(0))
    };
    let easy = at(EASY)?;
    let before = rig.pid.map(resident_bytes).transpose()?;
    let sampler = rig.pid.map(|pid| Sampler::start(pid, LOOK));
    let over = at(times)?;
    let most = sampler.and_then(|sampler| sampler.stop().iter().map(|(_, bytes)| *bytes).max());

    let mut rows = vec![Row::new("capacity (closed loop)", capacity.rate(), "1/s")];
    let goodput = over.good() as f64 / pace.seconds;
    rows.push(Row::new("goodput / capacity", goodput / capacity.rate(), RATIO).held_to(AtLeast(GOODPUT)));
    if easy.accepted.is_empty() || over.accepted.is_empty() {
        return Err(ScenarioError::NoAnswer("the open loop"));
    }
    let p99 = quantile_ms(&over.accepted, 0.99) / quantile_ms(&easy.accepted, 0.99);
    rows.push(Row::new("p99 of answers 2xx / that at 60 %", p99, RATIO).held_to(AtMost(P99)));
    if let Some((before, most)) = before.zip(most) {
        let grown = most as f64 / before as f64;
        rows.push(Row::new("resident memory at most / at 60 %", grown, RATIO).held_to(AtMost(MEMORY)));
        rows.push(Row::new("resident memory at 60 %", before as f64 / f64::from(1 << 20), "MiB"));
    }
    rows.extend(rows_of("60 %", &easy, pace.seconds));
    rows.extend(rows_of("overload", &over, pace.seconds));
    let measured = [("60 % load".to_string(), &easy.accepted), ("overload".to_string(), &over.accepted)];
    let pictures = vec![
        curves::latencies("Overload, latency of answers 2xx from the intended start", &measured),
        curves::timeline("Overload, what became of the calls", &over.timeline, None),
    ];
    let setting = format!(
        "{} connections in a closed loop; then 60 % and {times} times of what it found: {}",
        pace.connections,
        pace.says(place.users)
    );
    Ok(Report { name: "overload", setting, rows, pictures })
}

fn find_capacity(rig: &Rig, reads: &Reads, pace: &Pace) -> Result<Capacity, ScenarioError> {
    let load = ClosedLoad {
        address: rig.peer.address.clone(),
        connections: pace.connections,
        time: pace.time(),
        timeout: pace.timeout(),
        threads: pace.threads,
    };
    Ok(closed::run(&load, 1, |thread| reads.source(0, thread))?)
}
