//! `bench-read` on the built service, in short: every way answers, and both sides of a comparison answer the same bytes.

use serde_json::Value;
use testkit::process::run_with;
use testkit::{TAIJI, in_repository};

const PROGRAM: &str = env!("CARGO_BIN_EXE_taiji-loadtest");

#[test]
fn every_way_of_a_read_is_measured_in_every_round() {
    let bundle = in_repository("models/demo/1").display().to_string();
    let short = ["--rounds", "2", "--seconds", "0.1", "--users", "100"];
    let command = [&["bench-read", "--program", &TAIJI, "--bundle", &bundle][..], &short].concat();
    let ended = run_with(PROGRAM, &command, &[]).expect_code(0);
    let found: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert!(found["server"].as_str().is_some_and(|server| server.starts_with("Redis 7")), "{}", found["server"]);
    let rounds = found["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        assert_eq!(round.as_object().expect("ways").len(), 14, "{round}");
        for (way, measured) in round.as_object().expect("ways") {
            assert!(measured["rate"].as_f64().is_some_and(|rate| rate > 1.0), "{way}: {measured}");
            assert_eq!(measured["service_us"].is_null(), way.starts_with("raw"), "{way}: {measured}");
        }
    }
    // An answer about 100 users is longer, and Feast's shape has other bytes than ours.
    let bytes = |way: &str| found["bytes"][way].as_f64().expect("a length");
    assert!(bytes("ours-many") > 10.0 * bytes("ours-one") && bytes("ours-feast-one") != bytes("ours-one"));
    for round in found["open"]["rounds"].as_array().expect("open rounds") {
        assert!(round["smallest"]["answered"].as_f64().is_some_and(|share| share > 0.0), "{round}");
    }
}

#[test]
fn too_few_users_and_strange_servers_are_refused() {
    let bundle = in_repository("models/demo/1").display().to_string();
    for (flags, word) in [(["--users", "99"], "100 different ones"), (["--feast", "ftp://x"], "wanted are at most two")]
    {
        let command = [&["bench-read", "--program", &TAIJI, "--bundle", &bundle][..], &flags].concat();
        let ended = run_with(PROGRAM, &command, &[]).expect_code(69);
        assert!(ended.stderr.contains(word), "{flags:?}: {}", ended.stderr);
    }
}
