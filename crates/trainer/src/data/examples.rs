//! [`Dataset`] → training and test examples: what the service would have seen, and what the user bought next.
//!
//! Targets and their split are those of `targets`. True reasons are taken where the world gives them; otherwise they are read off titles, categories and brands.
//! Callers: `stages`, `evaluate`.

use super::shared_words::WordTable;
use super::targets::{DEFAULT_TARGET, Split, Target, targets_of};
use super::{Dataset, UserRow};
use crate::reason::{Reason, reasoning};
use rand::Rng;
use taiji::event::Item;
use taiji::prompt::{PromptInput, PromptMode, answer_text, completion};

/// What becomes an example.
#[derive(Debug, Clone, PartialEq)]
pub struct ExampleSettings {
    /// Which targets.
    pub split: Split,
    /// The action whose items are predicted.
    pub target_action: String,
    /// Engagements with text that must come before a target.
    pub min_history: usize,
    /// Most examples a user, the newest.
    pub max_per_user: usize,
    /// Most engagements in a prompt; the prompt schema may cut further.
    pub max_engagements: usize,
    /// Leaves out targets that nothing in the history points to. A model shown many of them learns to answer everyone
    /// with the most popular item, since no better answer can be known.
    pub informative_only: bool,
}

impl ExampleSettings {
    /// Purchases after at least three engagements, at most eight a user, histories of 50.
    pub fn new(split: Split) -> Self {
        ExampleSettings {
            split,
            target_action: DEFAULT_TARGET.to_string(),
            min_history: 3,
            max_per_user: 8,
            max_engagements: 50,
            informative_only: false,
        }
    }
}

/// One example before wording: the same source gives many different texts.
#[derive(Debug, Clone, PartialEq)]
pub struct SftSource {
    /// Whose.
    pub user_id: String,
    /// Exactly what serving would have rendered.
    pub prompt: PromptInput,
    /// Why the target follows.
    pub reasons: Vec<Reason>,
    /// What was bought.
    pub target: Item,
}

impl SftSource {
    /// The answer the model should give.
    pub fn answer(&self, max_title_chars: usize) -> String {
        answer_text(&self.target.categories, &self.target.title, max_title_chars)
    }

    /// One of many ways to say the reasons.
    pub fn reasoning(&self, random: &mut impl Rng) -> String {
        reasoning(&self.reasons, &self.target.categories, random)
    }

    /// What the model should write after a prompt of this mode.
    pub fn completion(&self, mode: PromptMode, max_title_chars: usize, random: &mut impl Rng) -> String {
        let reasoning = match mode {
            PromptMode::Think => self.reasoning(random),
            PromptMode::NoThink => String::new(),
        };
        completion(&reasoning, &self.answer(max_title_chars), mode)
    }
}

/// All examples of one split, by user and time.
pub fn build_examples(dataset: &Dataset, settings: &ExampleSettings) -> Vec<SftSource> {
    let words = WordTable::new(&dataset.items);
    let mut examples = Vec::new();
    for user in &dataset.users {
        let all = targets_of(dataset, user, &settings.target_action);
        let mut kept: Vec<SftSource> = settings
            .split
            .of(&all)
            .iter()
            .rev()
            .filter_map(|target| example(dataset, user, target, settings, &words))
            .take(settings.max_per_user)
            .collect();
        kept.reverse();
        examples.append(&mut kept);
    }
    examples
}

fn example(
    dataset: &Dataset,
    user: &UserRow,
    target: &Target,
    settings: &ExampleSettings,
    words: &WordTable,
) -> Option<SftSource> {
    // A target without text cannot be an answer.
    let item = dataset.items.get(target.item?)?.clone();
    let prompt = dataset.prompt_input(user, target.cut, settings.max_engagements);
    if prompt.engagements.len() < settings.min_history {
        return None;
    }
    let reasons = target.reasons.clone().unwrap_or_else(|| derived_reasons(&item, &prompt, words));
    if settings.informative_only && reasons.contains(&Reason::New) {
        return None;
    }
    Some(SftSource { user_id: user.user_id.clone(), prompt, reasons, target: item })
}

/// Engagements looked at for a derived reason.
const WINDOW: usize = 10;
/// Newest titles named, and words of each.
const LATELY: usize = 2;
const LATELY_WORDS: usize = 5;

/// Reasons for data that states none: what came last, the interest the history shows, the words it shares with the target.
fn derived_reasons(target: &Item, prompt: &PromptInput, words: &WordTable) -> Vec<Reason> {
    let recent = &prompt.engagements[..prompt.engagements.len().min(WINDOW)];
    let mut reasons = Vec::new();
    for depth in (1..=target.categories.len()).rev() {
        let path = &target.categories[..depth];
        let count = recent.iter().filter(|item| item.categories.starts_with(path)).count();
        if count > 0 {
            reasons.push(Reason::Repeated { categories: path.to_vec(), count, of: recent.len() });
            break;
        }
    }
    let titles: Vec<&str> = recent.iter().map(|item| item.title.as_str()).collect();
    reasons.extend(words.shared(&target.title, &titles));
    let brand = target.brand.as_deref().filter(|brand| brand.chars().count() >= 3 && *brand != "Unknown");
    let known = brand.filter(|brand| titles.iter().any(|title| title.contains(brand)));
    reasons.extend(known.map(|brand| Reason::Brand { brand: brand.to_string() }));
    if reasons.is_empty() {
        reasons.push(Reason::New);
    }
    let first_words = |title: &&str| title.split_whitespace().take(LATELY_WORDS).collect::<Vec<_>>().join(" ");
    reasons.insert(0, Reason::Lately { titles: titles.iter().take(LATELY).map(first_words).collect() });
    reasons
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use serde_json::json;
    use taiji::event::{ActionTable, Event};

    fn dataset(purchases: usize) -> Dataset {
        let items = (0..20).map(|id| {
            serde_json::from_value(json!({"id": id.to_string(), "title": format!("thing {id}"), "categories": ["A"]}))
                .unwrap()
        });
        let events = (0..purchases).map(|id| -> Event {
            serde_json::from_value(json!({"event_id": id.to_string(), "user_id": "u", "item_id": id.to_string(), "action": "purchase", "ts_ms": 1_500_000_000_000i64 + id as i64})).unwrap()
        });
        Dataset::from_records(items.collect(), vec![], events, &ActionTable::default())
    }

    #[test]
    fn leave_one_out_gives_each_target_to_one_split_and_no_prompt_sees_its_target() {
        let data = dataset(9);
        let titles = |split| -> Vec<String> {
            let examples = build_examples(&data, &ExampleSettings::new(split));
            for example in &examples {
                assert!(example.prompt.engagements.iter().all(|item| item.title != example.target.title));
                let newest: usize = example.prompt.engagements[0].title[6..].parse().unwrap();
                assert_eq!(format!("thing {}", newest + 1), example.target.title);
            }
            examples.into_iter().map(|example| example.target.title).collect()
        };
        assert_eq!(titles(Split::Train), ["thing 3", "thing 4", "thing 5", "thing 6"]);
        assert_eq!(titles(Split::Validation), ["thing 7"]);
        assert_eq!(titles(Split::Test), ["thing 8"]);
    }
}
