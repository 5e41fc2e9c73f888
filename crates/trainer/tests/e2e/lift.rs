//! What features are worth, tiny: histories answered as of the past, codes, neighbours, rankers with and without them, rows and tables.

use crate::recipe::{ensure_encoder_checkpoint, run_in, set, tables_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use testkit::process::run_with;
use testkit::{TRAINER, in_repository};

const ARMS: [&str; 6] = ["none", "both", "encoder-only", "collaborative-neighbour", "permuted", "truth"];

/// models/lift.toml with everything made small but the language model, which is the demo's.
fn small(folder: &Path) -> PathBuf {
    let whole = std::fs::read_to_string(in_repository("models/lift.toml")).unwrap();
    let mut recipe: toml::Table = whole.parse().unwrap();
    let checkpoint = format!("path = {:?}", in_repository("models/demo/1/checkpoints/sft").display().to_string());
    for (stage, settings) in [
        ("world", "users = 40"),
        ("ranked", "users = 40"),
        ("checkpoint", checkpoint.as_str()),
        ("examples", "codebook_texts = 100"),
        ("histories", "codebook_texts = 100"),
        ("codebook", "k = 16"),
        ("history-codebook", "k = 16"),
        ("backfill", "generations = 2"),
        ("history-backfill", "generations = 2"),
    ] {
        set(&mut recipe, stage, settings);
    }
    recipe["experiment"]["seeds"] = toml::Value::from(vec![1]);
    recipe["arms"].as_table_mut().unwrap().retain(|arm, _| ARMS.contains(&arm));
    let path = folder.join("lift.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

fn row(rows: &Path, arm: &str) -> Value {
    serde_json::from_slice(&std::fs::read(rows.join(format!("{arm}-1.json"))).unwrap()).unwrap()
}

/// The lines of the stage's file whose row names its hash.
fn features(work: &Path, row: &Value) -> Vec<Value> {
    let folder = work.join("work").join(format!("features-{}", row["stages"]["features"].as_str().unwrap()));
    let text = std::fs::read_to_string(folder.join("features.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn rankers_with_features_of_the_past_and_without_make_rows_and_tables() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    let rows = folder.path().join("rows");
    let run = || {
        let more = ["--jobs", "2", "--rows", rows.to_str().unwrap()];
        run_in(&recipe, &folder.path().join("a"), &more).expect_code(0).stderr
    };
    let told = run();
    assert_eq!(told.matches("/backfill: running").count(), 1, "arms share what was answered: {told}");
    let users = |row: &Value| row["result"]["looks"][0]["metrics"]["click_auc"]["users"].as_u64().unwrap();
    let none = row(&rows, "none");
    assert!(none["stages"].get("features").is_none(), "{none}");
    for arm in ARMS {
        let row = row(&rows, arm);
        assert_eq!(users(&row), users(&none), "{arm}");
        let result = &row["result"];
        assert_eq!(result["truth"], none["result"]["truth"], "{arm}");
        let truth = result["truth"]["click_auc"].as_f64().unwrap();
        assert!((0.6..0.8).contains(&truth), "the world's own chances: {truth}");
        let mean = result["looks"][0]["metrics"]["click_auc"]["mean"].as_f64().unwrap();
        assert!((mean - result["click"]["auc"].as_f64().unwrap()).abs() < 1e-9, "{arm}");
    }
    // What was made of the same answers differs where it is to differ.
    let work = folder.path().join("a");
    let [both, collaborative, permuted, truth] =
        ["both", "collaborative-neighbour", "permuted", "truth"].map(|arm| features(&work, &row(&rows, arm)));
    assert!(both.iter().all(|line| line["generated_at_ms"].as_i64() < line["point_ms"].as_i64()));
    let differ = |one: &[Value], other: &[Value], key: &str| {
        one.iter().zip(other).filter(|(one, other)| one[key] != other[key]).count()
    };
    assert_eq!((both.len(), differ(&both, &collaborative, "sparse_ids")), (collaborative.len(), 0));
    assert!(differ(&both, &collaborative, "item_ids") > 0 && differ(&both, &truth, "sparse_ids") > both.len() / 2);
    assert!(differ(&both, &permuted, "sparse_ids") > both.len() / 2);

    assert!(run().contains("both-1.json: its row is there"));
    let tables = tables_of(folder.path(), "lift", users(&none) as i64, &rows);
    assert!(tables.contains("| both | 1 | 0.") && tables.contains("| both-beats-permuted | click_auc | "), "{tables}");
    assert!(tables.contains("nothing is decided") && tables.contains("no rows yet"), "{tables}");
}

/// A log that says what was bought but not what was shown, by a recipe that says only in what it differs.
#[test]
fn purchases_after_a_day_are_ranked_beside_drawn_items_by_what_lay_before_it() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    small(folder.path());
    let recipe = folder.path().join("log.toml");
    let text = r#"
        name = "log"
        epoch = 1
        base = { recipe = "lift.toml", arms = ["none", "both"] }
        [experiment]
        name = "log"
        [[stage]]
        name = "data"
        kind = "synth"
        world = "reason"
        users = 60
        seed = 1
        [[stage]]
        name = "world"
        kind = "before"
        from = ["data"]
        share = 0.6
        [[stage]]
        name = "ranked"
        kind = "sampled-labels"
        from = ["data"]
        share = 0.6
        negatives = 4
        days = 365
        [[stage]]
        name = "ranker"
        catalogue_points = 12
    "#;
    std::fs::write(&recipe, text).unwrap();
    let (rows, work) = (folder.path().join("rows"), folder.path().join("a"));
    let told = run_in(&recipe, &work, &["--jobs", "2", "--rows", rows.to_str().unwrap()]).expect_code(0).stderr;
    let both = row(&rows, "both");
    let read = |stage: &str, kind: &str, file: &str| -> Vec<Value> {
        let path = work.join("work").join(format!("{kind}-{}", both["stages"][stage].as_str().unwrap())).join(file);
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let time = |line: &Value| line["ts_ms"].as_i64().unwrap();
    let (before, labels) = (read("world", "before", "events.jsonl"), read("ranked", "sampled-labels", "labels.jsonl"));
    let (last, first) = (before.iter().map(time).max().unwrap(), labels.iter().map(time).min().unwrap());
    assert!(last < first, "{last} {first}");
    let bought = labels.iter().filter(|label| label["clicked"] == true).count();
    assert_eq!(labels.len(), bought * 5, "{told}");
    let metrics = &both["result"]["looks"][0]["metrics"];
    let mean = |metric: &str| metrics[metric]["mean"].as_f64().unwrap();
    assert!(mean("ndcg_10_catalogue") <= mean("ndcg_10_shown") && mean("ndcg_10_shown") <= 1.0, "{metrics}");
    assert!(both["result"]["truth"].is_null() && both["seconds"]["ranker"].as_f64().unwrap() > 0.0, "{both}");
}

/// Users watch the videos of one of two authors, ten days long, and are shown those of both: click and neighbour follow the author.
fn short_videos(folder: &Path) -> [String; 4] {
    let start_ms = 1_650_844_800_000i64;
    let [mut impressions, mut histories, mut users, mut videos] = [
        "user\tvideo\ttime_ms\tclick\tlike\tcomment\tforward\thate\tlong_view\n",
        "user\tlast_time_ms\twatched\tlong_watched\tliked\n",
        "user_id\tuser_active_degree\n",
        "video_id\tauthor_id\ttag\n",
    ]
    .map(str::to_owned);
    for video in 0..40 {
        videos += &format!("{video}\t{}\t{}\n", video % 2, video % 5);
    }
    for user in 0..50i64 {
        users += &format!("{user}\tfull_active\n");
        let own = |place: i64| (2 * ((user * 3 + place * 7) % 20)) + user % 2;
        let watched: Vec<String> = (0..8).map(|place| own(place).to_string()).collect();
        histories += &format!("{user}\t{}\t{}\t{}\t\n", start_ms - 60_000, watched.join(" "), watched[0]);
        for place in 0..20 {
            let video = (own(place + 8) + place % 2) % 40;
            let click = i64::from(video % 2 == user % 2);
            let time_ms = start_ms + (place / 2) * 86_400_000 + (place % 2) * 60_000 + user;
            impressions += &format!("{user}\t{video}\t{time_ms}\t{click}\t0\t0\t0\t0\t{}\n", click * (place / 2 % 2));
        }
    }
    let files = [("impressions", impressions), ("histories", histories), ("users", users), ("videos", videos)];
    files.map(|(name, text)| {
        let path = folder.join(format!("{name}.tsv"));
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    })
}

#[test]
fn what_was_shown_without_texts_is_ranked_with_the_sequence_of_who_watched_alike() {
    let folder = tempfile::tempdir().unwrap();
    let [impressions, histories, users, videos] = short_videos(folder.path());
    let data = folder.path().join("data").display().to_string();
    let import = ["import", "kuairand", "--impressions", &impressions, "--histories", &histories, "--users", &users];
    let more = ["--videos", &videos, "--points", "400", "--out", &data];
    let told = run_with(&TRAINER, &[&import[..], &more].concat(), &[]).expect_code(0).stdout;
    assert!(told.contains("50 users") && told.contains("800 labels on 400 of 500 days"), "{told}");

    let whole = std::fs::read_to_string(in_repository("models/lift-kuairand.toml")).unwrap();
    let mut recipe: toml::Table = whole.parse().unwrap();
    set(&mut recipe, "world", "until_ms = 1650844800000");
    set(&mut recipe, "collaborative", "dim = 8");
    set(&mut recipe, "ranker", "catalogue_points = 20");
    recipe["experiment"]["seeds"] = toml::Value::from(vec![1]);
    recipe["arms"].as_table_mut().unwrap().retain(|arm, _| ["none", "cross", "cross-random"].contains(&arm));
    let path = folder.path().join("lift-kuairand.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let (rows, work) = (folder.path().join("rows"), folder.path().join("a"));
    let more = ["--data", data.as_str(), "--jobs", "2", "--rows", rows.to_str().unwrap()];
    run_in(&path, &work, &more).expect_code(0);
    let authors = |arm: &str| {
        let lines = features(&work, &row(&rows, arm));
        assert!(lines.iter().all(|line| line.get("sparse_ids").is_none()), "{arm}: nothing was embedded");
        let of = |line: &Value| {
            let shown = line["item_ids"].as_array().unwrap().iter();
            let video = |id: &Value| id.as_str().unwrap().parse::<u64>().unwrap();
            let user: u64 = line["user_id"].as_str().unwrap().parse().unwrap();
            shown.map(|id| video(id) % 2 == user % 2).collect::<Vec<_>>()
        };
        let alike: Vec<bool> = lines.iter().flat_map(of).collect();
        alike.iter().filter(|alike| **alike).count() as f64 / alike.len() as f64
    };
    assert!(
        authors("cross") > 0.99 && authors("cross-random") < 0.7,
        "{} {}",
        authors("cross"),
        authors("cross-random")
    );
    assert!(row(&rows, "cross")["result"]["looks"][0]["metrics"]["ndcg_10_catalogue"]["users"].as_u64().unwrap() > 0);

    set(&mut recipe, "features", "neighbour = \"vector\"");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    let refused = run_in(&path, &work, &[&more[..], &["--arm", "cross"]].concat()).expect_code(69).stderr;
    assert!(refused.contains("neighbour vector needs texts"), "{refused}");
}

#[test]
fn features_given_twice_and_a_share_above_one_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    let whole: toml::Table = std::fs::read_to_string(&recipe).unwrap().parse().unwrap();
    for (stage, setting, expected) in [
        ("features", "truth = 1.5", "truth"),
        ("backfill", "generations = 0", "generations must be positive"),
        ("ranker", "use = [\"scid\"]", "use"),
    ] {
        let mut wrong = whole.clone();
        set(&mut wrong, stage, setting);
        std::fs::write(&recipe, toml::to_string(&wrong).unwrap()).unwrap();
        let path = recipe.display().to_string();
        let ended = run_with(&TRAINER, &["plan", "--recipe", &path], &[]).expect_code(64);
        assert!(ended.stderr.contains(stage) && ended.stderr.contains(expected), "{}", ended.stderr);
    }
}
