//! Telling words: what a title says that most titles do not. Reasons for data whose true reasons nobody knows.
//!
//! Callers: `examples`.

use crate::reason::Reason;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use taiji::event::Item;

/// A word in a larger share of the titles tells nothing.
const MAX_SHARE: f64 = 0.05;
/// Words named in one reason.
const MAX_WORDS: usize = 3;

/// How many titles each word is in.
#[derive(Debug, Clone)]
pub struct WordTable {
    titles: usize,
    frequency: HashMap<String, usize>,
}

impl WordTable {
    /// Counts the words of all titles.
    pub fn new(items: &[Item]) -> Self {
        let mut frequency = HashMap::new();
        for item in items {
            for word in words(&item.title) {
                *frequency.entry(word).or_insert(0) += 1;
            }
        }
        WordTable { titles: items.len(), frequency }
    }

    /// The words the target's title shares with the history's, rarest first among the equally often shared.
    pub fn shared(&self, target: &str, history: &[&str]) -> Option<Reason> {
        let wanted: BTreeSet<String> = words(target).into_iter().filter(|word| self.tells(word)).collect();
        let mut hits: BTreeMap<&str, usize> = BTreeMap::new();
        let mut count = 0;
        for title in history {
            let present = words(title);
            let shared: Vec<&String> = wanted.iter().filter(|word| present.contains(*word)).collect();
            count += usize::from(!shared.is_empty());
            for word in shared {
                *hits.entry(word).or_insert(0) += 1;
            }
        }
        if hits.is_empty() {
            return None;
        }
        let mut ranked: Vec<(&str, usize)> = hits.into_iter().collect();
        ranked.sort_by_key(|(word, hit)| (std::cmp::Reverse(*hit), self.frequency.get(*word).copied(), *word));
        let named = ranked.into_iter().take(MAX_WORDS).map(|(word, _)| word.to_string()).collect();
        Some(Reason::SharedWords { words: named, count })
    }

    /// In at least two titles (else it is a model number) and not in every tenth.
    fn tells(&self, word: &str) -> bool {
        let frequency = self.frequency.get(word).copied().unwrap_or(0);
        let most = ((self.titles as f64 * MAX_SHARE) as usize).max(3);
        (2..=most).contains(&frequency)
    }
}

/// Lower-case words of at least three letters.
fn words(title: &str) -> BTreeSet<String> {
    title
        .split(|character: char| !character.is_alphabetic())
        .filter(|word| word.chars().count() >= 3)
        .map(str::to_lowercase)
        .filter(|word| !matches!(word.as_str(), "the" | "and" | "for" | "with" | "from" | "new" | "pack" | "set"))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn shared_words_are_found_and_counted() {
        let item = |title: &str| Item {
            id: title.into(),
            title: title.into(),
            categories: vec![],
            brand: None,
            price: None,
            state: Default::default(),
        };
        let titles = ["Elixir guitar strings", "Guitar capo", "Drum sticks", "Drum key", "Steel strings XR9"];
        let table = WordTable::new(&titles.map(item));
        let reason = table.shared("Steel strings XR9", &["Elixir guitar strings", "Drum key"]);
        assert_eq!(reason, Some(Reason::SharedWords { words: vec!["strings".into()], count: 1 }));
        assert_eq!(table.shared("Drum key", &["Guitar capo"]), None);
    }
}
