//! What a teacher is given and what is kept of what it wrote.
//!
//! In: [`Origin`]s (an example before its wording), a teacher's texts. Out: [`Group`]s, a prompt with its reasons. A text is refused
//! when its tags are wrong, when it gives the answer away or says that it was told, and when it repeats another one.
//! Callers: the stages `reason`, `score`, `filter`.

use super::Reason;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use taiji::prompt::{ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN};

/// An example before its wording, one line of `*.sources.jsonl` in a folder of examples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Whose.
    pub user_id: String,
    /// As serving renders it.
    pub prompt: String,
    /// Of what was bought next, broadest first.
    pub categories: Vec<String>,
    /// Of what was bought next.
    pub title: String,
    /// Why: true ones in a generated world, else derived.
    pub reasons: Vec<Reason>,
}

/// A prompt, what was bought next, and the reasons that are left for it; perhaps none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Whose.
    pub user_id: String,
    /// As serving renders it.
    pub prompt: String,
    /// Broadest first.
    pub categories: Vec<String>,
    /// Of what was bought next.
    pub title: String,
    /// Who wrote the reasons.
    pub teacher: String,
    /// Without tags.
    pub reasons: Vec<String>,
}

/// Why a text is no reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nothing is left without the tags.
    Empty,
    /// Tags inside the text, or one that is not closed.
    Tags,
    /// It says that the answer was known.
    Told,
    /// It has so much of the title that the answer can be copied.
    Title,
    /// Nearly all its words are those of an earlier one for the same prompt.
    Repeat,
}

/// How many texts were refused, why, and the first few of each kind.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Refusals {
    /// By cause.
    pub counts: BTreeMap<Refusal, usize>,
    /// By cause: text and title.
    pub examples: BTreeMap<Refusal, Vec<(String, String)>>,
}

/// Examples of each kind that are shown.
const SHOWN: usize = 3;
/// Words of the title in a row, or their share, that give it away.
const RUN_OF_WORDS: usize = 4;
const RUN_SHARE: f64 = 0.6;

/// What only somebody says who knows the answer.
const TOLD: [&str; 16] = [
    "true next",
    "actual next",
    "given next item",
    "given answer",
    "given item",
    "answer is given",
    "answer given",
    "item is given",
    "correct answer",
    "ground truth",
    "i was told",
    "we were told",
    "we are told",
    "we know they bought",
    "since they bought it next",
    "as provided in the prompt",
];

/// Takes a teacher's text out of its tags: `<think>…</think>` with or without the opening one, and whatever follows the answer's tag
/// is left away, since the answer is known.
pub fn untagged(text: &str) -> Result<String, Refusal> {
    let trimmed = text.trim();
    let opened = trimmed.strip_prefix(THINK_OPEN);
    let body = opened.unwrap_or(trimmed);
    let inside = match body.split_once(THINK_CLOSE) {
        Some((inside, rest)) => {
            let rest = rest.trim();
            let is_answer = rest.is_empty() || (rest.starts_with(ANSWER_OPEN) && rest.ends_with(ANSWER_CLOSE));
            is_answer.then_some(inside).ok_or(Refusal::Tags)?
        }
        // A reply that was cut.
        None if opened.is_some() => return Err(if body.trim().is_empty() { Refusal::Empty } else { Refusal::Tags }),
        None => body,
    };
    if [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE].iter().any(|tag| inside.contains(tag)) {
        return Err(Refusal::Tags);
    }
    // One line, as everything a prompt shows.
    let plain = inside.split_whitespace().collect::<Vec<_>>().join(" ");
    if plain.is_empty() { Err(Refusal::Empty) } else { Ok(plain) }
}

/// Whether a reason says that the answer was known, or has the title in it.
pub fn leak(reason: &str, title: &str) -> Option<Refusal> {
    let (said, wanted) = (words(reason), words(title));
    let joined = said.join(" ");
    if TOLD.iter().any(|phrase| joined.contains(phrase)) {
        return Some(Refusal::Told);
    }
    let run = longest_run(&said, &wanted);
    let is_told = run >= RUN_OF_WORDS || (run > 0 && run as f64 >= RUN_SHARE * wanted.len() as f64);
    is_told.then_some(Refusal::Title)
}

/// Lower-case words without marks.
fn words(text: &str) -> Vec<String> {
    let letters = |c: char| !(c.is_alphanumeric() || c == '-');
    text.split(letters).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Length of the longest run of words that both have.
fn longest_run(left: &[String], right: &[String]) -> usize {
    let mut longest = 0;
    let mut before = vec![0; right.len() + 1];
    for word in left {
        let mut here = vec![0; right.len() + 1];
        for (place, other) in right.iter().enumerate() {
            if word == other {
                here[place + 1] = before[place] + 1;
                longest = longest.max(here[place + 1]);
            }
        }
        before = here;
    }
    longest
}

/// Share of the words of both that both have.
pub fn jaccard(left: &str, right: &str) -> f64 {
    let set = |text: &str| words(text).into_iter().collect::<BTreeSet<String>>();
    let (left, right) = (set(left), set(right));
    let both = left.intersection(&right).count();
    let all = left.len() + right.len() - both;
    if all == 0 { 1.0 } else { both as f64 / all as f64 }
}

/// The texts of one prompt that are reasons, with their places among what was written; the others are counted. `same`: a text whose
/// Jaccard index with an earlier one is above this repeats it; with 1 nothing does.
pub fn sift(texts: &[String], title: &str, same: f64, refusals: &mut Refusals) -> Vec<(usize, String)> {
    let mut kept: Vec<(usize, String)> = Vec::new();
    for (place, text) in texts.iter().enumerate() {
        let repeats = |plain: &String| kept.iter().any(|(_, other)| jaccard(other, plain) > same);
        let checked = untagged(text).and_then(|plain| match leak(&plain, title) {
            Some(refusal) => Err(refusal),
            None if repeats(&plain) => Err(Refusal::Repeat),
            None => Ok(plain),
        });
        match checked {
            Ok(plain) => kept.push((place, plain)),
            Err(refusal) => refusals.note(refusal, text, title),
        }
    }
    kept
}

impl Refusals {
    fn note(&mut self, refusal: Refusal, text: &str, title: &str) {
        *self.counts.entry(refusal).or_default() += 1;
        let shown = self.examples.entry(refusal).or_default();
        if shown.len() < SHOWN {
            shown.push((text.to_string(), title.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_are_taken_off_and_broken_ones_refused() {
        for text in
            ["because", "<think>because</think>", "because\n</think>", "<think> because</think>\n<answer>A: t</answer>"]
        {
            assert_eq!(untagged(text), Ok("because".to_string()), "{text}");
        }
        for text in [
            "a<think>b</think>",
            "<think>a",
            "a</think>b",
            "a<answer>b",
            "<think>a</think><answer>b",
            "a</think>b</think>",
        ] {
            assert_eq!(untagged(text), Err(Refusal::Tags), "{text}");
        }
        assert_eq!(untagged("<think> \n</think>"), Err(Refusal::Empty));
    }

    #[test]
    fn what_gives_the_answer_away_is_found() {
        let title = "premium Zenvolt wireless Camera";
        for (reason, refusal) in [
            ("they want the Premium Zenvolt wireless camera", Some(Refusal::Title)),
            ("a zenvolt, wireless camera is next", Some(Refusal::Title)),
            ("the correct answer is a camera", Some(Refusal::Told)),
            ("As the TRUE next item is a camera, they like it", Some(Refusal::Told)),
            ("on live the set decides . Cameras bought and Lenses not yet .", None),
            ("they like Zenvolt and look at a camera", None),
        ] {
            assert_eq!(leak(reason, title), refusal, "{reason}");
        }
        assert_eq!(leak("so next comes Tents .", "Tents"), Some(Refusal::Title));
    }

    #[test]
    fn repeats_are_counted_with_what_they_repeat() {
        let texts = ["one two three", "Three, two one", "one two four", "<think>"].map(str::to_string);
        let mut refusals = Refusals::default();
        let kept = sift(&texts, "t", 0.9, &mut refusals);
        assert_eq!(kept, [(0, "one two three".to_string()), (2, "one two four".to_string())]);
        assert_eq!(refusals.counts, BTreeMap::from([(Refusal::Repeat, 1), (Refusal::Empty, 1)]));
        assert_eq!(sift(&texts[..2], "t", 1.0, &mut refusals).len(), 2);
    }

    proptest! {
        /// Whatever is kept has no tag and not the whole title, and places rise.
        #[test]
        fn what_is_kept_is_clean(texts in prop::collection::vec("([a-c ]|<think>|</think>|<answer>|</answer>){0,8}", 0..6)) {
            let mut refusals = Refusals::default();
            let kept = sift(&texts, "a b", 0.9, &mut refusals);
            prop_assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for (_, text) in &kept {
                prop_assert!(!text.contains('<') && !text.is_empty() && leak(text, "a b").is_none());
            }
            prop_assert_eq!(kept.len() + refusals.counts.values().sum::<usize>(), texts.len());
        }
    }
}
