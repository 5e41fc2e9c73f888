//! Alignment, tiny: a ranker, a simulator, the start's roll-outs, a policy a rule, and what their answers are worth; rows and tables.

use crate::recipe::{ensure_encoder_checkpoint, run_in, set, tables_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use testkit::process::run_with;
use testkit::{TRAINER, in_repository};

const ARMS: [&str; 8] =
    ["sft", "truth", "best-chance", "nash", "nash-oracle", "popo-guarded", "continued", "self-taught"];

/// models/align.toml with everything made small but the language model, which is the demo's.
pub(crate) fn small(folder: &Path) -> PathBuf {
    let whole = std::fs::read_to_string(in_repository("models/align.toml")).unwrap();
    let mut recipe: toml::Table = whole.parse().unwrap();
    let checkpoint = format!("path = {:?}", in_repository("models/demo/1/checkpoints/sft").display().to_string());
    for (stage, settings) in [
        ("world", "users = 60"),
        ("asked", "users = 20"),
        ("held-out", "users = 40"),
        ("sft", checkpoint.as_str()),
        ("codebook", "k = 8"),
        ("start", "count = 2"),
        ("align", "steps = 3\nprompts = 2\ngroup = 4\nlog_every = 1\ncheckpoint_every = 2"),
        ("continued", "max_steps = 3"),
        ("self-taught", "max_steps = 2"),
    ] {
        set(&mut recipe, stage, settings);
    }
    recipe["experiment"]["seeds"] = toml::Value::from(vec![1]);
    recipe["arms"].as_table_mut().unwrap().retain(|arm, _| ARMS.contains(&arm));
    let path = folder.join("align.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

#[test]
fn policies_are_aligned_and_judged_by_the_worlds_own_truth() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    let (rows, work) = (folder.path().join("rows"), folder.path().join("a"));
    let more = ["--jobs", "2", "--rows", rows.to_str().unwrap()];
    let told = run_in(&recipe, &work, &more).expect_code(0).stderr;
    assert_eq!(told.matches("/start: running").count(), 1, "arms share the roll-outs of the start: {told}");
    let read = |arm: &str| -> Value {
        serde_json::from_slice(&std::fs::read(rows.join(format!("{arm}-1.json"))).unwrap()).unwrap()
    };
    let mean = |arm: &str, metric: &str| read(arm)["result"]["looks"][0]["metrics"][metric]["mean"].as_f64().unwrap();
    // Nothing is more similar than what was bought, and nothing has a higher chance than the best item.
    assert!((mean("truth", "similarity") - 1.0).abs() < 1e-4 && mean("truth", "l3") == 1.0);
    for arm in ARMS {
        assert!(mean(arm, "ctcvr_percent") <= mean("best-chance", "ctcvr_percent") + 1e-9, "{arm}");
        assert!(mean(arm, "similarity") <= mean("truth", "similarity"), "{arm}");
        let figures = &read(arm)["result"]["looks"][0]["figures"];
        assert!(
            figures["item_entropy"].as_f64().unwrap() > 0.0 && figures["distinct_codes"].is_f64(),
            "{arm}: {figures}"
        );
    }
    // What taught the policy on its own answers is their best, each once a prompt.
    let best = work.join("work").join(format!("best-of-{}", read("self-taught")["stages"]["best"].as_str().unwrap()));
    let counted: Value = serde_json::from_slice(&std::fs::read(best.join("best_of.json")).unwrap()).unwrap();
    let count = |name: &str| counted[name].as_u64().unwrap();
    assert_eq!(count("examples") + count("alike") + count("without_format"), 20, "{counted}");
    let lines = std::fs::read_to_string(best.join("train.jsonl")).unwrap();
    assert!(lines.lines().count() as u64 == count("examples") && lines.contains("</answer>"), "{lines}");
    // Each step says what it saw, under TRL's names; POPO also what its probes saw.
    let align = |arm: &str| {
        let folder = work.join("work").join(format!("align-{}", read(arm)["stages"]["align"].as_str().unwrap()));
        let steps = std::fs::read_to_string(folder.join("steps.jsonl")).unwrap();
        steps.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    for (arm, name) in [
        ("nash", "rewards/semantic/mean"),
        ("nash", "rewards/simulated/std"),
        ("nash", "std_to_start/simulated"),
        ("nash", "simulator/hit_rate"),
        ("nash", "sampling/sampling_logp_difference/max"),
        ("popo-guarded", "gradient_cosine"),
        ("popo-guarded", "indicator/semantic"),
    ] {
        assert!(align(arm).len() == 3 && align(arm).iter().all(|step| step[name].is_f64()), "{arm}: {name}");
    }
    let tables = tables_of(folder.path(), "align", 40, &rows);
    assert!(tables.contains("| nash | 1 | ") && tables.contains("nothing is decided"), "{tables}");
}

#[test]
fn what_makes_no_alignment_is_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    let whole: toml::Table = std::fs::read_to_string(&recipe).unwrap().parse().unwrap();
    for (stage, setting, expected) in [
        ("align", "group = 1", "group must be at least 2"),
        ("align", "rewards = 3", "rewards"),
        ("align", "weighting = { rule = \"best\" }", "weighting.rule"),
        ("align", "sync_every = 3", "checkpoint_every"),
        ("answers", "temperature = 0.0", "temperature"),
    ] {
        let mut wrong = whole.clone();
        set(&mut wrong, stage, setting);
        std::fs::write(&recipe, toml::to_string(&wrong).unwrap()).unwrap();
        let ended = run_with(&TRAINER, &["plan", "--recipe", &recipe.display().to_string()], &[]).expect_code(64);
        assert!(ended.stderr.contains(stage) && ended.stderr.contains(expected), "{}", ended.stderr);
    }
}
