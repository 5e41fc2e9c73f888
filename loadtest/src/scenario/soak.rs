//! `soak`: reads and events for long. In: a filled service of all roles whose process is known. Out: whether its memory comes to rest:
//! at the end no more than after a third of the time, and a little.

use super::mixed::KINDS;
use super::{Pace, Reads, ScenarioError, rows_of};
use crate::load::open;
use crate::process::Sampler;
use crate::report::Wanted::AtMost;
use crate::report::{Report, Row, curves};
use crate::rig::{Place, Rig, Roles};
use std::time::Duration;

/// Minute 10 of 30.
const SETTLED: f64 = 1.0 / 3.0;
/// What it may grow by after that: the larger of the two.
const SHARE: f64 = 0.02;
const BYTES: f64 = 16.0 * 1024.0 * 1024.0;
/// Part of the time around a moment whose samples stand for it.
const AROUND: f64 = 1.0 / 60.0;
/// Samples in all, but one a second at most.
const SAMPLES: f64 = 1800.0;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn play(place: &Place, pace: &Pace, share: f64) -> Result<Report, ScenarioError> {
    let rig = Rig::start(place, Roles::All, false)?;
    let pid = rig.pid.ok_or(ScenarioError::NoProcess("soak"))?;
    let reads = Reads::native(&rig.peer, place.users, pace)?;
    let source = |thread| reads.with_events((&rig.peer, place.users), share, pace, thread);
    let every = (pace.seconds / SAMPLES).clamp(0.02, 1.0);
    let sampler = Sampler::start(pid, Duration::from_secs_f64(every));
    let tallies = open::run(&pace.open(&rig.peer.address), KINDS.len(), source);
    let samples = sampler.stop();
    let tallies = tallies?;

    let gone = || ScenarioError::NoAnswer("the service's memory");
    let settled = around(&samples, pace.seconds * SETTLED, pace.seconds * AROUND).ok_or_else(gone)?;
    let end = around(&samples, pace.seconds, pace.seconds * AROUND).ok_or_else(gone)?;
    let bound = settled + (SHARE * settled).max(BYTES);
    let mut rows = vec![
        Row::new("resident memory after a third of the time", settled / MIB, "MiB"),
        Row::new("resident memory at the end", end / MIB, "MiB").held_to(AtMost(bound / MIB)),
    ];
    rows.extend(KINDS.iter().zip(&tallies).flat_map(|(kind, tally)| rows_of(kind, tally, pace.seconds)));
    let measured: Vec<_> =
        KINDS.iter().zip(&tallies).map(|(kind, tally)| (kind.to_string(), &tally.accepted)).collect();
    let pictures = vec![
        curves::latencies("Soak, latency from the intended start", &measured),
        curves::memory("Soak, the service's memory", &samples),
    ];
    let setting = format!("{}; {share} of the calls bring an event", pace.says(place.users));
    Ok(Report { name: "soak", setting, rows, pictures })
}

/// The median of the samples around a moment.
fn around(samples: &[(f64, u64)], at: f64, margin: f64) -> Option<f64> {
    let is_near = |sample: &&(f64, u64)| (sample.0 - at).abs() <= margin;
    let mut near: Vec<u64> = samples.iter().filter(is_near).map(|(_, bytes)| *bytes).collect();
    near.sort_unstable();
    near.get(near.len() / 2).map(|bytes| *bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_median_of_what_is_around_it() {
        let samples: Vec<(f64, u64)> =
            (0..=100).map(|at| (f64::from(at), if at == 50 { 9000 } else { at as u64 })).collect();
        assert_eq!(around(&samples, 50.0, 2.0), Some(51.0), "one that sticks out counts for one");
        assert_eq!(around(&samples, 200.0, 2.0), None);
    }
}
