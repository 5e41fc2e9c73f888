//! What rules make of the prompts of this world: copying, counting, every fact by itself, and a reader who knows what follows
//! from what. A model that reasons has to beat the first four; the last is what the prompts allow.
//!
//! In: users to fit on ([`Dataset`]), then [`PromptInput`]s. Out: [`Guess`]es. Callers: `judge`, the world test.

mod counting;
mod reader;
mod shown;
mod single_facts;

use super::catalogue::{Tables, path};
use crate::data::{Dataset, ExampleSettings, Split, build_examples};
use counting::Transitions;
use reader::Reader;
use shown::{LINES, Shown, leaf_of};
use single_facts::{Detail, Logit};
use taiji::prompt::PromptInput;

#[cfg(test)]
pub(super) use counting::{by_recency, newest_purchase};
#[cfg(test)]
pub(super) use shown::Fact;

/// Examples of a person that are fitted on: the newest, as the model is trained on.
const EXAMPLES: usize = 3;

/// What the prompt shows, and what was bought.
pub(super) struct Case {
    pub shown: Shown,
    pub target: usize,
}

impl Case {
    /// `None` where prompt or target are of another world.
    pub(super) fn new(prompt: &PromptInput, bought: &[String]) -> Option<Case> {
        Some(Case { shown: Shown::read(prompt)?, target: leaf_of(bought)? })
    }
}

/// What one rule answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guess {
    /// Its name.
    pub rule: &'static str,
    /// Of the leaf, broadest first.
    pub path: Vec<String>,
}

/// All rules, fitted.
pub struct Rules {
    counting: Transitions,
    facts: Logit,
    places: Logit,
    reader: Reader,
}

impl Rules {
    /// Fitted on the purchases that a model may be trained on. `world_seed`: of the users; `None` where nothing can be fitted on.
    pub fn fitted(dataset: &Dataset, world_seed: u64) -> Option<Rules> {
        let settings =
            ExampleSettings { max_per_user: EXAMPLES, max_engagements: LINES, ..ExampleSettings::new(Split::Train) };
        let sources = build_examples(dataset, &settings);
        let cases: Vec<Case> =
            sources.iter().filter_map(|source| Case::new(&source.prompt, &source.target.categories)).collect();
        (!cases.is_empty()).then(|| Rules::of(&cases, world_seed))
    }

    pub(super) fn of(cases: &[Case], world_seed: u64) -> Rules {
        Rules {
            counting: Transitions::tuned(cases),
            facts: Logit::fitted(cases, Detail::Facts),
            places: Logit::fitted(cases, Detail::Places),
            reader: Reader::fitted(Tables::new(world_seed), cases),
        }
    }

    /// What each rule answers, always in this order; `None` for a prompt of another world.
    pub fn guesses(&self, prompt: &PromptInput) -> Option<[Guess; 5]> {
        let leaves = self.leaves(&Shown::read(prompt)?);
        Some(std::array::from_fn(|place| Guess { rule: RULES[place], path: path(leaves[place]) }))
    }

    pub(super) fn leaves(&self, shown: &Shown) -> [usize; 5] {
        let singly = [&self.facts, &self.places].map(|logit| logit.answer(shown));
        [shown.lines[0].leaf, self.counting.answer(shown), singly[0], singly[1], self.reader.answer(shown)]
    }
}

/// Names of the rules.
pub(super) const RULES: [&str; 5] =
    ["newest line", "best counting rule", "single-fact logit", "single-fact logit with places", "reader"];

/// Share of the cases answered right.
pub(super) fn accuracy(cases: &[Case], answer: impl Fn(&Shown) -> usize) -> f64 {
    cases.iter().filter(|case| answer(&case.shown) == case.target).count() as f64 / cases.len() as f64
}
