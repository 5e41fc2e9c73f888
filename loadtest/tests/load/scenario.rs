//! The scenarios on the real service and a real Redis, in short: what they report is what happened.

use std::path::Path;
use testkit::process::run_with;
use testkit::{TAIJI, in_repository};

const PROGRAM: &str = env!("CARGO_BIN_EXE_taiji-loadtest");

/// Runs one; its page.
fn page(scenario: &str, out: &Path, flags: &[&str]) -> String {
    let (bundle, folder) = (in_repository("models/demo/1").display().to_string(), out.display().to_string());
    let common = ["scenario", scenario, "--program", &TAIJI, "--bundle", &bundle, "--out", &folder, "--users", "50"];
    run_with(PROGRAM, &[&common[..], flags].concat(), &[]).expect_code(0);
    std::fs::read_to_string(out.join(format!("{scenario}.md"))).expect("the page")
}

/// The value of a row.
fn value(page: &str, what: &str) -> f64 {
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(&format!("| {what} | ")))
        .unwrap_or_else(|| panic!("{what} in {page}"));
    line.split(' ').next().expect("a number").replace(',', "").parse().expect("a number")
}

#[test]
fn a_redis_that_goes_away_and_comes_back_is_seen_in_every_phase() {
    let out = tempfile::tempdir().expect("folder");
    let page = page("brownout", out.path(), &["--seconds", "4", "--rate", "100", "--fault", "cut"]);
    assert!(value(&page, "before: share answered 2xx") > 0.95, "{page}");
    assert!(value(&page, "meanwhile: share answered 2xx") < 0.1, "{page}");
    assert!(value(&page, "meanwhile: status 503") > 50.0, "{page}");
    assert!(value(&page, "afterwards: share answered 2xx") > 0.3, "{page}");
    assert_eq!(value(&page, "afterwards: connection broke"), 0.0, "{page}");
    for picture in ["brownout.svg", "brownout-time.svg"] {
        let svg = std::fs::read_to_string(out.path().join(picture)).expect(picture);
        assert!(page.contains(picture) && svg.ends_with("</svg>\n"), "{picture}");
    }
}

#[test]
fn reads_and_events_are_told_apart_and_memory_is_watched() {
    let out = tempfile::tempdir().expect("folder");
    let page = page("soak", out.path(), &["--seconds", "3", "--rate", "100", "--events", "0.3"]);
    let (reads, events) = (value(&page, "reads: meant"), value(&page, "events: meant"));
    assert!(reads > 150.0 && events > 50.0 && events < reads, "{reads} reads, {events} events");
    for (what, all) in [("reads: status 200", reads), ("events: status 202", events)] {
        assert!(value(&page, what) > 0.95 * all, "{page}");
    }
    assert!(value(&page, "resident memory at the end") > 10.0, "{page}");
    assert!(out.path().join("soak-memory.svg").is_file());
}

#[test]
fn what_cannot_be_played_is_refused_with_the_remedy() {
    let nowhere = format!("http://{}", testkit::process::free_address());
    for (flags, word) in [
        (vec!["read"], "--program"),
        (vec!["read", "--program", "/nowhere/taiji"], "make build"),
        (vec!["read", "--url", "https://example.org"], "wanted is http://HOST:PORT"),
        (vec!["brownout", "--url", &nowhere], "takes Redis away"),
        (vec!["soak", "--url", &nowhere], "--pid"),
        (vec!["read", "--url", &nowhere, "--users-per-call", "0"], "--users-per-call"),
        (vec!["mixed", "--url", &nowhere, "--events", "2"], "--events"),
        (vec!["read", "--url", &nowhere, "--fill"], "filling with events"),
    ] {
        let ended = run_with(PROGRAM, &[&["scenario"][..], &flags].concat(), &[]).expect_code(69);
        assert!(ended.stderr.contains(word), "{flags:?}: {}", ended.stderr);
    }
    run_with(PROGRAM, &["scenario", "read", "--seconds", "0"], &[]).expect_code(64);
}
