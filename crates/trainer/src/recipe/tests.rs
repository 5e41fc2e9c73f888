//! Recipes: what is refused and how it is said, order and hashes, arms, plans, the form of before.

use super::graph::Graph;
use super::run::{chosen, graphs};
use super::{Choice, Given, Options, Recipe, RunError, plan, run};
use crate::progress::Console;
use crate::stage::{Work, check_files};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A world, and examples of it: stages that take no time and need no model.
const SMALL: &str = r#"
name = "small"
epoch = 1

[[stage]]
name = "examples"
kind = "examples"
from = ["world"]
max_per_user = 2
vocab = 400
codebook_texts = 60

[stage.prompt]
id = "small-1"
max_engagements = 10
max_queries = 3
max_title_chars = 48
max_prompt_tokens = 320
max_new_tokens = 96
sensitive_attributes = []

[[stage]]
name = "world"
kind = "synth"
users = 6
items = 30
events = 300
seed = 1
"#;

fn written(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("small.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn graph(path: &Path, given: &Given) -> Result<Graph, RunError> {
    let recipe = Recipe::read(path)?;
    Ok(graphs(&recipe, given, &Choice::default())?.remove(0).1)
}

fn hash(graph: &Graph, stage: &str) -> String {
    graph.nodes[graph.place(stage).unwrap()].hash.clone()
}

fn options(folder: &Path, choice: Choice) -> Options {
    let work = Work::new(folder.join("work"), false);
    let (out, rows) = (Some(folder.join("models")), Some(folder.join("rows")));
    let console = Console::lines(Box::new(std::io::sink()));
    Options { given: Given::default(), choice, out, rows, jobs: 1, work, console }
}

#[test]
fn what_cannot_be_is_refused_by_file_stage_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let world = "name = \"world\"\nkind = \"synth\"";
    let sft = "\n[[stage]]\nname = \"sft\"\nkind = \"sft\"\n";
    for (from, to, parts) in [
        ("users = 6", "users = 6\ncolour = 1", &["stage world", "colour"][..]),
        ("users = 6", "users = 6\nworld = \"reason\"", &["stage world", "items", "leave it out"]),
        ("users = 6", "users = \"many\"", &["stage world", "users"]),
        ("max_queries = 3", "max_queries = 300", &["stage examples", "max_queries"]),
        ("kind = \"synth\"", "kind = \"sinth\"", &["stage world", "kind", "sinth", "publish"]),
        ("from = [\"world\"]", "from = [\"moon\"]", &["stage examples", "from", "moon"]),
        ("from = [\"world\"]", "from = 3", &["stage examples", "from", "list"]),
        ("from = [\"world\"]", "", &["stage examples", "from", "lacks", "data"]),
        (world, "name = \"world\"\nkind = \"synth\"\nfrom = [\"examples\"]", &["from", "stand on each other", "world"]),
        (world, "name = \"world\"\nkind = \"synth\"\nfrom = [\"world\"]", &["stage world", "world from world"]),
        (world, "name = \"examples\"\nkind = \"synth\"", &["stage examples", "two stages"]),
        (world, "name = \"a/b\"\nkind = \"synth\"", &["a/b"]),
        (world, "kind = \"synth\"", &["number 2", "name", "missing"]),
        (
            "seed = 1",
            &format!("seed = 1{sft}from = [\"world\"]"),
            &["stage sft", "from", "world makes data", "takes examples"],
        ),
        ("seed = 1", &format!("seed = 1{sft}from = [\"examples\"]\nvocab = 9"), &["stage sft", "vocab"]),
        ("seed = 1", &format!("seed = 1{sft}from = [\"examples\"]\nlr = -1.0"), &["stage sft", "lr"]),
        (
            "seed = 1",
            "seed = 1\n[[stage]]\nname = \"c\"\nkind = \"checkpoint\"\npath = \"nowhere\"",
            &["stage c", "path", "nowhere"],
        ),
        ("seed = 1", "seed = 1\n[[stage]]\nname = \"f\"\nkind = \"files\"", &["stage f", "path", "--data"]),
        ("epoch = 1", "epoch = 1\nepochs = 1", &["epochs"]),
        ("epoch = 1", "epoch = 1\n[arms.a.world]\nusers = 7", &["experiment"]),
        ("seed = 1", "seed = 1\n[arms.a.moon]\nusers = 7", &["arms.a.moon"]),
    ] {
        assert!(SMALL.contains(from), "{from}");
        let path = written(folder.path(), &SMALL.replace(from, to));
        let error = graph(&path, &Given::default()).err().unwrap_or_else(|| panic!("{to} is accepted"));
        let told = error.to_string();
        assert!(error.is_usage() && told.contains("small.toml"), "{told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{parts:?} in {told}");
    }
}

#[test]
fn parents_come_first_and_names_do_not_count_but_settings_and_parents_do() {
    let folder = tempfile::tempdir().unwrap();
    let made = |text: &str| graph(&written(folder.path(), text), &Given::default()).unwrap();
    let plain = made(SMALL);
    assert_eq!(plain.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["world", "examples"]);
    let renamed = made(&SMALL.replace("\"world\"", "\"earth\"").replace("name = \"small\"", "name = \"other\""));
    assert_eq!(hash(&renamed, "examples"), hash(&plain, "examples"));
    let below = made(&SMALL.replace("max_per_user = 2", "max_per_user = 3"));
    assert_eq!(hash(&below, "world"), hash(&plain, "world"));
    assert_ne!(hash(&below, "examples"), hash(&plain, "examples"));
    let above = made(&SMALL.replace("users = 6", "users = 7"));
    assert_ne!(hash(&above, "examples"), hash(&plain, "examples"));
    // A default that is spelt out is the same setting.
    let spelt = made(&SMALL.replace("max_per_user = 2", "max_per_user = 2\nvalidation_examples = 256"));
    assert_eq!(hash(&spelt, "examples"), hash(&plain, "examples"));
}

#[test]
fn profiles_of_users_are_input_files_like_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let text = SMALL.replace(
        "kind = \"synth\"\nusers = 6\nitems = 30\nevents = 300\nseed = 1",
        "kind = \"files\"\npath = \"data\"",
    );
    let path = written(folder.path(), &text);
    let missing = graph(&path, &Given::default()).err().unwrap().to_string();
    assert!(missing.contains("stage world") && missing.contains("items.jsonl"), "{missing}");
    std::fs::create_dir(folder.path().join("data")).unwrap();
    let mut hashes = BTreeSet::new();
    for (name, line) in [
        ("items.jsonl", "{\"id\":\"1\",\"title\":\"a\"}\n"),
        ("events.jsonl", ""),
        ("users.jsonl", "{\"user_id\":\"u\",\"profile\":{\"city\":\"Oslo\"}}\n"),
        ("users.jsonl", "{\"user_id\":\"u\",\"profile\":{\"city\":\"Rome\"}}\n"),
    ] {
        std::fs::write(folder.path().join("data").join(name), line).unwrap();
        if let Ok(graph) = graph(&path, &Given::default()) {
            hashes.insert(hash(&graph, "examples"));
        }
    }
    assert_eq!(hashes.len(), 3, "without users, with them, with changed ones");

    let graph = graph(&path, &Given::default()).unwrap();
    let node = &graph.nodes[graph.place("world").unwrap()];
    check_files(&*node.stage, &node.fingerprint).unwrap();
    std::fs::write(folder.path().join("data/users.jsonl"), "").unwrap();
    let told = check_files(&*node.stage, &node.fingerprint).unwrap_err().to_string();
    assert!(told.contains("users.jsonl") && told.contains("changed while"), "{told}");
}

#[test]
fn one_seed_reaches_every_stage_that_has_one_and_a_named_one_only_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let two = format!(
        "{SMALL}\n[[stage]]\nname = \"held-out\"\nkind = \"synth\"\nusers = 6\nitems = 30\nevents = 300\nseed = 1\n"
    );
    let path = written(folder.path(), &two);
    let plain = graph(&path, &Given::default()).unwrap();
    let all = graph(&path, &Given { seed: Some(3), ..Given::default() }).unwrap();
    for stage in ["world", "examples", "held-out"] {
        assert_ne!(hash(&all, stage), hash(&plain, stage), "{stage}");
    }
    assert_eq!(hash(&plain, "world"), hash(&plain, "held-out"));
    assert_ne!(hash(&all, "world"), hash(&all, "held-out"), "held-out users must not be those of training");
    let seeds = [("held-out".to_string(), 9)].into();
    let one = graph(&path, &Given { seeds, ..Given::default() }).unwrap();
    assert_eq!(hash(&one, "world"), hash(&plain, "world"));
    assert_ne!(hash(&one, "held-out"), hash(&plain, "held-out"));
    let seeds = [("moon".to_string(), 9)].into();
    let told = graph(&path, &Given { seeds, ..Given::default() }).err().unwrap().to_string();
    assert!(told.contains("moon") && told.contains("--seed"), "{told}");
}

#[test]
fn a_plan_says_why_and_a_run_makes_it_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), Choice::default());
    let planned = |path: &Path| -> Vec<Option<String>> {
        let lines = plan(path, &options.given, &options.choice, &options.work).unwrap();
        lines.into_iter().map(|line| line.why).collect()
    };
    let told = |text: &str| planned(&written(folder.path(), text));
    let some = |why: &str| Some(why.to_string());
    assert_eq!(told(SMALL), [some("new"), some("new")]);
    assert!(!options.work.root().exists(), "a plan writes nothing");
    let path = written(folder.path(), SMALL);
    run(&path, &options).unwrap();
    assert_eq!(told(SMALL), [None, None]);
    let below = SMALL.replace("max_per_user = 2", "max_per_user = 1").replace("vocab = 400", "vocab = 390");
    assert_eq!(told(&below), [None, some("settings changed (max_per_user, vocab)")]);
    let above = SMALL.replace("users = 6", "users = 7");
    assert_eq!(told(&above), [some("settings changed (users)"), some("input changed (data)")]);
    let folder_of = |stage: &str| {
        let graph = graph(&path, &Given::default()).unwrap();
        options.work.folder(&graph.nodes[graph.place(stage).unwrap()].fingerprint)
    };
    let _ = written(folder.path(), SMALL);
    std::fs::remove_dir_all(folder_of("examples")).unwrap();
    assert_eq!(told(SMALL), [None, some("its folder was removed")]);
}

#[test]
fn parts_of_a_graph_run_alone_where_what_they_stand_on_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), SMALL);
    let part = |set: &dyn Fn(&mut Choice)| {
        let mut choice = Choice::default();
        set(&mut choice);
        run(&path, &options(folder.path(), choice))
    };
    let told = part(&|choice| choice.only = Some("examples".into())).unwrap_err().to_string();
    assert!(told.contains("world") && told.contains("not made yet"), "{told}");
    let told = part(&|choice| choice.until = Some("moon".into())).unwrap_err();
    assert!(told.is_usage() && told.to_string().contains("--until moon"), "{told}");
    part(&|choice| choice.until = Some("world".into())).unwrap();
    let work = options(folder.path(), Choice::default()).work;
    let states = || {
        let graph = graph(&path, &Given::default()).unwrap();
        graph.nodes.iter().map(|node| work.folder(&node.fingerprint).exists()).collect::<Vec<_>>()
    };
    assert_eq!(states(), [true, false]);
    part(&|choice| choice.from = Some("examples".into())).unwrap();
    assert_eq!(states(), [true, true]);
    let recipe = Recipe::read(&path).unwrap();
    let graph = graph(&path, &Given::default()).unwrap();
    let choice = Choice { from: Some("world".into()), until: Some("world".into()), ..Choice::default() };
    assert_eq!(chosen(&recipe, &graph, &choice).unwrap(), [true, false]);
    let before = Choice { before: Some("examples".into()), ..Choice::default() };
    assert_eq!(chosen(&recipe, &graph, &before).unwrap(), [true, false]);
}

#[test]
fn arms_and_seeds_share_what_they_do_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let demo = std::fs::read_to_string(testkit::in_repository("models/demo.toml")).unwrap();
    let arms = "[experiment]\nname = \"trial\"\nseeds = [1, 2]\nseeded = [\"sft\"]\nresult = \"judge\"\n\n[arms.plain]\n\n\
        [arms.wide.sft]\nffn = 512\n\n[arms.short.examples]\nprompt = { max_engagements = 5 }\n";
    let path = written(folder.path(), &format!("{demo}\n{arms}"));
    let recipe = Recipe::read(&path).unwrap();
    let all = graphs(&recipe, &Given::default(), &Choice::default()).unwrap();
    let labels: Vec<String> = all.iter().map(|(variant, _)| variant.label()).collect();
    assert_eq!(labels, ["plain-1/", "plain-2/", "short-1/", "short-2/", "wide-1/", "wide-2/"]);
    let distinct = |stage: &str| all.iter().map(|(_, graph)| hash(graph, stage)).collect::<BTreeSet<_>>().len();
    assert_eq!([distinct("world"), distinct("encoder"), distinct("held-out")], [1, 1, 1]);
    assert_eq!([distinct("examples"), distinct("codebook"), distinct("sft"), distinct("judge")], [2, 2, 6, 6]);
    let takes = chosen(&recipe, &all[0].1, &Choice::default()).unwrap();
    assert!(!takes[all[0].1.place("bundle").unwrap()], "what the row does not need is not run");
    let arm = |name: &str| Choice { arms: vec![name.into()], ..Choice::default() };
    assert_eq!(graphs(&recipe, &Given::default(), &arm("plain")).unwrap().len(), 2);
    assert!(graphs(&recipe, &Given::default(), &arm("none")).err().unwrap().to_string().contains("none"));
    for (from, to, part) in [
        ("seeds = [1, 2]", "seeds = []", "experiment.seeds"),
        ("seeded = [\"sft\"]", "seeded = [\"moon\"]", "experiment.seeded"),
        ("result = \"judge\"", "result = \"moon\"", "experiment.result"),
        ("result = \"judge\"", "result = \"index\"", "index makes generation"),
        ("ffn = 512", "kind = \"export\"", "kind"),
        ("ffn = 512", "from = [\"encoder\"]", "encoder makes encoder"),
        ("[arms.plain]", "[arms.\"a/b\"]", "a/b"),
    ] {
        let path = written(folder.path(), &format!("{demo}\n{}", arms.replace(from, to)));
        let told = graph(&path, &Given::default()).err().unwrap().to_string();
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn runs_of_a_seed_share_what_the_seed_decides() {
    let folder = tempfile::tempdir().unwrap();
    let demo = std::fs::read_to_string(testkit::in_repository("models/demo.toml")).unwrap();
    let arms = "[experiment]\nname = \"trial\"\nseeds = [1, 2]\nseeded = [\"sft\"]\nruns = 2\nrun_seeded = [\"codebook\"]\n\
        result = \"judge\"\n\n[arms.plain]\n";
    let path = written(folder.path(), &format!("{demo}\n{arms}"));
    let all = graphs(&Recipe::read(&path).unwrap(), &Given::default(), &Choice::default()).unwrap();
    let labels: Vec<String> = all.iter().map(|(variant, _)| variant.label()).collect();
    assert_eq!(labels, ["plain-1.1/", "plain-1.2/", "plain-2.1/", "plain-2.2/"]);
    let distinct = |stage: &str| all.iter().map(|(_, graph)| hash(graph, stage)).collect::<BTreeSet<_>>().len();
    assert_eq!([distinct("world"), distinct("sft"), distinct("codebook"), distinct("judge")], [1, 2, 4, 4]);
    for (from, to, part) in [
        ("runs = 2\n", "", "runs and run_seeded"),
        ("run_seeded = [\"codebook\"]\n", "", "runs and run_seeded"),
        ("[\"codebook\"]", "[\"moon\"]", "experiment.run_seeded: there is no stage moon"),
        ("[\"codebook\"]", "[\"sft\"]", "sft stands in seeded, too"),
    ] {
        let path = written(folder.path(), &format!("{demo}\n{}", arms.replace(from, to)));
        let told = graph(&path, &Given::default()).err().unwrap().to_string();
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn recipes_of_the_form_before_are_refused_with_the_same_in_the_form_of_now() {
    let folder = tempfile::tempdir().unwrap();
    // Real data are read for the hash; their content does not matter here.
    for name in ["items.jsonl", "events.jsonl"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let given = Given { data: Some(folder.path().to_path_buf()), ..Given::default() };
    let in_tests = |name: &str| testkit::in_repository(&format!("crates/trainer/src/recipe/fixtures/{name}"));
    for (old, now) in [
        (include_str!("fixtures/demo-before-stages.toml"), in_tests("demo-with-stages.toml")),
        (include_str!("fixtures/real-before-stages.toml"), testkit::in_repository("models/real.toml")),
    ] {
        let error = graph(&written(folder.path(), old), &given).err().unwrap();
        assert!(error.is_usage());
        let told = error.to_string();
        let (_, new) = told.split_once("\n\n").unwrap();
        let converted = graph(&written(folder.path(), new), &given).unwrap();
        let committed = graph(&now, &given).unwrap();
        assert_eq!(hash(&converted, "bundle"), hash(&committed, "bundle"), "{new}");
    }
}
