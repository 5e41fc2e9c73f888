//! `read`: nothing but reads, at a rate. In: a filled service. Out: goodput, latencies, processor time of a call.

use super::{Pace, Reads, ScenarioError, rows_of};
use crate::load::open;
use crate::process::processor_s;
use crate::report::{Report, Row, curves};
use crate::rig::{Place, Rig, Roles};

pub(super) fn play(place: &Place, pace: &Pace) -> Result<Report, ScenarioError> {
    let rig = Rig::start(place, Roles::Api, false)?;
    let reads = Reads::native(&rig.peer, place.users, pace)?;
    let redis = rig.started.as_ref().and_then(|started| started.redis_pid());
    let used = || -> Result<Vec<f64>, ScenarioError> {
        [rig.pid, redis].into_iter().flatten().map(|pid| Ok(processor_s(pid)?)).collect()
    };
    let before = used()?;
    let tally = open::run(&pace.open(&rig.peer.address), 1, |thread| reads.source(0, thread))?.remove(0);
    let after = used()?;
    let mut rows = rows_of("reads", &tally, pace.seconds);
    for (name, (before, after)) in ["service", "Redis"].into_iter().zip(before.iter().zip(after)) {
        let each = (after - before) / tally.sent.max(1) as f64 * 1e6;
        rows.push(Row::new(format!("processor time of a call, {name}"), each, "µs"));
    }
    let picture =
        curves::latencies("Reads, latency from the intended start", &[("answered 2xx".into(), &tally.accepted)]);
    Ok(Report { name: "read", setting: pace.says(place.users), rows, pictures: vec![picture] })
}
