//! `brownout`: Redis goes away, or far away, while reads go on, and comes back. In: a service that is started here. Out: what was answered before,
//! meanwhile and afterwards, how soon it refused instead of letting callers wait, and how soon all was well again.

use super::{Pace, Reads, ScenarioError, rows_of};
use crate::load::open;
use crate::load::tally::{SLOT, Slot, Tally, quantile_ms};
use crate::report::svg::Band;
use crate::report::{Report, Row, curves};
use crate::rig::{Place, Rig, Roles, Started};
use clap::ValueEnum;
use std::time::{Duration, Instant};

/// The phases, in their order.
const PHASES: [&str; 3] = ["before", "meanwhile", "afterwards"];
/// When Redis goes and comes back, of the whole time.
const AWAY: (f64, f64) = (0.5, 0.75);

/// How Redis goes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// The network drops everything: connections stay, nothing comes
    Pause,
    /// The network refuses: connections break at once
    Cut,
    /// The process is frozen (SIGSTOP)
    Freeze,
    /// The network takes longer (--delay-ms, each way)
    Slow,
}

impl Fault {
    fn begin(self, started: &Started, delay: Duration) {
        match self {
            Fault::Pause => started.proxy.pause(),
            Fault::Cut => started.proxy.cut(),
            Fault::Freeze => started.redis.signal("STOP"),
            Fault::Slow => started.proxy.slow(delay),
        }
    }

    fn end(self, started: &Started) {
        match self {
            Fault::Pause | Fault::Cut | Fault::Slow => started.proxy.restore(),
            Fault::Freeze => started.redis.signal("CONT"),
        }
    }
}

pub(super) fn play(place: &Place, pace: &Pace, (fault, delay): (Fault, Duration)) -> Result<Report, ScenarioError> {
    let rig = Rig::start(place, Roles::Api, true)?;
    let started = rig.started("brownout")?;
    let reads = Reads::native(&rig.peer, place.users, pace)?;
    let phases = [AWAY.0, AWAY.1].map(|share| pace.time().mul_f64(share));
    let load = open::OpenLoad { phases: phases.to_vec(), ..pace.open(&rig.peer.address) };
    let began = Instant::now() + load.head_start();
    let tallies = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The schedule of the experiment: nothing waits for it.
            std::thread::sleep((began + phases[0]).saturating_duration_since(Instant::now()));
            fault.begin(started, delay);
            std::thread::sleep((began + phases[1]).saturating_duration_since(Instant::now()));
            fault.end(started);
        });
        open::run_from(&load, 1, |thread| reads.source(0, thread), began)
    })?;
    Ok(report(place, pace, fault, &tallies, phases))
}

fn report(place: &Place, pace: &Pace, fault: Fault, tallies: &[Tally], phases: [Duration; 2]) -> Report {
    let mut whole = Tally::default();
    tallies.iter().for_each(|tally| whole.add(tally));
    let mut rows = Vec::new();
    if let Some(recovered) = recovered(&whole.timeline, phases[1]) {
        rows.push(Row::new("from Redis' return until every read is answered 2xx", recovered.as_secs_f64(), "s"));
    }
    if let Some(away) = tallies.get(1).filter(|away| !away.all.is_empty()) {
        // A caller who is refused soon can go on without features.
        rows.push(Row::new("meanwhile: p50 until an answer of any kind", quantile_ms(&away.all, 0.5), "ms"));
        rows.push(Row::new("meanwhile: p99 until an answer of any kind", quantile_ms(&away.all, 0.99), "ms"));
    }
    let away_s = (phases[1] - phases[0]).as_secs_f64();
    let lengths = [phases[0].as_secs_f64(), away_s, pace.seconds - phases[1].as_secs_f64()];
    for ((name, tally), length) in PHASES.iter().zip(tallies).zip(lengths) {
        rows.extend(rows_of(name, tally, length));
    }
    let named: Vec<_> = PHASES.iter().zip(tallies).map(|(name, tally)| (name.to_string(), &tally.all)).collect();
    let band = Band {
        from_to: (phases[0].as_secs_f64(), phases[1].as_secs_f64()),
        name: if fault == Fault::Slow { "slow Redis" } else { "no Redis" },
    };
    let pictures = vec![
        curves::latencies("Redis away, time until an answer of any kind", &named),
        curves::timeline("Redis away, what became of the reads", &whole.timeline, Some(band)),
    ];
    let setting = format!("{fault:?} for {away_s} s; {}", pace.says(place.users));
    Report { name: "brownout", setting, rows, pictures }
}

/// From the return until the first tenth of a second after which nothing failed any more; `None` where the last one still failed.
fn recovered(timeline: &[Slot], back: Duration) -> Option<Duration> {
    let is_well = |slot: &Slot| slot.refused + slot.failed == 0;
    let first_well = timeline.iter().rposition(|slot| !is_well(slot)).map_or(0, |last_bad| last_bad + 1);
    (first_well < timeline.len()).then(|| (SLOT * first_well as u32).saturating_sub(back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_ends_with_the_last_failure() {
        let slots = |text: &str| -> Vec<Slot> {
            let slot = |letter| match letter {
                'a' => Slot { accepted: 1, ..Slot::default() },
                'r' => Slot { refused: 1, ..Slot::default() },
                'f' => Slot { accepted: 1, failed: 1, ..Slot::default() },
                _ => Slot::default(),
            };
            text.chars().map(slot).collect()
        };
        let back = Duration::from_millis(400);
        assert_eq!(recovered(&slots("aarraraa"), back), Some(Duration::from_millis(200)));
        assert_eq!(recovered(&slots("aaffaaaa"), back), Some(Duration::ZERO));
        assert_eq!(recovered(&slots("aaaaaaaa"), back), Some(Duration::ZERO));
        assert_eq!(recovered(&slots("aaaaaaar"), back), None);
        assert_eq!(recovered(&[], back), None);
    }
}
