//! What goes wrong, when, and how it is done.
//!
//! In: a seed. Out: a schedule; and the faults themselves, each with the time until all was well again. Callers: `run`.

use super::fleet::Fleet;
use super::site::Site;
use crate::redis_rig::RedisServer;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// The first fault comes after this.
const LEAD: Duration = Duration::from_secs(2);
/// After the store answers again our processes may still refuse: they ask a silent node every 2 s, with jitter.
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
    /// kill -9 of the broker, and a new start.
    BrokerRestart,
}

impl Fault {
    /// For the report.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill { .. } => "kill",
            Fault::Stop { .. } => "stop",
            Fault::Join { .. } => "join",
            Fault::RedisRestart { .. } => "redis restart",
            Fault::RedisKill { .. } => "redis kill",
            Fault::TailCut { .. } => "tail cut",
            Fault::RedisPause { .. } => "redis pause",
            Fault::NetworkCut { .. } => "network cut",
            Fault::NetworkPause { .. } => "network pause",
            Fault::BrokerRestart => "broker restart",
        }
    }
}

/// The faults of a seed with their times after the start of the stream. Every kind comes once, kills and stops of members
/// as often as there is time for; most come alone, but one may begin while another lasts.
pub fn schedule(seed: u64, time: Duration, members: usize) -> Vec<(Duration, Fault)> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xFA17);
    let is_long = time >= Duration::from_secs(30);
    let mut between = |low: u64, high: u64| Duration::from_millis(random.random_range(low..=high));
    let short = |long: u64| if is_long { Duration::from_millis(long) } else { Duration::from_millis(long / 5) };
    let mut faults = vec![
        Fault::RedisRestart { away: between(100, 1000) },
        Fault::RedisKill { away: between(0, 1000) },
        Fault::TailCut { back: between(1000, 2500), torn: seed.is_multiple_of(2) },
        Fault::RedisPause { time: short(5000) },
        Fault::NetworkCut { time: short(between(1000, 5000).as_millis() as u64) },
        Fault::NetworkPause { time: short(between(2000, 6000).as_millis() as u64) },
        Fault::BrokerRestart,
        Fault::Join { stay: between(1000, 4000), leaves_killed: seed.is_multiple_of(3) },
    ];
    let extra = if is_long { time.as_secs() as usize / 10 } else { 1 };
    for _ in 0..extra {
        faults.push(Fault::Kill { member: random.random_range(0..members) });
        faults.push(Fault::Stop { member: random.random_range(0..members) });
    }
    faults.shuffle(&mut random);
    // What is left of the stream after the last one shows whether all goes on.
    let slot = time.saturating_sub(LEAD * 2) / faults.len() as u32;
    let at = |(number, fault): (usize, Fault)| {
        (LEAD + slot * number as u32 + slot.mul_f64(random.random_range(0.0..0.9)), fault)
    };
    faults.into_iter().enumerate().map(at).collect()
}

/// Does it. Returns the time from when what was taken away was there again until every member was ready and features went on;
/// `None` if other faults, or the stream's end, came in between.
pub fn strike(fault: Fault, site: &Site, fleet: &Fleet) -> Option<Duration> {
    site.note(&format!("{fault:?}"));
    let took = match fault {
        Fault::Kill { member } => started(site, || fleet.members[member].kill_and_start(site)),
        Fault::Stop { member } => started(site, || fleet.members[member].stop_and_start(site)),
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
    let mut redis = site.redis.lock().expect("redis");
    let disturbance = site.store.disturb();
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
        Fault::NetworkCut { time } => {
            site.proxy.cut();
            std::thread::sleep(time);
            site.proxy.restore();
        }
        Fault::NetworkPause { time } => {
            site.proxy.pause();
            std::thread::sleep(time);
            site.proxy.restore();
        }
        Fault::Kill { .. } | Fault::Stop { .. } | Fault::Join { .. } | Fault::BrokerRestart => {
            unreachable!("{fault:?} is not the store's")
        }
    }
    let back = Instant::now();
    let took = recovered(site, fleet);
    std::thread::sleep(ASKED_AGAIN.saturating_sub(back.elapsed()));
    drop(disturbance);
    took
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
    for seconds in [10, 60] {
        let time = Duration::from_secs(seconds);
        let faults = schedule(7, time, 4);
        assert_eq!(faults, schedule(7, time, 4));
        assert_ne!(faults, schedule(8, time, 4));
        assert_eq!(counts(&faults).len(), 10, "{faults:?}");
        assert!(faults.iter().all(|(at, _)| (LEAD..time - LEAD).contains(at)));
    }
}
