//! What goes wrong, when, and how it is done.
//!
//! In: a seed. Out: a schedule; and the faults themselves, each with the time until all was well again. Callers: `run`.

use super::fleet::Fleet;
use super::site::{Ground, Site, pause_clients};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};
use testkit::redis::RedisServer;

/// The first fault comes after this.
const LEAD: Duration = Duration::from_secs(2);
/// After the store answers again our processes may still refuse: they ask a silent node after pauses that grow with its
/// silence, up to 2 s with jitter.
const ASKED_AGAIN: Duration = Duration::from_secs(3);
/// Longest wait until all is well again.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// One thing that goes wrong. Times are those of the outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of a member, and a new start.
    Kill { member: usize },
    /// SIGTERM to a member, and a new start.
    Stop { member: usize },
    /// SIGSTOP of a member, and SIGCONT.
    Freeze { member: usize, time: Duration },
    /// One more consumer joins and leaves.
    Join { stay: Duration, leaves_killed: bool },
    /// Redis is shut down and comes back with its append-only file.
    RedisRestart { away: Duration },
    /// Redis is killed and comes back with its append-only file.
    RedisKill { away: Duration },
    /// Redis is killed and comes back without the end of its append-only file; `torn`: within a command.
    TailCut { back: Duration, torn: bool },
    /// Redis is stopped (SIGSTOP) and goes on.
    RedisPause { time: Duration },
    /// The network to Redis closes all connections and refuses new ones.
    NetworkCut { time: Duration },
    /// The network to Redis lets nothing through.
    NetworkPause { time: Duration },
    /// Redis, or a master, answers nobody (CLIENT PAUSE).
    ClientPause { place: usize, time: Duration },
    /// A master is killed; its replica takes over.
    MasterKill { place: usize },
    /// A master is stopped (SIGSTOP) until its replica has taken over, and wakes up with an old map.
    MasterFreeze { place: usize, time: Duration },
    /// A replica that was cut off takes over with what it had.
    StaleReplica { place: usize, cut: Duration },
    /// kill -9 of the broker, and a new start.
    BrokerRestart,
}

impl Fault {
    /// For the report.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill { .. } => "kill",
            Fault::Stop { .. } => "stop",
            Fault::Freeze { .. } => "freeze",
            Fault::Join { .. } => "join",
            Fault::RedisRestart { .. } => "redis restart",
            Fault::RedisKill { .. } => "redis kill",
            Fault::TailCut { .. } => "tail cut",
            Fault::RedisPause { .. } => "redis pause",
            Fault::NetworkCut { .. } => "network cut",
            Fault::NetworkPause { .. } => "network pause",
            Fault::ClientPause { .. } => "client pause",
            Fault::MasterKill { .. } => "master kill",
            Fault::MasterFreeze { .. } => "master freeze",
            Fault::StaleReplica { .. } => "stale replica",
            Fault::BrokerRestart => "broker restart",
        }
    }
}

/// The faults of a seed with their times after the start of the stream, in two rows that go on side by side: what happens to
/// the store, one after the other, and what happens to processes and the broker. A long run has every kind, and
/// kills and stops as often as there is time for; a short one has what fits.
pub fn schedule(seed: u64, time: Duration, members: usize, is_cluster: bool) -> Vec<(Duration, Fault)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xFA17);
    let is_long = time >= Duration::from_secs(30);
    let store = match is_cluster {
        true => cluster_faults(&mut random, is_long),
        false => single_faults(seed, &mut random, is_long),
    };
    let mut others = vec![Fault::BrokerRestart];
    others.push(Fault::Join { stay: between(&mut random, 1000, 4000), leaves_killed: seed.is_multiple_of(3) });
    for _ in 0..1 + time.as_secs() / 30 {
        others.push(Fault::Kill { member: random.random_range(0..members) });
        others.push(Fault::Stop { member: random.random_range(0..members) });
        let frozen = if is_long { between(&mut random, 4000, 8000) } else { Duration::from_secs(2) };
        others.push(Fault::Freeze { member: random.random_range(0..members), time: frozen });
    }
    let mut faults = spread(store, time, &mut random);
    faults.extend(spread(others, time, &mut random));
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn between(random: &mut ChaCha8Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(random.random_range(low..=high))
}

fn single_faults(seed: u64, random: &mut ChaCha8Rng, is_long: bool) -> Vec<Fault> {
    let mut faults = vec![
        Fault::TailCut { back: between(random, 1000, 2500), torn: seed.is_multiple_of(2) },
        Fault::NetworkCut { time: if is_long { between(random, 1000, 5000) } else { between(random, 200, 500) } },
        Fault::RedisPause { time: Duration::from_secs(if is_long { 5 } else { 1 }) },
    ];
    if is_long {
        faults.extend([
            Fault::ClientPause { place: 0, time: between(random, 2000, 5000) },
            Fault::NetworkPause { time: between(random, 2000, 6000) },
            Fault::RedisRestart { away: between(random, 100, 1000) },
            Fault::RedisKill { away: between(random, 0, 1000) },
        ]);
    }
    faults
}

fn cluster_faults(random: &mut ChaCha8Rng, is_long: bool) -> Vec<Fault> {
    let mut place = || random.random_range(0..3);
    let [kill, freeze, stale, pause] = [place(), place(), place(), place()];
    let mut faults = vec![Fault::MasterKill { place: kill }];
    if is_long {
        faults.extend([
            Fault::MasterFreeze { place: freeze, time: between(random, 4000, 7000) },
            // Longer than `kafka.commit_delay_ms`, shorter than what makes a replica unfit.
            Fault::StaleReplica { place: stale, cut: between(random, 6000, 10_000) },
            Fault::ClientPause { place: pause, time: between(random, 2000, 5000) },
        ]);
    }
    faults
}

/// One after the other in any order, each some time into its slot. What is left of the stream after the last shows whether
/// all goes on.
fn spread(mut faults: Vec<Fault>, time: Duration, random: &mut ChaCha8Rng) -> Vec<(Duration, Fault)> {
    faults.shuffle(random);
    // Late, it would hold up the stream's last records, and the rate would say nothing.
    if let Some(place) = faults.iter().position(|fault| *fault == Fault::BrokerRestart) {
        faults.swap(place, place / 2);
    }
    let slot = time.saturating_sub(LEAD * 2) / faults.len() as u32;
    let mut at = |number: usize| LEAD + slot * number as u32 + slot.mul_f64(random.random_range(0.0..0.5));
    faults.into_iter().enumerate().map(|(number, fault)| (at(number), fault)).collect()
}

/// Does it. Returns the time from when what was taken away was there again until every member was ready and features went on;
/// `None` if other faults, or the stream's end, came in between.
pub fn strike(fault: Fault, site: &Site, fleet: &Fleet) -> Option<Duration> {
    site.note(&format!("{fault:?}"));
    let took = match fault {
        Fault::Kill { member } => started(site, || fleet.members[member].kill_and_start(site)),
        Fault::Stop { member } => started(site, || fleet.members[member].stop_and_start(site)),
        Fault::Freeze { member, time } => {
            fleet.members[member].freeze(time);
            None
        }
        Fault::Join { stay, leaves_killed } => {
            fleet.extra().visit(stay, leaves_killed, site);
            None
        }
        Fault::BrokerRestart => {
            let disturbance = site.kafka.disturb();
            let mut broker = site.broker.lock().expect("broker");
            broker.kill();
            broker.start_again();
            drop(broker);
            let took = recovered(site, fleet);
            drop(disturbance);
            took
        }
        _ => store_fault(fault, site, fleet),
    };
    site.note(&format!("over: {}, all well again after {took:?}", fault.name()));
    took
}

/// The time of a start counts if everything it waits for was there.
fn started(site: &Site, start: impl FnOnce() -> Duration) -> Option<Duration> {
    let stamps = (site.store.stamp(), site.kafka.stamp());
    let took = start();
    (site.store.lasted_since(stamps.0) && site.kafka.lasted_since(stamps.1)).then_some(took)
}

fn store_fault(fault: Fault, site: &Site, fleet: &Fleet) -> Option<Duration> {
    let (disturbance, away) = (site.store.disturb(), Instant::now());
    match &site.ground {
        Ground::Single { .. } => single_fault(fault, site),
        Ground::Cluster(cluster) => match fault {
            Fault::MasterKill { place } => site.replace_master(|| cluster.pair(place).kill_master()),
            Fault::MasterFreeze { place, time } => site.replace_master(|| cluster.pair(place).freeze_master(time)),
            Fault::StaleReplica { place, cut } => {
                site.replace_master(|| cluster.pair(place).promote_stale_replica(cut))
            }
            Fault::ClientPause { place, time } => cluster.pair(place).pause_clients(time),
            other => unreachable!("{other:?} is not a cluster's"),
        },
    }
    let (back, asked_again) = (Instant::now(), ASKED_AGAIN.min(away.elapsed() * 2 + Duration::from_secs(1)));
    // From then on a read that fails counts, whether all else has recovered or not.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(asked_again.saturating_sub(back.elapsed()));
            drop(disturbance);
        });
        recovered(site, fleet)
    })
}

fn single_fault(fault: Fault, site: &Site) {
    let Ground::Single { redis, proxy } = &site.ground else { return };
    let mut redis = redis.lock().expect("redis");
    match fault {
        Fault::RedisRestart { away } => {
            redis.stop();
            come_back(&mut redis, away);
        }
        Fault::RedisKill { away } => {
            redis.kill();
            site.redis_was_killed();
            come_back(&mut redis, away);
        }
        Fault::TailCut { back, torn } => {
            redis.kill();
            match site.cut_append_only(back, if torn { 7 } else { 0 }) {
                Some(bytes) => site.note(&format!("{bytes} bytes of the append-only file are gone")),
                None => site.redis_was_killed(),
            }
            come_back(&mut redis, Duration::ZERO);
        }
        Fault::RedisPause { time } => {
            redis.signal("STOP");
            std::thread::sleep(time);
            redis.signal("CONT");
        }
        Fault::ClientPause { time, .. } => pause_clients(&redis, time),
        Fault::NetworkCut { time } => {
            proxy.cut();
            std::thread::sleep(time);
            proxy.restore();
        }
        Fault::NetworkPause { time } => {
            proxy.pause();
            std::thread::sleep(time);
            proxy.restore();
        }
        other => unreachable!("{other:?} is not a single Redis's"),
    }
}

fn come_back(redis: &mut RedisServer, away: Duration) {
    std::thread::sleep(away);
    redis.restart();
    Site::wait_for_redis(redis);
}

/// Waits until every member is ready and a reader has seen newer features.
fn recovered(site: &Site, fleet: &Fleet) -> Option<Duration> {
    let back = Instant::now();
    while !(fleet.is_ready() && site.has_risen_since(back)) {
        if site.has_stream_ended() {
            return None;
        }
        if back.elapsed() > RECOVERY_LIMIT {
            site.violation(format!(
                "all is back, and after {RECOVERY_LIMIT:?} not all are ready and features stand still"
            ));
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(back.elapsed())
}

/// For the report: how often each kind came.
pub fn counts(faults: &[(Duration, Fault)]) -> Vec<(&'static str, usize)> {
    let mut names: Vec<&'static str> = faults.iter().map(|(_, fault)| fault.name()).collect();
    names.sort_unstable();
    names.chunk_by(PartialEq::eq).map(|same| (same[0], same.len())).collect()
}

#[test]
fn a_schedule_has_every_kind_and_is_the_same_for_the_same_seed() {
    for (seconds, is_cluster, kinds) in [(12, false, 8), (60, false, 12), (12, true, 6), (60, true, 9)] {
        let time = Duration::from_secs(seconds);
        let faults = schedule(7, time, 4, is_cluster);
        assert_eq!(faults, schedule(7, time, 4, is_cluster));
        assert_ne!(faults, schedule(8, time, 4, is_cluster));
        assert_eq!(counts(&faults).len(), kinds, "{faults:?}");
        assert!(faults.iter().all(|(at, _)| (LEAD..time - LEAD).contains(at)));
    }
}
