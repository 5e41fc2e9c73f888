//! By hand, by coverage in a generated world, and on Open Bandit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::stats::{Sample, interval};
use crate::synth::{SynthSettings, World, WorldKind, generate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn uniform(items: usize) -> impl Fn(&Record, usize) -> f64 {
    move |_, _| 1.0 / items as f64
}

#[test]
fn estimates_are_those_of_hand() {
    // Two items; item 0 was shown with chance .8, item 1 with .2.
    let record = |item, reward| Record { position: 0, item, propensity: if item == 0 { 0.8 } else { 0.2 }, reward };
    let records = vec![record(0, 1.0), record(0, 0.0), record(0, 0.0), record(0, 1.0), record(1, 1.0)];
    let log = Log::new(records, 2).unwrap();
    let found = estimate(&log, &uniform(2)).unwrap();
    // Weights .625 four times, 2.5 once.
    assert!((found.ips.estimate - (0.625 + 0.625 + 2.5) / 5.0).abs() < 1e-12);
    assert!((found.snips.estimate - 3.75 / 5.0).abs() < 1e-12);
    assert!((found.mean_weight - 1.0).abs() < 1e-12 && found.largest_weight == 2.5);
    assert!((found.effective_size - 25.0 / (4.0 * 0.390_625 + 6.25)).abs() < 1e-12);
    // The logging policy itself: all agree with the mean.
    let own = estimate(
        &log,
        &|record: &Record, item| if item == 0 { 0.8 } else { 0.2 } * f64::from(u8::from(record.position == 0)),
    );
    let own = own.unwrap();
    assert!((own.ips.estimate - 0.6).abs() < 1e-12 && (own.snips.estimate - 0.6).abs() < 1e-12);
    // A target that shows what was never logged.
    let refused = estimate(&log, &|_, _| 0.0).unwrap_err().to_string();
    assert!(refused.contains("shows nothing of what the log has"), "{refused}");
}

#[test]
fn bad_logs_are_named_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log.tsv");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Log::read(&path, 3).unwrap_err().to_string()
    };
    let header = "timestamp\titem\tposition\tclick\tpropensity\n";
    for (line, message) in [
        ("t\t3\t1\t0\t.5\n", "line 2: item 3 is not below the number of items, 3"),
        ("t\t1\t0\t0\t.5\n", "line 2: position 0"),
        ("t\t1\t1\t2\t.5\n", "line 2: click \"2\""),
        ("t\t1\t1\t0\t0\n", "line 2: propensity 0 is not above 0"),
        ("t\t1\t1\t0\tNaN\n", "line 2: propensity NaN"),
        ("t\t1\t1\n", "line 2: click \"\""),
        ("t\tx\t1\t0\t.5\n", "line 2: item \"x\""),
        ("t\t1\t1\t0\t.5\n", "all 1 rewards of the log are the same"),
        ("", "the log is empty"),
    ] {
        let refused = read(&format!("{header}{line}"));
        assert!(refused.contains(message), "{refused}");
    }
    assert!(read("item\tposition\n").contains("line 1: the header has no column click"));
}

/// A page of one position with some items of a world; a logging policy that shows what is clicked more often, most of the time.
struct Bandit {
    /// True chance of each user and item.
    chances: Vec<Vec<f64>>,
    logging: Vec<f64>,
}

impl Bandit {
    const ITEMS: usize = 20;

    /// Chances of click *and* conversion are a percent or less; twenty times that is what is clicked.
    fn of(world: &World) -> Self {
        let user =
            |user| (0..Self::ITEMS).map(|item| (20.0 * world.ctcvr(user, 97 * item).unwrap()).min(1.0)).collect();
        let chances: Vec<Vec<f64>> = (0..world.users.len()).map(user).collect();
        let mean = |item: usize| chances.iter().map(|user| user[item]).sum::<f64>() / chances.len() as f64;
        let most = (0..Self::ITEMS).map(mean).fold(0.0, f64::max);
        let scores: Vec<f64> = (0..Self::ITEMS).map(|item| (3.0 * mean(item) / most).exp()).collect();
        let sum: f64 = scores.iter().sum();
        Self { chances, logging: scores.into_iter().map(|score| score / sum).collect() }
    }

    fn value(&self, policy: impl Fn(usize) -> f64) -> f64 {
        let user =
            |chances: &Vec<f64>| chances.iter().enumerate().map(|(item, chance)| policy(item) * chance).sum::<f64>();
        self.chances.iter().map(user).sum::<f64>() / self.chances.len() as f64
    }

    fn log(&self, records: usize, seed: u64) -> Log {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let drawn = |_| {
            let user = random.random_range(0..self.chances.len());
            let mut left: f64 = random.random();
            let item = self.logging.iter().position(|chance| {
                left -= chance;
                left < 0.0
            });
            let item = item.unwrap_or(Self::ITEMS - 1);
            let reward = f64::from(u8::from(random.random_bool(self.chances[user][item])));
            Record { position: 0, item, propensity: self.logging[item], reward }
        };
        Log::new((0..records).map(drawn).collect(), Self::ITEMS).unwrap()
    }
}

/// Share of the logs whose 95 % interval has the true value of the uniform policy, and mean error of the estimate, by estimator.
fn coverage(logs: u64, records: usize) -> [(f64, f64); 3] {
    let settings = SynthSettings { kind: WorldKind::Reason, users: 400, ..SynthSettings::default() };
    let bandit = Bandit::of(&generate(&settings));
    let truth = bandit.value(|_| 1.0 / Bandit::ITEMS as f64);
    let mut sums = [(0.0, 0.0); 3];
    for seed in 0..logs {
        let found = estimate(&bandit.log(records, seed), &uniform(Bandit::ITEMS)).unwrap();
        for (sum, interval) in sums.iter_mut().zip([found.ips, found.snips, found.dr]) {
            sum.0 += f64::from(u8::from(interval.covers(truth)));
            sum.1 += interval.estimate - truth;
        }
    }
    println!("truth {truth:.5}, the logging policy earns {:.5}", bandit.value(|item| bandit.logging[item]));
    sums.map(|(covered, error)| (covered / logs as f64, error / logs as f64 / truth))
}

#[test]
fn intervals_cover_the_truth_of_a_world() {
    for (name, (covered, error)) in ["ips", "snips", "dr"].into_iter().zip(coverage(200, 4_000)) {
        println!("{name}: {covered} covered, mean error {error:.4} of the value");
        // 200 logs: three standard errors.
        assert!((0.90..=0.99).contains(&covered), "{name}: {covered}");
        assert!(error.abs() < 0.02, "{name}: {error}");
    }
}

#[test]
#[ignore = "minutes: `make off-policy`"]
fn off_policy_check() {
    println!("| records | estimator | covered of 1,000 logs | mean error / value |\n|---|---|---|---|");
    for records in [1_000, 4_000, 10_000] {
        for (name, (covered, error)) in ["IPS", "SNIPS", "DR"].into_iter().zip(coverage(1_000, records)) {
            println!("| {records} | {name} | {covered:.3} | {error:.4} |");
            assert!((0.93..=0.97).contains(&covered), "{name}: {covered}");
        }
    }
}

/// The random policy's value out of the other policy's log, beside what the random policy in fact earned.
#[test]
fn open_bandit_tells_the_random_policys_value() {
    let data = testkit::data_folder();
    if !data.join("obd.men.bts.tsv.gz").is_file() {
        testkit::skip(&format!("{} has no obd.*.tsv.gz; TAIJI_DATA_DIR names the folder", data.display()));
        return;
    }
    for (campaign, items) in [("men", 34), ("women", 46)] {
        let log = |policy: &str| Log::read(&data.join(format!("obd.{campaign}.{policy}.tsv.gz")), items).unwrap();
        let truth = interval(&Sample::of_users(&log("random").rewards()).unwrap(), 0.95).unwrap();
        let found = estimate(&log("bts"), &uniform(items)).unwrap();
        for value in [found.ips, found.snips, found.dr] {
            assert!(value.low < truth.high && value.high > truth.low, "{campaign}: {value:?} {truth:?}");
        }
        println!("{campaign}: {found:?}");
        // A few records of `women` were shown with a chance of less than one in ten thousand: they weigh more than all others.
        match campaign {
            "men" => assert!((found.mean_weight - 1.0).abs() < 0.1 && found.effective_size > 500.0),
            _ => assert!(found.mean_weight > 2.0 && found.effective_size < 100.0),
        }
    }
}
