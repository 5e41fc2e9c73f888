//! Beams of real graphs: against scoring every item, against row expansion, on a cache full of garbage, several at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use futures::future::join_all;
use tempfile::TempDir;

use super::super::device::{Call, DeviceOptions};
use super::*;
use crate::llm::beam::{BeamDriver, BeamSearch};
use crate::llm::trie::{Change, Trie, TrieCell};
use crate::llm::{
    Beam, BeamRequest, GENERATION_FILE, GenerateRequest, LlmEngine, LlmError, LlmOptions, OnnxLlm, Priority, Prompt,
};
use crate::onnx::GRAPH_FILE;
use crate::onnx::runtime::{self, Provider};
use taiji_export::{ExportOptions, Flavour, Precision, export};

const VOCABULARY: usize = 128;
const SLOTS: usize = 256;

fn model(name: &str, flavours: &[Flavour]) -> TempDir {
    model_in(name, flavours, Precision::F32)
}

fn model_in(name: &str, flavours: &[Flavour], precision: Precision) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = testkit::fixture(name);
    let options = ExportOptions { flavours: flavours.to_vec(), precision, ..ExportOptions::default() };
    export(&checkpoint, folder.path(), &options).unwrap();
    std::fs::write(folder.path().join(GENERATION_FILE), r#"{"stop": ["</answer>"]}"#).unwrap();
    folder
}

fn all_flavours(name: &str) -> TempDir {
    model(name, &[Flavour::Gqa, Flavour::Tree, Flavour::Std])
}

fn engine(folder: &TempDir) -> OnnxLlm {
    let options = LlmOptions { threads: 1, max_rows: 5, max_len: SLOTS, ..LlmOptions::default() };
    OnnxLlm::load(folder.path(), options).unwrap()
}

fn device(folder: &TempDir) -> Device {
    let environment = runtime::environment(None).unwrap();
    let open = |graph: &Path| runtime::open_session_on(&environment, graph, 1.into(), Provider::Cpu);
    let session = open(&folder.path().join(GRAPH_FILE)).unwrap();
    let dims = GraphDims::of(&session).unwrap();
    let graphs = BeamGraphs::open(folder.path(), &dims, open).unwrap();
    let options = DeviceOptions { rows: 6, slots: SLOTS, provider: Provider::Cpu };
    let mut device = Device::new(environment.clone(), session, dims, options).unwrap();
    device.set_beams(graphs);
    device
}

fn prompt(length: u32) -> Vec<u32> {
    (0..length).map(|index| (index * 37 + length * 11 + 5) % VOCABULARY as u32).collect()
}

/// Items of three tokens out of 40 a level, a few of two; every seventh is paused.
fn catalogue(items: u32) -> BTreeMap<u32, (Vec<u32>, bool)> {
    let tokens = |item: u32| match item % 9 {
        0 => vec![8 + item % 40, 4 + item / 9 % 4],
        _ => vec![8 + item * 7 % 40, 48 + item * 13 % 37, 88 + item % 40],
    };
    let mut held = std::collections::BTreeSet::new();
    let all = (0..).map(|item| (item, tokens(item))).filter(|(_, tokens)| held.insert(tokens.clone()));
    all.take(items as usize).map(|(item, tokens)| (item, (tokens, item % 7 != 3))).collect()
}

fn trie(catalogue: &BTreeMap<u32, (Vec<u32>, bool)>) -> Arc<Trie> {
    Arc::new(Trie::build(catalogue.iter().map(|(&item, (tokens, active))| (item, &tokens[..], *active))).unwrap())
}

/// Scores of whole sequences by the engine's scorer.
fn score(llm: &OnnxLlm, prompt: &[u32], sequences: &[Vec<u32>]) -> Vec<f64> {
    let pairs: Vec<(&[u32], &[u32])> = sequences.iter().map(|tokens| (prompt, &tokens[..])).collect();
    llm.score_all(&pairs).into_iter().map(|scores| scores.unwrap().iter().sum()).collect()
}

/// Every active item, best first.
fn enumerate(llm: &OnnxLlm, prompt: &[u32], catalogue: &BTreeMap<u32, (Vec<u32>, bool)>) -> Vec<Beam> {
    let active = catalogue.iter().filter(|(_, (_, active))| *active);
    let (items, sequences): (Vec<u32>, Vec<Vec<u32>>) =
        active.map(|(&item, (tokens, _))| (item, tokens.clone())).unzip();
    let scores = score(llm, prompt, &sequences);
    let mut beams: Vec<Beam> = items
        .into_iter()
        .zip(sequences)
        .zip(scores)
        .map(|((item, tokens), score)| Beam { item, tokens, score })
        .collect();
    beams.sort_by(|left, right| right.score.total_cmp(&left.score));
    beams
}

/// Beam search in which every beam is read anew, from the prompt on, at every level.
fn expand(llm: &OnnxLlm, prompt: &[u32], trie: &Trie, width: usize) -> Vec<Beam> {
    let mut beams: Vec<(u32, Vec<u32>)> = vec![(Trie::ROOT, Vec::new())];
    loop {
        let children = |(node, tokens): &(u32, Vec<u32>)| match trie.item(*node) {
            Some(_) => vec![(*node, tokens.clone())],
            None => trie.children(*node).map(|(token, child)| (child, [&tokens[..], &[token]].concat())).collect(),
        };
        let next: Vec<(u32, Vec<u32>)> = beams.iter().flat_map(children).collect();
        let scores = score(llm, prompt, &next.iter().map(|(_, tokens)| tokens.clone()).collect::<Vec<_>>());
        let mut ranked: Vec<((u32, Vec<u32>), f64)> = next.into_iter().zip(scores).collect();
        ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
        ranked.truncate(width);
        if ranked.iter().all(|((node, _), _)| trie.item(*node).is_some()) {
            let beam = |((node, tokens), score)| Beam { item: trie.item(node).unwrap(), tokens, score };
            return ranked.into_iter().map(beam).collect();
        }
        beams = ranked.into_iter().map(|(beam, _)| beam).collect();
    }
}

fn assert_same(found: &[Beam], wanted: &[Beam]) {
    let items = |beams: &[Beam]| beams.iter().map(|beam| (beam.item, beam.tokens.clone())).collect::<Vec<_>>();
    assert_eq!(items(found), items(wanted));
    for (one, other) in found.iter().zip(wanted) {
        assert!((one.score - other.score).abs() < 1e-3, "{} {}", one.score, other.score);
    }
}

fn request(prompt: &[u32], trie: &Arc<Trie>, width: usize) -> BeamRequest {
    let (prompt, trie) = (Prompt::Tokens(prompt.to_vec()), trie.clone());
    BeamRequest { prompt, width, trie, priority: Priority::Synchronous, deadline: None }
}

/// Reads a prompt into a row and starts a search behind it.
fn start(device: &mut Device, row: usize, prompt: &[u32], trie: &Arc<Trie>, width: usize) -> BeamSearch {
    let length = prompt.len();
    let call = Call {
        first: row,
        rows: 1,
        width: length,
        input_ids: prompt.iter().map(|&token| i64::from(token)).collect(),
        seqlens: vec![length as i32 - 1],
        total: length as i32,
        logits_indices: vec![length as i64 - 1],
    };
    let mut search = BeamSearch::new(trie.clone(), width, length).unwrap();
    search.start(device.run(&call).unwrap()).unwrap();
    search
}

/// Runs a driver to its end; answers by row, and the steps it took.
fn drive(driver: &mut BeamDriver, device: &mut Device) -> (BTreeMap<usize, Result<Vec<Beam>, LlmError>>, usize) {
    let (mut ended, mut steps) = (BTreeMap::new(), 0);
    while !driver.is_idle() {
        ended.extend(driver.step(device).into_iter().map(|end| (end.row, end.result)));
        steps += 1;
    }
    (ended, steps)
}

#[test]
fn beams_are_the_best_of_all_items() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        let folder = all_flavours(name);
        let llm = engine(&folder);
        let (catalogue, prompt) = (catalogue(100), prompt(13));
        let trie = trie(&catalogue);
        let all = enumerate(&llm, &prompt, &catalogue);
        let found = block_on(llm.beam(request(&prompt, &trie, 120))).unwrap();
        assert_eq!(found.len(), trie.len());
        assert_same(&found, &all);
        for width in [1, 5, 20] {
            let found = block_on(llm.beam(request(&prompt, &trie, width))).unwrap();
            assert_same(&found, &expand(&llm, &prompt, &trie, width));
            assert!(found.iter().all(|beam| catalogue[&beam.item].1), "no paused item");
        }
    }
}

#[test]
fn a_hundred_beams_out_of_many_items() {
    let folder = all_flavours("qwen2");
    let llm = engine(&folder);
    let (catalogue, prompt) = (catalogue(900), prompt(9));
    let trie = trie(&catalogue);
    let found = block_on(llm.beam(request(&prompt, &trie, 110))).unwrap();
    assert_eq!(found.len(), 110);
    assert_same(&found, &expand(&llm, &prompt, &trie, 110));
}

#[test]
fn garbage_in_the_cache_does_not_matter() {
    for name in ["qwen2", "qwen3-tied"] {
        let folder = all_flavours(name);
        let (llm, mut device) = (engine(&folder), device(&folder));
        let catalogue = catalogue(100);
        let trie = trie(&catalogue);
        for garbage in [7.0, f32::NAN] {
            device.fill(garbage).unwrap();
            let mut driver = BeamDriver::default();
            let search = start(&mut device, 3, &prompt(17), &trie, 30);
            driver.push(3, search);
            let (ended, steps) = drive(&mut driver, &mut device);
            assert_eq!(steps, 2);
            assert_same(ended[&3].as_ref().unwrap(), &expand(&llm, &prompt(17), &trie, 30));
        }
    }
}

#[test]
fn several_at_once_share_calls_and_find_the_same() {
    for name in ["qwen2", "qwen2-tied", "qwen3-tied"] {
        let folder = all_flavours(name);
        let mut device = device(&folder);
        let tries = [trie(&catalogue(100)), trie(&catalogue(300)), trie(&BTreeMap::from([(1, (vec![9, 50], true))]))];
        let asked: Vec<(usize, u32, usize)> = vec![(0, 17, 20), (1, 3, 31), (2, 40, 1), (0, 5, 7)];
        let mut alone = Vec::new();
        for (row, &(which, length, width)) in asked.iter().enumerate() {
            let mut driver = BeamDriver::default();
            driver.push(row, start(&mut device, row, &prompt(length), &tries[which], width));
            alone.push(drive(&mut driver, &mut device).0.remove(&row).unwrap().unwrap());
        }
        for garbage in [7.0, f32::NAN] {
            device.fill(garbage).unwrap();
            let mut driver = BeamDriver::with_padding(1.0);
            for (row, &(which, length, width)) in asked.iter().enumerate() {
                driver.push(row, start(&mut device, row, &prompt(length), &tries[which], width));
            }
            let (ended, steps) = drive(&mut driver, &mut device);
            assert_eq!(steps, 2, "all levels of all in two calls");
            for (row, wanted) in alone.iter().enumerate() {
                assert_same(ended[&row].as_ref().unwrap(), wanted);
            }
        }
    }
}

#[test]
fn half_precision_differs_by_its_rounding_only() {
    let folder = model_in("qwen2", &[Flavour::Gqa, Flavour::Tree, Flavour::Std], Precision::F16);
    let (llm, mut device) = (engine(&folder), device(&folder));
    let catalogue = catalogue(100);
    let trie = trie(&catalogue);
    for rows in [1, 3] {
        device.fill(7.0).unwrap();
        let mut driver = BeamDriver::default();
        for row in 0..rows {
            driver.push(row, start(&mut device, row, &prompt(17), &trie, 120));
        }
        let (ended, steps) = drive(&mut driver, &mut device);
        assert_eq!(steps, 2, "{ended:?}");
        for result in ended.into_values() {
            let scores: BTreeMap<u32, f64> = result.unwrap().iter().map(|beam| (beam.item, beam.score)).collect();
            assert_eq!(scores.len(), trie.len());
            for beam in enumerate(&llm, &prompt(17), &catalogue) {
                assert!((scores[&beam.item] - beam.score).abs() < 0.05, "{} {}", scores[&beam.item], beam.score);
            }
        }
    }
}

#[test]
fn without_the_std_graph_they_run_one_by_one() {
    let folder = model("qwen2", &[Flavour::Gqa, Flavour::Tree]);
    let mut device = device(&folder);
    assert_eq!(device.scratch_rows(10), 0);
    let (trie, mut driver) = (trie(&catalogue(100)), BeamDriver::default());
    for row in 0..3 {
        driver.push(row, start(&mut device, row, &prompt(8), &trie, 10));
    }
    let (ended, steps) = drive(&mut driver, &mut device);
    assert_eq!(steps, 6);
    assert!(ended.values().all(|result| result == &ended[&0] && result.is_ok()));
}

#[test]
fn beams_and_texts_share_the_engine() {
    let folder = all_flavours("qwen3-tied");
    let llm = engine(&folder);
    let trie = trie(&catalogue(300));
    let beams: Vec<BeamRequest> = (0..6).map(|index| request(&prompt(10 + 9 * index), &trie, 15)).collect();
    let texts: Vec<GenerateRequest> =
        (0..6).map(|index| GenerateRequest::tokens(prompt(4 + 11 * index), 5 + 6 * index as usize)).collect();
    let beams_alone: Vec<Vec<Beam>> = beams.iter().map(|beam| block_on(llm.beam(beam.clone())).unwrap()).collect();
    let texts_alone: Vec<String> =
        texts.iter().map(|text| block_on(llm.generate(text.clone())).unwrap().text).collect();
    for _ in 0..3 {
        let all_beams = join_all(beams.iter().map(|beam| llm.beam(beam.clone())));
        let all_texts = join_all(texts.iter().map(|text| llm.generate(text.clone())));
        let (found, written) = block_on(futures::future::join(all_beams, all_texts));
        for (found, alone) in found.into_iter().zip(&beams_alone) {
            assert_same(&found.unwrap(), alone);
        }
        let written: Vec<String> = written.into_iter().map(|text| text.unwrap().text).collect();
        assert_eq!(written, texts_alone);
    }
    assert!(llm.healthy());
}

#[test]
fn a_running_search_keeps_its_trie() {
    let folder = all_flavours("qwen2");
    let mut device = device(&folder);
    let (catalogue, asked) = (catalogue(100), prompt(12));
    let cell = TrieCell::build(catalogue.iter().map(|(&item, (tokens, active))| (item, &tokens[..], *active))).unwrap();
    let mut driver = BeamDriver::default();
    driver.push(0, start(&mut device, 0, &asked, &cell.load(), 20));
    let before = drive(&mut driver, &mut device).0.remove(&0).unwrap().unwrap();

    driver.push(0, start(&mut device, 0, &asked, &cell.load(), 20));
    assert!(driver.step(&mut device).is_empty());
    let paused: Vec<Change> = before.iter().map(|beam| Change::Pause { item: beam.item }).collect();
    let new = Change::Add { item: 5000, tokens: vec![before[0].tokens[0], 3, 127], active: true };
    assert!(cell.apply(&[paused, vec![new]].concat()).is_empty());
    assert_same(drive(&mut driver, &mut device).0[&0].as_ref().unwrap(), &before);

    driver.push(0, start(&mut device, 0, &asked, &cell.load(), 120));
    let after = drive(&mut driver, &mut device).0.remove(&0).unwrap().unwrap();
    let found: Vec<u32> = after.iter().map(|beam| beam.item).collect();
    assert!(found.contains(&5000) && before.iter().all(|beam| !found.contains(&beam.item)));
    assert_eq!(found.len(), cell.load().len());
}

#[test]
fn what_cannot_be_searched_is_said() {
    let folder = all_flavours("qwen2");
    let llm = engine(&folder);
    let one = |request| block_on(llm.beam(request));
    let paused = trie(&BTreeMap::from([(1, (vec![9, 50], false))]));
    assert_eq!(one(request(&prompt(4), &paused, 5)), Err(LlmError::NoLegalToken { level: 0 }));
    let foreign = trie(&BTreeMap::from([(1, (vec![9, 50], true)), (2, (vec![128, 50], true))]));
    assert!(
        matches!(one(request(&prompt(4), &foreign, 5)), Err(LlmError::Invalid(message)) if message.contains("128"))
    );
    // The engine has counted the first before it answered the second.
    assert_eq!(llm.metrics().llm_requests.with_label_values(&["no_legal_token"]).get(), 1);
    let wide = trie(&catalogue(900));
    assert!(matches!(one(request(&prompt(90), &wide, 150)), Err(LlmError::PromptTooLong { tokens: 90, .. })));
    assert!(matches!(one(request(&[], &wide, 5)), Err(LlmError::Invalid(_))));

    let without = model("qwen2", &[Flavour::Gqa]);
    let answer = block_on(engine(&without).beam(request(&prompt(4), &wide, 5)));
    assert!(matches!(answer, Err(LlmError::Invalid(message)) if message.contains("graph.tree.onnx")));
    std::fs::copy(folder.path().join(GRAPH_FILE), folder.path().join(TREE_FILE)).unwrap();
    let error = OnnxLlm::load(folder.path(), LlmOptions::default()).err().unwrap().to_string();
    assert!(error.contains(TREE_FILE) && error.contains("position_ids"), "{error}");
}
