//! Searches on the toy model: against enumeration of all items, against row expansion, one by one and together.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::toy::{ToyDevice, ToyModel};
use super::*;
use crate::llm::sample::log_probability;
use crate::llm::trie::{Change, Trie, TrieCell};
use crate::llm::{Beam, LlmError};

const VOCABULARY: usize = 24;
const SMOOTH: ToyModel = ToyModel { vocabulary: VOCABULARY, levels: 1 << 20, broken: None };
const TIES: ToyModel = ToyModel { vocabulary: VOCABULARY, levels: 2, broken: None };

/// Item → (sequence, active); no sequence is a prefix of another.
type Catalogue = BTreeMap<u32, (Vec<u32>, bool)>;

fn trie(catalogue: &Catalogue) -> Arc<Trie> {
    Arc::new(Trie::build(catalogue.iter().map(|(&item, (tokens, active))| (item, &tokens[..], *active))).unwrap())
}

/// Best first; equal scores by tokens, whatever the search did with them.
fn ranked(mut beams: Vec<Beam>) -> Vec<Beam> {
    beams.sort_by(|left, right| right.score.total_cmp(&left.score).then_with(|| left.tokens.cmp(&right.tokens)));
    beams
}

/// Every active item with its score, best first.
fn enumerate(model: ToyModel, prompt: &[u32], catalogue: &Catalogue) -> Vec<Beam> {
    let active = catalogue.iter().filter(|(_, (_, active))| *active);
    let beams: Vec<Beam> = active
        .map(|(&item, (tokens, _))| {
            let score = (0..tokens.len()).fold(0.0, |score, level| {
                let text = [prompt, &tokens[..level]].concat();
                score + log_probability(&model.logits(&text), tokens[level]).unwrap()
            });
            Beam { item, tokens: tokens.clone(), score }
        })
        .collect();
    ranked(beams)
}

/// Beam search as in a textbook: every beam is a row of its own, read anew at every level.
fn expand(model: ToyModel, prompt: &[u32], catalogue: &Catalogue, width: usize) -> Vec<Beam> {
    let active: Vec<(&u32, &Vec<u32>)> =
        catalogue.iter().filter(|(_, (_, active))| *active).map(|(item, (tokens, _))| (item, tokens)).collect();
    let item = |tokens: &Vec<u32>| active.iter().find(|(_, held)| *held == tokens).map(|(item, _)| **item);
    let mut beams: Vec<(Vec<u32>, f64)> = vec![(Vec::new(), 0.0)];
    while beams.iter().any(|(tokens, _)| item(tokens).is_none()) {
        let mut next: Vec<(usize, u32, Vec<u32>, f64)> = Vec::new();
        for (index, (tokens, score)) in beams.iter().enumerate() {
            if item(tokens).is_some() {
                next.push((index, 0, tokens.clone(), *score));
                continue;
            }
            let logits = model.logits(&[prompt, tokens].concat());
            for token in 0..VOCABULARY as u32 {
                let longer = [&tokens[..], &[token]].concat();
                if active.iter().any(|(_, held)| held.starts_with(&longer)) {
                    next.push((index, token, longer, score + log_probability(&logits, token).unwrap()));
                }
            }
        }
        next.sort_by(|left, right| right.3.total_cmp(&left.3).then((left.0, left.1).cmp(&(right.0, right.1))));
        next.truncate(width);
        beams = next.into_iter().map(|(_, _, tokens, score)| (tokens, score)).collect();
    }
    beams.into_iter().map(|(tokens, score)| Beam { item: item(&tokens).unwrap(), tokens, score }).collect()
}

struct Asked {
    prompt: Vec<u32>,
    trie: Arc<Trie>,
    width: usize,
}

fn start(device: &mut ToyDevice, asked: &Asked) -> Result<(usize, BeamSearch), LlmError> {
    let slots = slots_needed(&asked.trie, asked.width, asked.prompt.len());
    let row = device.prefill(&asked.prompt, slots);
    let mut search = BeamSearch::new(asked.trie.clone(), asked.width, asked.prompt.len())?;
    search.start(&device.model.logits(&asked.prompt))?;
    Ok((row, search))
}

/// All of them at once through the driver, however unlike; answers in order.
fn run(device: &mut ToyDevice, asked: &[Asked]) -> Vec<Result<Vec<Beam>, LlmError>> {
    run_on(BeamDriver::with_padding(1.0), device, asked)
}

fn run_on(mut driver: BeamDriver, device: &mut ToyDevice, asked: &[Asked]) -> Vec<Result<Vec<Beam>, LlmError>> {
    let started: Vec<Result<usize, LlmError>> = asked
        .iter()
        .map(|asked| {
            let (row, search) = start(device, asked)?;
            driver.push(row, search);
            Ok(row)
        })
        .collect();
    let mut ended = BTreeMap::new();
    while !driver.is_idle() {
        let calls = device.tree_calls + device.std_calls;
        for end in driver.step(device) {
            assert!(ended.insert(end.row, end.result).is_none());
        }
        assert!(device.tree_calls + device.std_calls <= calls + 1, "one call a step");
    }
    let answers = started.into_iter().map(|row| ended.remove(&row?).unwrap()).collect();
    assert!(ended.is_empty());
    answers
}

fn alone(model: ToyModel, prompt: &[u32], trie: &Arc<Trie>, width: usize) -> Result<Vec<Beam>, LlmError> {
    let asked = Asked { prompt: prompt.to_vec(), trie: trie.clone(), width };
    run(&mut ToyDevice::new(model, 0), &[asked]).remove(0)
}

fn catalogue(most: usize) -> impl Strategy<Value = Catalogue> {
    let (uniform, mixed) = (2_usize..4, 1_usize..5);
    let lengths = prop_oneof![uniform.prop_map(|length| length..length + 1), mixed.prop_map(|longest| 1..longest + 1)];
    let entries = (lengths, 2_u32..VOCABULARY as u32).prop_flat_map(move |(lengths, alphabet)| {
        prop::collection::vec((prop::collection::vec(0..alphabet, lengths), prop::bool::weighted(0.8)), 0..most)
    });
    entries.prop_map(|entries| {
        let mut held: Vec<(Vec<u32>, bool)> = Vec::new();
        for (tokens, active) in entries {
            let begins = |other: &Vec<u32>| other.starts_with(&tokens) || tokens.starts_with(other);
            if !held.iter().any(|(other, _)| begins(other)) {
                held.push((tokens, active));
            }
        }
        (100..).zip(held).collect()
    })
}

fn prompt() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCABULARY as u32, 1..9)
}

fn width() -> impl Strategy<Value = usize> {
    prop_oneof![1_usize..8, 1_usize..150]
}

proptest! {
    #[test]
    fn a_wide_beam_finds_every_active_item_with_its_score(catalogue in catalogue(80), prompt in prompt()) {
        let trie = trie(&catalogue);
        let wanted = enumerate(SMOOTH, &prompt, &catalogue);
        match alone(SMOOTH, &prompt, &trie, 100) {
            Ok(beams) => {
                prop_assert!(beams.is_sorted_by(|left, right| left.score >= right.score));
                prop_assert_eq!(ranked(beams), wanted);
            }
            Err(error) => {
                prop_assert!(wanted.is_empty());
                prop_assert_eq!(error, LlmError::NoLegalToken { level: 0 });
            }
        }
    }

    #[test]
    fn a_forest_is_row_expansion(
        catalogue in catalogue(80), prompt in prompt(), width in width(), ties in any::<bool>()
    ) {
        let model = if ties { TIES } else { SMOOTH };
        let trie = trie(&catalogue);
        prop_assume!(!trie.is_empty());
        let beams = alone(model, &prompt, &trie, width).unwrap();
        prop_assert_eq!(&beams, &expand(model, &prompt, &catalogue, width));
        prop_assert!(beams.len() <= width);
        for beam in &beams {
            prop_assert_eq!(&catalogue[&beam.item], &(beam.tokens.clone(), true));
        }
    }

    #[test]
    fn searches_together_find_what_each_finds_alone(
        asked in prop::collection::vec((catalogue(40), prompt(), width()), 1..7), room in 0_usize..600, ties in any::<bool>()
    ) {
        let model = if ties { TIES } else { SMOOTH };
        let mut device = ToyDevice::new(model, room);
        let asked: Vec<Asked> =
            asked.into_iter().map(|(catalogue, prompt, width)| Asked { prompt, trie: trie(&catalogue), width }).collect();
        let together = run(&mut device, &asked);
        for (answer, asked) in together.into_iter().zip(&asked) {
            prop_assert_eq!(answer, alone(model, &asked.prompt, &asked.trie, asked.width));
        }
    }
}

/// `count` items of `depth` tokens, spread over the vocabulary.
fn spread(count: u32, depth: u32) -> Catalogue {
    let base = VOCABULARY as u32;
    let tokens = |item: u32| (0..depth).map(|level| (item * 7919 / base.pow(level) + item * level) % base).collect();
    let mut held = std::collections::BTreeSet::new();
    (0..)
        .map(|item| (item, tokens(item)))
        .filter(|(_, tokens)| held.insert(Vec::clone(tokens)))
        .take(count as usize)
        .map(|(item, tokens)| (item, (tokens, true)))
        .collect()
}

#[test]
fn waiting_searches_share_calls() {
    let tries: Vec<Arc<Trie>> = [spread(200, 3), spread(50, 3), spread(90, 2)].iter().map(trie).collect();
    let asked: Vec<Asked> = (0..3)
        .map(|index| Asked { prompt: vec![index as u32; 3 + index], trie: tries[index].clone(), width: 20 })
        .collect();
    let mut device = ToyDevice::new(SMOOTH, 10_000);
    assert!(run(&mut device, &asked).iter().all(Result::is_ok));
    assert_eq!((device.std_calls, device.tree_calls), (2, 0));
    let mut without = ToyDevice::new(SMOOTH, 0);
    assert!(run(&mut without, &asked).iter().all(Result::is_ok));
    assert_eq!((without.std_calls, without.tree_calls), (0, 2 + 2 + 1));
}

#[test]
fn unlike_searches_do_not_share() {
    let trie = trie(&spread(2000, 3));
    let ask =
        |length: u32, width| Asked { prompt: (0..length).map(|token| token % 20).collect(), trie: trie.clone(), width };
    for (asked, std_calls, tree_calls) in [
        (vec![ask(8, 20), ask(9, 18), ask(7, 20)], 2, 0),
        (vec![ask(8, 20), ask(8, 3), ask(8, 3)], 2, 2),
        (vec![ask(8, 20), ask(200, 20), ask(210, 20)], 2, 2),
    ] {
        let mut device = ToyDevice::new(SMOOTH, 10_000);
        let answers = run_on(BeamDriver::default(), &mut device, &asked);
        assert_eq!((device.std_calls, device.tree_calls), (std_calls, tree_calls));
        for (answer, asked) in answers.into_iter().zip(&asked) {
            assert_eq!(answer, alone(SMOOTH, &asked.prompt, &asked.trie, asked.width));
        }
    }
}

#[test]
fn a_width_of_512_and_a_width_of_one() {
    let catalogue = spread(2000, 3);
    let trie = trie(&catalogue);
    let wide = alone(SMOOTH, &[1, 2, 3], &trie, 512).unwrap();
    assert_eq!(wide, expand(SMOOTH, &[1, 2, 3], &catalogue, 512));
    assert_eq!(wide.len(), 512);
    let greedy = alone(SMOOTH, &[1, 2, 3], &trie, 1).unwrap();
    assert_eq!(greedy, expand(SMOOTH, &[1, 2, 3], &catalogue, 1));
}

#[test]
fn a_search_keeps_its_trie_while_items_are_paused() {
    let catalogue = spread(60, 3);
    let cell = TrieCell::build(catalogue.iter().map(|(&item, (tokens, active))| (item, &tokens[..], *active))).unwrap();
    let mut device = ToyDevice::new(SMOOTH, 0);
    let asked = Asked { prompt: vec![3, 1], trie: cell.load(), width: 60 };
    let (row, search) = start(&mut device, &asked).unwrap();
    let mut driver = BeamDriver::default();
    driver.push(row, search);
    assert!(driver.step(&mut device).is_empty());
    let paused: Vec<Change> = catalogue.keys().take(59).map(|&item| Change::Pause { item }).collect();
    assert!(cell.apply(&paused).is_empty());
    let ended = driver.step(&mut device).remove(0);
    assert_eq!(ended.result.unwrap().len(), 60, "it was asked before");
    let left = alone(SMOOTH, &[3, 1], &cell.load(), 60).unwrap();
    assert_eq!(left.iter().map(|beam| beam.item).collect::<Vec<_>>(), [*catalogue.keys().last().unwrap()]);
    assert!(cell.apply(&[Change::Pause { item: left[0].item }]).is_empty());
    assert_eq!(alone(SMOOTH, &[3, 1], &cell.load(), 60), Err(LlmError::NoLegalToken { level: 0 }));
}

#[test]
fn unusable_logits_end_their_search_alone() {
    let broken = ToyModel { broken: Some(5), ..SMOOTH };
    let healthy: Catalogue = (0..9).map(|item| (item, (vec![item % 3 + 6, item / 3, 1], true))).collect();
    let sick: Catalogue = (0..9).map(|item| (item, (vec![item % 3 + 4, item / 3, 1], true))).collect();
    for room in [0, 1000] {
        let mut device = ToyDevice::new(broken, room);
        let ask = |catalogue| Asked { prompt: vec![1], trie: trie(catalogue), width: 9 };
        let mut answers = run(&mut device, &[ask(&sick), ask(&healthy), ask(&sick)]);
        assert!(matches!(answers.remove(0), Err(LlmError::Run(message)) if message.contains("not finite")));
        assert_eq!(answers.remove(0), alone(broken, &[1], &trie(&healthy), 9));
        assert!(answers.remove(0).is_err());
    }
    let mut search = BeamSearch::new(trie(&healthy), 9, 1).unwrap();
    assert!(matches!(search.start(&[f32::NAN; VOCABULARY]), Err(LlmError::Run(_))));
    assert!(matches!(search.start(&[0.0; 7]), Err(LlmError::Invalid(message)) if message.contains("token id 7")));
    assert!(matches!(search.accept(&[0.0; VOCABULARY]), Err(LlmError::Run(_))), "nothing was asked");
    for (width, prompt) in [(0, 1), (1, 0)] {
        assert!(matches!(BeamSearch::new(Arc::default(), width, prompt), Err(LlmError::Invalid(_))));
    }
}

#[test]
fn a_failed_call_ends_its_searches_and_the_driver_goes_on() {
    let trie = trie(&spread(60, 3));
    for room in [0, 1000] {
        let mut device = ToyDevice::new(SMOOTH, room);
        device.fails = true;
        let ask = |token| Asked { prompt: vec![token], trie: trie.clone(), width: 5 };
        let answers = run(&mut device, &[ask(1), ask(2)]);
        assert_eq!(answers[0], Err(LlmError::Run("on purpose".to_owned())));
        assert_eq!(answers[1].is_ok(), room == 0, "in STD the call is shared");
    }
}

#[test]
fn cancelled_searches_leave_the_others_alone() {
    let trie = trie(&spread(60, 3));
    for room in [0, 1000] {
        for after in 0..2 {
            let (mut device, mut driver) = (ToyDevice::new(SMOOTH, room), BeamDriver::default());
            for token in 1..4 {
                let asked = Asked { prompt: vec![token], trie: trie.clone(), width: 5 };
                let (row, search) = start(&mut device, &asked).unwrap();
                driver.push(row, search);
            }
            let mut ended: Vec<Ended> = (0..after).flat_map(|_| driver.step(&mut device)).collect();
            driver.cancel(0);
            driver.cancel(2);
            assert_eq!(driver.len(), 1);
            while !driver.is_empty() {
                ended.extend(driver.step(&mut device));
            }
            assert_eq!(ended, [Ended { row: 1, result: alone(SMOOTH, &[2], &trie, 5) }]);
        }
    }
}

#[test]
fn searches_may_move_to_other_rows() {
    let trie = trie(&spread(300, 4));
    for (room, steps) in [(0, 0), (0, 1), (0, 2), (1000, 0), (1000, 1), (1000, 2)] {
        let (mut device, mut driver) = (ToyDevice::new(SMOOTH, room), BeamDriver::default());
        for token in 1..4 {
            let asked = Asked { prompt: vec![token], trie: trie.clone(), width: 5 };
            let (row, search) = start(&mut device, &asked).unwrap();
            driver.push(row, search);
        }
        device.prefill(&[9], 100);
        let mut ended: Vec<Ended> = (0..steps).flat_map(|_| driver.step(&mut device)).collect();
        for (from, to) in [(0, 3), (2, 0), (1, 2)] {
            device.move_row(from, to, driver.used(from).unwrap());
            driver.relocate(from, to);
        }
        while !driver.is_idle() {
            ended.extend(driver.step(&mut device));
        }
        ended.sort_by_key(|end| end.row);
        let wanted =
            [(0, 3), (2, 2), (3, 1)].map(|(row, token)| Ended { row, result: alone(SMOOTH, &[token], &trie, 5) });
        assert_eq!(ended, wanted);
        assert_eq!(driver.used(0), None);
    }
}

#[test]
fn clearing_names_every_row() {
    let trie = trie(&spread(60, 3));
    for (room, steps) in [(0, 1), (60, 1), (1000, 1), (0, 0)] {
        let (mut device, mut driver) = (ToyDevice::new(SMOOTH, room), BeamDriver::default());
        for token in 1..4 {
            let asked = Asked { prompt: vec![token], trie: trie.clone(), width: 5 };
            let (row, search) = start(&mut device, &asked).unwrap();
            driver.push(row, search);
        }
        (0..steps).for_each(|_| assert!(driver.step(&mut device).is_empty()));
        assert_eq!(driver.clear(), [0, 1, 2]);
        assert!(driver.is_idle() && driver.step(&mut device).is_empty());
    }
}
