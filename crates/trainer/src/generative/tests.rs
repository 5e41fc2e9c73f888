//! Windows and split, batches, resuming, a tiny world learned through the graph, and the engine beside the decoder.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::sequences::window_starts;
use super::training::plan_epoch;
use super::*;
use crate::data::{Dataset, import_amazon};
use crate::fit::TrainEvent;
use crate::model::{Decoder, TrainBatch, load_checkpoint};
use crate::progress::{Console, Progress};
use crate::recipe::{self, Choice, Given, Options};
use crate::semantic_ids::{CodeTable, tokenizer_json};
use crate::sft::TextTokenizer;
use crate::sft::packing::TokenExample;
use crate::stage::Work;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use taiji::event::ActionTable;
use taiji::llm::GENERATION_FILE;
use taiji_export::{ExportOptions, Flavour, export};

/// Items of the tiny world: each is followed by the same one always.
const ITEMS: usize = 40;

/// Three levels of four codes; the last two items share theirs.
fn codes() -> String {
    let line = |item: usize| {
        let code = item.min(ITEMS - 2) * 29 % 64;
        format!("i{item}\t{}\t{}\t{}\n", code / 16, code / 4 % 4, code % 4)
    };
    (0..ITEMS).map(line).collect()
}

fn table(folder: &Path) -> CodeTable {
    let path = folder.join("codes.tsv");
    std::fs::write(&path, codes()).unwrap();
    CodeTable::read(&path, 4).unwrap()
}

/// Purchases of users as JSON lines, and the items that have text.
fn write_data(folder: &Path, users: &[Vec<String>]) {
    let items: String =
        (0..ITEMS).map(|item| json!({"id": format!("i{item}"), "title": "t"}).to_string() + "\n").collect();
    let mut events = String::new();
    for (user, bought) in users.iter().enumerate() {
        for (place, item) in bought.iter().enumerate() {
            let event = json!({"event_id": format!("{user}-{place:03}"), "user_id": format!("u{user:03}"), "item_id": item,
                "action": "purchase", "ts_ms": 1_500_000_000_000i64 + place as i64});
            events.push_str(&(event.to_string() + "\n"));
        }
    }
    std::fs::write(folder.join("items.jsonl"), items).unwrap();
    std::fs::write(folder.join("events.jsonl"), events).unwrap();
}

/// Users who go round the one circle of items from different places.
fn circling(users: usize) -> Vec<Vec<String>> {
    let user = |user: usize| {
        let length = 5 + user % 17;
        (0..length).map(|place| format!("i{}", (user * 11 + place * 7) % ITEMS)).collect()
    };
    (0..users).map(user).collect()
}

fn load(folder: &Path, users: &[Vec<String>]) -> Dataset {
    write_data(folder, users);
    Dataset::load(folder, &ActionTable::default()).unwrap()
}

fn quick() -> GenerativeSettings {
    GenerativeSettings {
        d_model: 32,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        ffn: 48,
        positions: 128,
        epochs: 3,
        batch: 32,
        warmup: 3,
        log_every: 2,
        validate_every: 4,
        checkpoint_every: 2,
        ..GenerativeSettings::default()
    }
}

fn tokenizer(folder: &Path, table: &CodeTable) -> TextTokenizer {
    let path = folder.join("codes-tokenizer.json");
    std::fs::write(&path, tokenizer_json(table).unwrap()).unwrap();
    TextTokenizer::load(&path).unwrap()
}

proptest! {
    #[test]
    fn windows_cover_the_training_part_and_overlap(items in 0usize..200, history in 1usize..25, stride in 1usize..25) {
        let window = history + 1;
        prop_assume!(stride <= window);
        let starts: Vec<usize> = window_starts(items, window, stride).collect();
        prop_assert_eq!(starts.is_empty(), items == 0);
        let covered: BTreeSet<usize> = starts.iter().flat_map(|start| *start..items.min(start + window)).collect();
        prop_assert_eq!(covered, (0..items).collect::<BTreeSet<usize>>());
        for pair in starts.windows(2) {
            prop_assert!(pair[0] < pair[1] && pair[1] - pair[0] <= stride);
            prop_assert!(pair[1] + window <= items, "only whole windows follow another one");
        }
    }

    /// Each user has items of his own, so a held-out item in any window would be a leak.
    #[test]
    fn no_held_out_item_is_trained_on(lengths in prop::collection::vec(0usize..9, 1..6), history in 1usize..4) {
        let mut next = 0;
        let mut fresh = |length: usize| -> Vec<String> {
            next += length;
            (next - length..next).map(|item| format!("i{}", item)).collect()
        };
        let users: Vec<Vec<String>> = lengths.iter().map(|length| fresh(*length)).collect();
        let folder = tempfile::tempdir().unwrap();
        let lines: String = (0..next.max(1)).map(|item| format!("i{item}\t{}\t{}\n", item / 8, item % 8)).collect();
        let path = folder.path().join("own.tsv");
        std::fs::write(&path, lines).unwrap();
        let table = CodeTable::read(&path, 8).unwrap();
        let dataset = load(folder.path(), &users);
        let settings = SequenceSettings { history, stride: history, ..SequenceSettings::default() };
        let made = cut(&dataset, &table, &settings);
        if lengths.iter().all(|length| *length < 3) {
            let refused = matches!(made, Err(GenerativeError::NoSequences { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let made = made.unwrap();
        let numbers = |items: &[String]| items.iter().map(|item| table.number(item).unwrap()).collect::<Vec<_>>();
        let trained: BTreeSet<u32> = made.train.iter().flatten().copied().collect();
        let windows: BTreeSet<&Vec<u32>> = made.train.iter().collect();
        prop_assert!(made.train.iter().all(|window| window.len() <= 1 + 2 * (history + 1)));
        prop_assert_eq!(made.validation.len(), lengths.iter().filter(|length| **length > 2).count());
        prop_assert_eq!(made.test.len(), lengths.iter().filter(|length| **length > 1).count());
        let pairs: BTreeSet<(u32, u32)> = windows.iter().flat_map(|w| w[1..].chunks(2)).map(|c| (c[0], c[1])).collect();
        for case in made.validation.iter().chain(&made.test) {
            prop_assert!(!pairs.contains(&(case.answer[0], case.answer[1])), "{} is trained on", case.target);
            let newest = &case.history[case.history.len().saturating_sub(history)..];
            prop_assert_eq!(&case.prompt, &table.sequence(&numbers(newest)));
            prop_assert!(!case.history.contains(&case.target));
        }
        for (user, length) in users.iter().zip(&lengths).filter(|(_, length)| **length > 2) {
            let case = |cases: &[Case]| cases.iter().find(|case| case.history[0] == user[0]).cloned().unwrap();
            let (validation, test) = (case(&made.validation), case(&made.test));
            prop_assert_eq!((&validation.target, &test.target), (&user[length - 2], &user[length - 1]));
            prop_assert_eq!(test.history.last(), Some(&validation.target));
            prop_assert!(user[..length - 2].iter().all(|item| trained.contains(&table.sequence(&numbers(std::slice::from_ref(item)))[1])));
        }
    }

    #[test]
    fn batches_hold_every_window_once(lengths in prop::collection::vec(2usize..80, 1..300), batch in 1usize..40) {
        let windows: Vec<TokenExample> =
            lengths.iter().map(|length| TokenExample { tokens: vec![0; *length], prompt_len: 1 }).collect();
        let plan = plan_epoch(&windows, batch, 3, 0);
        prop_assert_eq!(plan.len(), lengths.len().div_ceil(batch));
        let mut all = plan.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        prop_assert_eq!(&plan, &plan_epoch(&windows, batch, 3, 0));
    }
}

#[test]
fn settings_and_data_that_cannot_be_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    for (settings, part) in [
        (GenerativeSettings { epochs: 0, ..quick() }, "epochs"),
        (GenerativeSettings { dropout: 1.0, ..quick() }, "dropout"),
        (GenerativeSettings { attention_dropout: 1.0, ..quick() }, "attention_dropout"),
        (GenerativeSettings { initializer_range: -0.1, ..quick() }, "initializer_range"),
        (GenerativeSettings { lr: 0.0, ..quick() }, "lr"),
        (GenerativeSettings { last_lr: 1.0, ..quick() }, "last_lr"),
        (GenerativeSettings { d_model: 20, ..quick() }, "heads"),
        (GenerativeSettings { patience: 2, validate_every: 0, ..quick() }, "patience"),
    ] {
        let told = settings.check().unwrap_err().to_string();
        assert!(told.contains(part), "{told}");
    }
    for (history, stride) in [(0, 1), (3, 0), (3, 5)] {
        let settings = SequenceSettings { history, stride, ..SequenceSettings::default() };
        assert!(settings.check().is_err(), "{history} {stride}");
    }
    let mut users = circling(3);
    users[1][0] = "unknown".into();
    let dataset = load(folder.path(), &users);
    let told = cut(&dataset, &table, &SequenceSettings::default()).unwrap_err().to_string();
    assert!(told.contains("unknown") && told.contains("no codes"), "{told}");
}

#[test]
fn a_killed_run_continues_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    let tokenizer = tokenizer(folder.path(), &table);
    let settings = SequenceSettings { history: 5, stride: 3, ..SequenceSettings::default() };
    let sequences = cut(&load(folder.path(), &circling(60)), &table, &settings).unwrap();
    let whole = folder.path().join("whole");
    let report = train(&quick(), &tokenizer, &sequences, &whole, &mut |_| {}).unwrap();
    assert!(report.steps > 9 && report.validation_loss.is_some());

    let killed = folder.path().join("killed");
    let attempt = std::panic::catch_unwind(|| {
        let mut die_at_five = |event: &TrainEvent| assert!(event.point.step < 5, "killed");
        train(&quick(), &tokenizer, &sequences, &killed, &mut die_at_five)
    });
    assert!(attempt.is_err() && killed.join("resume/step-4").exists());
    let single = GenerativeSettings { threads: 1, ..quick() };
    train(&single, &tokenizer, &sequences, &killed, &mut |_| {}).unwrap();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert!(bytes(&whole) == bytes(&killed), "weights differ");
}

/// Σ log-likelihood of an item's tokens behind a prompt, by the trainer's decoder.
fn decoder_score(decoder: &Decoder, prompt: &[u32], tokens: &[u32]) -> f64 {
    let mut batch = TrainBatch::default();
    batch.push_group(prompt, [tokens], 0.0).unwrap();
    decoder.log_likelihoods(&batch).unwrap().iter().sum()
}

#[test]
fn the_engines_beam_ranks_as_the_decoder_scores() {
    let folder = tempfile::tempdir().unwrap();
    let table = table(folder.path());
    let tokenizer = tokenizer(folder.path(), &table);
    let settings = SequenceSettings { history: 5, stride: 3, ..SequenceSettings::default() };
    let sequences = cut(&load(folder.path(), &circling(40)), &table, &settings).unwrap();
    let (trained, exported) = (folder.path().join("trained"), folder.path().join("exported"));
    train(&quick(), &tokenizer, &sequences, &trained, &mut |_| {}).unwrap();
    let options =
        ExportOptions { flavours: vec![Flavour::Gqa, Flavour::Tree, Flavour::Std], ..ExportOptions::default() };
    export(&trained, &exported, &options).unwrap();
    std::fs::write(exported.join(GENERATION_FILE), r#"{"stop": []}"#).unwrap();

    let decoder = load_checkpoint(&trained).unwrap();
    // So wide that nothing is cut off: all sequences come back in the order of their scores.
    let recommender = Recommender::open(&exported, &table, &[0.0; ITEMS], ITEMS, 16, 1).unwrap();
    let prompts: Vec<&[u32]> = sequences.test[..6].iter().map(|case| case.prompt.as_slice()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let found = runtime.block_on(recommender.search(&prompts)).unwrap();
    for (prompt, beams) in prompts.iter().zip(&found) {
        assert_eq!(beams.len(), ITEMS - table.collisions());
        let mut best = f64::INFINITY;
        for beam in beams {
            let own = decoder_score(&decoder, prompt, &beam.tokens);
            assert!((own - beam.score).abs() < 1e-3, "decoder {own}, engine {}", beam.score);
            assert!(own < best + 2e-3, "{own} behind {best}");
            best = own;
        }
        let items = recommender.items(beams);
        assert_eq!(items.iter().collect::<BTreeSet<_>>().len(), ITEMS, "those that share codes, too");
    }
    assert_eq!(recommender.lists(&prompts, &Progress::default()).unwrap()[0], recommender.items(&found[0]));
}

fn tiny_recipe(folder: &Path) -> PathBuf {
    let text = r#"
        name = "tiny"
        epoch = 1
        experiment = { name = "tiny", seeds = [3], seeded = ["decoder"], result = "judge" }
        arms.plain = {}
        [[stage]]
        name = "data"
        kind = "files"
        [[stage]]
        name = "codes"
        kind = "code-table"
        path = "codes.tsv"
        codebook_size = 4
        [[stage]]
        name = "sequences"
        kind = "sequences"
        from = ["data", "codes"]
        history = 5
        stride = 3
        [[stage]]
        name = "decoder"
        kind = "generative"
        from = ["sequences"]
        d_model = 32
        layers = 2
        heads = 2
        kv_heads = 2
        ffn = 64
        positions = 128
        epochs = 120
        batch = 32
        lr = 5e-3
        last_lr = 1e-4
        warmup = 20
        dropout = 0.0
        label_smoothing = 0.0
        threads = 1
        [[stage]]
        name = "llm"
        kind = "export"
        from = ["decoder"]
        flavour = ["gqa", "tree", "std"]
        stop = []
        [[stage]]
        name = "judge"
        kind = "generative-judge"
        from = ["data", "codes", "sequences", "llm"]
        width = 4
    "#;
    let path = folder.join("tiny.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn options(data: &Path, folder: &Path) -> Options {
    Options {
        given: Given { data: Some(data.to_path_buf()), ..Given::default() },
        choice: Choice::default(),
        out: Some(folder.join("out")),
        rows: Some(folder.join("rows")),
        jobs: 1,
        work: Work::new(folder.join("work"), false),
        console: Console::stderr(),
    }
}

/// The last item of everybody follows from the one before, so a model that has learned the circle finds it.
#[test]
fn a_tiny_world_is_learned_through_the_graph_and_the_beam_finds_its_items() {
    let folder = tempfile::tempdir().unwrap();
    write_data(folder.path(), &circling(60));
    table(folder.path());
    let made = recipe::run(&tiny_recipe(folder.path()), &options(folder.path(), folder.path())).unwrap();
    let row = made.iter().find(|path| path.ends_with("rows/plain-3.json")).unwrap();
    let row: Value = serde_json::from_slice(&std::fs::read(row).unwrap()).unwrap();
    let judged: Judged = serde_json::from_value(row["result"].clone()).unwrap();
    assert_eq!((judged.items, judged.collisions, judged.splits.len()), (ITEMS, 1, 2));
    for split in &judged.splits {
        assert_eq!(split.users, 60);
        for figure in split.seen_kept.iter().chain(&split.seen_removed) {
            assert!(figure.model.estimate > 0.9, "{}: {} {:?}", split.split, figure.metric, figure.model);
        }
    }
}

#[test]
fn the_committed_recipe_and_the_public_set_are_what_they_are_said_to_be() {
    let shared = testkit::data_folder();
    let interactions = shared.join("instruments.interactions.tsv.gz");
    if !interactions.is_file() {
        testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", interactions.display()));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    import_amazon(&interactions, &shared.join("instruments.items.jsonl.gz"), folder.path(), 0.0).unwrap();
    std::fs::copy(shared.join("instruments.sids-letter.tsv.gz"), folder.path().join("codes.tsv.gz")).unwrap();
    let Options { given, choice, work, .. } = options(folder.path(), folder.path());
    let plan = recipe::plan(&testkit::in_repository("models/instruments.toml"), &given, &choice, &work).unwrap();
    assert!(plan.iter().any(|line| line.to_string().contains("judge")), "the plan names all stages");

    let table = CodeTable::read(&folder.path().join("codes.tsv.gz"), 256).unwrap();
    assert_eq!((table.items().len(), table.collisions(), table.vocabulary()), (9_922, 25, 1_025));
    let dataset = Dataset::load(folder.path(), &ActionTable::default()).unwrap();
    let sequences = cut(&dataset, &table, &SequenceSettings::default()).unwrap();
    assert_eq!((sequences.validation.len(), sequences.test.len()), (24_772, 24_772));
    // Counted in Python from the interactions.
    let learned: usize = sequences.train.iter().map(|window| window.len() - 1).sum();
    assert_eq!((sequences.train.len(), learned), (25_819, 686_412));
}
