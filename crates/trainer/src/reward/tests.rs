//! Rewards of known answers, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use std::sync::Arc;
use taiji::encode::{EncodeError, Encoder};
use taiji::prompt::{PromptMode, parse};

/// One direction a letter: texts are alike as far as their letters are.
struct Letters;

impl Encoder for Letters {
    fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EncodeError> {
        let vector = |text: &&str| {
            let mut counts = [0.0f32; 26];
            for letter in text.to_lowercase().bytes().filter(u8::is_ascii_lowercase) {
                counts[usize::from(letter - b'a')] += 1.0;
            }
            let length = counts.iter().map(|count| count * count).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            counts.iter().map(|count| count / length).collect()
        };
        Ok(texts.iter().map(vector).collect())
    }

    fn count_tokens(&self, text: &str) -> usize {
        text.len()
    }

    fn stalled(&self) -> Option<std::time::Duration> {
        None
    }

    fn dim(&self) -> usize {
        26
    }

    fn model_id(&self) -> &str {
        "letters"
    }
}

fn item(title: &str) -> Item {
    serde_json::from_value(serde_json::json!({"id": title, "title": title, "categories": ["a", "b"]})).unwrap()
}

fn written(answer: &str) -> ParsedAnswer {
    parse(&format!("so</think><answer>{answer}</answer>"), PromptMode::Think)
}

fn answered<'a>(parsed: &'a ParsedAnswer, truth: Option<&'a Item>, tokens: usize) -> Answered<'a> {
    Answered { user_id: "u", truth, text: "", parsed, tokens }
}

fn sources(items: &[Item]) -> Sources<'_> {
    Sources { items, encoder: Some(Arc::new(Letters)), simulator: None, max_title_chars: 48 }
}

#[test]
fn meaning_is_1_at_the_truth_and_does_not_apply_without_one() {
    let truth = item("red shoe");
    let (same, other, broken) =
        (written("a > b: red shoe"), written("x > y: zzz"), parse("a > b: red shoe", PromptMode::Think));
    let mut rewards = RewardSet::new(&[RewardSettings::of(RewardKind::Semantic)], sources(&[])).unwrap();
    let answers = [
        answered(&same, Some(&truth), 1),
        answered(&other, Some(&truth), 1),
        answered(&broken, Some(&truth), 1),
        answered(&same, None, 1),
    ];
    let found = rewards.values(&answers, 4).unwrap();
    assert!((found.values[0][0] - 1.0).abs() < 1e-6 && found.values[0][1] < 0.5, "{found:?}");
    assert_eq!(found.values[0][2], 0.0, "without the format an answer is worth nothing");
    let mean = found.values[0][..3].iter().sum::<f64>() / 3.0;
    assert_eq!((found.values[0][3], found.not_applied[0]), (mean, 1), "counts as the others of its group");
}

#[test]
fn form_is_rewarded_by_itself() {
    let settings = [
        RewardSettings::of(RewardKind::Format),
        RewardSettings { tokens: Some([10, 20]), ..RewardSettings::of(RewardKind::Length) },
    ];
    let mut rewards = RewardSet::new(&settings, sources(&[])).unwrap();
    assert_eq!(rewards.names(), ["format", "length"]);
    let (right, broken) = (written("a: b"), parse("nothing", PromptMode::Think));
    let answers = [answered(&right, None, 5), answered(&right, None, 15), answered(&broken, None, 40)];
    assert_eq!(rewards.values(&answers, 3).unwrap().values, [vec![1.0, 1.0, 0.0], vec![0.0, -0.5, -1.0]]);
}

#[test]
fn bounds_hold_and_a_value_that_is_no_number_names_its_reward() {
    struct Sick(f64);
    impl Reward for Sick {
        fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
            Ok(answers.iter().enumerate().map(|(place, _)| Some(if place == 1 { self.0 } else { 7.0 })).collect())
        }
    }
    let set = |value: f64| RewardSet::default().with("sick", Box::new(Sick(value)), false, [-1.0, 2.0]);
    let right = written("a: b");
    let answers = [answered(&right, None, 1), answered(&right, None, 1)];
    assert_eq!(set(-9.0).values(&answers, 2).unwrap().values, [vec![2.0, -1.0]]);
    let message = |value: f64| set(value).values(&answers, 2).unwrap_err().to_string();
    assert!(message(f64::NAN).contains("reward sick of answer 1 is NaN"), "{}", message(f64::NAN));
    assert!(message(f64::INFINITY).contains("inf"));
}

#[test]
fn a_gate_lets_through_what_has_the_path_right() {
    let truth = item("red shoe");
    let [right, broad, wrong] = ["A > b: blue shoe", "a > x: red shoe", "x > b: red shoe"].map(written);
    let answers = [&right, &broad, &wrong].map(|parsed| answered(parsed, Some(&truth), 3));
    let values = |settings: &[RewardSettings]| {
        RewardSet::new(settings, sources(&[])).unwrap().values(&answers, 3).unwrap().values
    };
    assert_eq!(values(&[RewardSettings::of(RewardKind::Category)]), [vec![1.0, 0.5, 0.0]]);
    let gated = |least: f64| {
        let gate = Some(Gate { by: RewardKind::Category, least });
        values(&[RewardSettings { gate, ..RewardSettings::of(RewardKind::Format) }])
    };
    assert_eq!(gated(1.0), [vec![1.0, 0.0, 0.0]]);
    assert_eq!(gated(0.5), [vec![1.0, 1.0, 0.0]]);
    // Nothing is known of an answer without a truth: the gate is open.
    let unknown = [answered(&wrong, None, 3)];
    let gate = Some(Gate { by: RewardKind::Category, least: 1.0 });
    let settings = [RewardSettings { gate, ..RewardSettings::of(RewardKind::Format) }];
    assert_eq!(RewardSet::new(&settings, sources(&[])).unwrap().values(&unknown, 1).unwrap().values, [vec![1.0]]);
}

#[test]
fn settings_that_make_no_reward_are_refused() {
    let refused = |settings: &[RewardSettings]| RewardSet::new(settings, sources(&[])).err().unwrap().to_string();
    let of = RewardSettings::of;
    assert!(refused(&[of(RewardKind::Length)]).contains("give tokens"));
    assert!(refused(&[of(RewardKind::Format), of(RewardKind::Format)]).contains("named twice"));
    assert!(refused(&[of(RewardKind::Simulated)]).contains("needs a simulator"));
    let nan = RewardSettings { floor: Some(f64::NAN), ..of(RewardKind::Format) };
    assert!(refused(&[nan]).contains("must be numbers"));
    let shut = RewardSettings { gated: Some(true), tokens: Some([1, 2]), ..of(RewardKind::Length) };
    assert!(refused(&[shut]).contains("worth more"));
    let floor = RewardSettings { floor: Some(1.0), cap: Some(0.0), ..of(RewardKind::Format) };
    assert!(refused(&[floor]).contains("floor must be below cap"));
    let scaled = RewardSettings { scale: Scale::MinmaxLog, ..of(RewardKind::Format) };
    assert!(refused(&[scaled]).contains("scale belongs to simulated alone"));
}

#[test]
fn a_slate_gains_by_breadth_and_loses_by_repetition() {
    let weights = SlateWeights { coverage: 0.5, redundancy: 0.25 };
    assert_eq!(slate(&[], &[], weights), 0.0);
    let broad = slate(&[(1, "a"), (2, "b")], &[1.0, 0.0], weights);
    assert_eq!(broad, 0.5 + 0.5);
    let twice = slate(&[(1, "a"), (1, "a")], &[1.0, 1.0], weights);
    assert_eq!(twice, 1.0 + 0.25 - 0.125);
}
