//! `mixed`: events come in by HTTP while reads go on. In: a filled service of all roles. Out: goodput and latencies of both.

use super::{Pace, Reads, ScenarioError, rows_of};
use crate::load::open;
use crate::report::{Report, curves};
use crate::rig::{Place, Rig, Roles};

/// By kind.
pub(super) const KINDS: [&str; 2] = ["reads", "events"];

pub(super) fn play(place: &Place, pace: &Pace, share: f64) -> Result<Report, ScenarioError> {
    let rig = Rig::start(place, Roles::All, false)?;
    let reads = Reads::native(&rig.peer, place.users, pace)?;
    let source = |thread| reads.with_events((&rig.peer, place.users), share, pace, thread);
    let tallies = open::run(&pace.open(&rig.peer.address), KINDS.len(), source)?;
    let rows = KINDS.iter().zip(&tallies).flat_map(|(kind, tally)| rows_of(kind, tally, pace.seconds)).collect();
    let measured: Vec<_> =
        KINDS.iter().zip(&tallies).map(|(kind, tally)| (kind.to_string(), &tally.accepted)).collect();
    let picture = curves::latencies("Reads beside events, latency from the intended start", &measured);
    let setting = format!("{}; {share} of the calls bring an event", pace.says(place.users));
    Ok(Report { name: "mixed", setting, rows, pictures: vec![picture] })
}
