//! `taiji-trainer`: synth, import, export.

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use std::path::Path;
use taiji::event::Event;
use testkit::TRAINER;
use testkit::in_repository;
use testkit::process::synth_files;
use testkit::process::{output_of, run_with};

const INTERACTIONS: &str = "user\titem\tpos\tts\trating\n\
    1\t10\t0\t1500000000\t5.0\n\
    1\t11\t1\t1500000000\t4.0\n\
    1\t12\t2\t1500000100\t\n\
    2\t10\t0\t\t3.0\n\
    2\t11\t1\t1500000000\t3.0\n";
const ITEMS: &str = "{\"item\":10,\"title\":\"Oak guitar stand\",\"brand\":\"Veldt\",\"categories\":[\"Music\",\"Stands\"]}\n\
    {\"item\":11,\"title\":\"Nylon strings\",\"brand\":null,\"categories\":[\"Music\"]}\n\
    {\"item\":12,\"title\":\"\",\"keywords\":\"\"}\n";

fn read_events(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).expect("events");
    text.lines().map(|line| serde_json::from_str(line).expect("event")).collect()
}

fn files(folder: &Path) -> [Vec<u8>; 3] {
    ["items.jsonl", "users.jsonl", "events.jsonl"].map(|name| std::fs::read(folder.join(name)).expect(name))
}

fn import(interactions: &Path, items: &Path, out: &Path) -> testkit::process::Ended {
    let [interactions, items, out] = [interactions, items, out].map(|path| path.display().to_string());
    run_with(&TRAINER, &["import", "amazon", "--interactions", &interactions, "--items", &items, "--out", &out], &[])
}

fn zip(path: &Path, text: &str) {
    let mut encoder = GzEncoder::new(std::fs::File::create(path).expect("create"), Compression::fast());
    encoder.write_all(text.as_bytes()).expect("write");
    encoder.finish().expect("finish");
}

#[test]
fn the_same_seeds_make_the_same_bytes_and_another_seed_other_users_of_the_same_items() {
    let folder = tempfile::tempdir().expect("tempdir");
    let [one, again, other] = ["one", "again", "other"].map(|name| folder.path().join(name));
    synth_files(&one, 30, 11);
    synth_files(&again, 30, 11);
    synth_files(&other, 30, 12);
    let (one, again, other) = (files(&one), files(&again), files(&other));
    assert!(one == again, "two runs differ");
    assert!(one[0] == other[0], "items must not depend on --seed");
    assert!(one[1] != other[1] && one[2] != other[2], "users must depend on --seed");
}

#[test]
fn the_world_reason_is_written_with_labels_and_refuses_a_size_of_its_shelf() {
    let folder = tempfile::tempdir().expect("tempdir");
    let out = folder.path().display().to_string();
    let synth = ["synth", "--world", "reason", "--users", "20", "--out", out.as_str()];
    let told = run_with(&TRAINER, &synth, &[]).expect_code(0);
    assert!(told.stdout.contains("1980 items, 20 users"), "{}", told.stdout);
    let labels = std::fs::read_to_string(folder.path().join("labels.jsonl")).expect("labels");
    let impressions = read_events(&folder.path().join("events.jsonl"));
    assert_eq!(labels.lines().count(), impressions.iter().filter(|event| event.action == "impression").count());
    for option in ["--items", "--events"] {
        let refused = run_with(&TRAINER, &[&synth[..], &[option, "100"]].concat(), &[]).expect_code(64);
        assert!(refused.stderr.contains(option), "{}", refused.stderr);
    }
}

#[test]
fn an_amazon_file_plain_or_zipped_becomes_events_in_the_order_of_pos() {
    let folder = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("i.tsv"), INTERACTIONS).expect("write");
    std::fs::write(at("items.jsonl"), ITEMS).expect("write");
    zip(&at("i.tsv.gz"), INTERACTIONS);
    zip(&at("items.jsonl.gz"), ITEMS);
    let told = import(&at("i.tsv"), &at("items.jsonl"), &at("plain")).expect_code(0);
    import(&at("i.tsv.gz"), &at("items.jsonl.gz"), &at("zipped")).expect_code(0);
    assert!(files(&at("plain")) == files(&at("zipped")));
    assert!(told.stdout.contains("2 users") && told.stdout.contains("5 events"), "{}", told.stdout);

    let events = read_events(&at("plain/events.jsonl"));
    let of = |user: &str| -> Vec<(i64, String)> {
        let own = events.iter().filter(|event| event.user_id == user);
        own.map(|event| (event.ts_ms, event.item_id.clone().expect("item"))).collect()
    };
    let first = 1_500_000_000_000;
    assert_eq!(of("1"), [(first, "10".into()), (first + 1, "11".into()), (first + 100_000, "12".into())]);
    // One time is missing: the whole user counts days from 2018-01-01.
    let start = 1_514_764_800_000;
    assert_eq!(of("2"), [(start, "10".into()), (start + 86_400_000, "11".into())]);
    assert!(events.iter().all(|event| event.action == "purchase"));
}

#[test]
fn a_malformed_line_is_named_by_file_and_number() {
    let folder = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("items.jsonl"), ITEMS).expect("write");
    for (bad, part) in [
        ("1\t10\t0", "columns"),
        ("x\t10\t0\t1500000000\t5", "user"),
        ("1\t10\t0\tyesterday\t5", "ts"),
        ("1\t10\t0\t1500000000\tgood", "rating"),
    ] {
        std::fs::write(at("bad.tsv"), format!("user\titem\tpos\tts\trating\n{bad}\n")).expect("write");
        let told = import(&at("bad.tsv"), &at("items.jsonl"), &at("out")).expect_code(69).stderr;
        assert!(told.contains("bad.tsv") && told.contains("line 2") && told.contains(part), "{told}");
    }
    std::fs::write(at("good.tsv"), INTERACTIONS).expect("write");
    std::fs::write(at("bad.jsonl"), "{\"item\":10,\"title\":\"a\"}\n{oops\n").expect("write");
    let told = import(&at("good.tsv"), &at("bad.jsonl"), &at("out")).expect_code(69).stderr;
    assert!(told.contains("bad.jsonl") && told.contains("line 2"), "{told}");
    let told = import(&at("nowhere.tsv"), &at("items.jsonl"), &at("out")).expect_code(69).stderr;
    assert!(told.contains("nowhere.tsv"), "{told}");
}

#[test]
fn export_writes_graphs_and_says_what_does_not_go_together() {
    let folder = tempfile::tempdir().expect("tempdir");
    for fixture in ["qwen2", "qwen2-tied", "qwen3-tied", "bert"] {
        let checkpoint = in_repository("tests/fixtures").join(fixture).display().to_string();
        let out = folder.path().join(fixture);
        let shown = out.display().to_string();
        output_of(&TRAINER, &["export", "--checkpoint", &checkpoint, "--out", &shown]);
        for file in ["graph.onnx", "graph.onnx.data", "tokenizer.json"] {
            assert!(out.join(file).metadata().expect(file).len() > 0, "{fixture}/{file}");
        }
    }
    let checkpoint = in_repository("tests/fixtures/qwen3-tied").display().to_string();
    let out = folder.path().join("many");
    let shown = out.display().to_string();
    let export = ["export", "--checkpoint", &checkpoint, "--out", &shown];
    output_of(&TRAINER, &[&export[..], &["--precision", "int4", "--flavour", "gqa,tree,std"]].concat());
    for file in ["graph.onnx", "graph.tree.onnx", "graph.std.onnx", "graph.onnx.data"] {
        assert!(out.join(file).metadata().expect(file).len() > 0, "{file}");
    }
    for (refused, reason) in [
        (["--flavour", "paged"], "f16 and bf16 only"),
        (["--flavour", "gqa,gqa"], "named twice"),
        (["--flavour", "gqa,other"], "possible values"),
    ] {
        let told = run_with(&TRAINER, &[&export[..], &refused].concat(), &[]).expect_code(64).stderr;
        assert!(told.contains(reason), "{told}");
    }
    let nowhere = folder.path().join("nowhere").display().to_string();
    let told = run_with(&TRAINER, &["export", "--checkpoint", &nowhere, "--out", &nowhere], &[]).expect_code(69).stderr;
    assert!(told.contains("nowhere"), "{told}");
}

#[test]
fn every_command_of_the_trainer_has_help_with_an_example() {
    for name in ["synth", "import", "export", "plan", "run", "evaluate", "declared"] {
        let help = output_of(&TRAINER, &[name, "--help"]);
        assert!(help.contains("Example") && help.contains(&format!("taiji-trainer {name}")), "{help}");
    }
    run_with(&TRAINER, &["synth"], &[]).expect_code(64);
    let told = run_with(&TRAINER, &["run", "--recipe", "x", "--device", "cuda"], &[]).expect_code(64).stderr;
    assert!(told.contains("--features cuda"), "{told}");
    let told = run_with(&TRAINER, &["run", "--recipe", "x", "--device", "tpu"], &[]).expect_code(64).stderr;
    assert!(told.contains("plain"), "{told}");
}
