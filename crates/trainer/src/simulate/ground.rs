//! Free text → an item of the category that it names.
//!
//! In: an answer, `L1 > L2 > L3: title` or a title. Out: the item with the nearest title in the deepest category of the answer's path that has
//! one near enough; without a known path, in the whole catalogue. What is near enough is the service's to say (`catalogue`'s grounder): an
//! answer is worth what serving would make of it, or nothing.

use std::collections::{HashMap, HashSet};
use taiji::catalogue::{Grounder, Grounding};
use taiji::event::Item;
use taiji::prompt::split_answer;

/// The titles and categories of a catalogue.
#[derive(Default)]
pub struct CategoryGrounder {
    words: Grounder,
    /// Item id → index, and the categories in lower case.
    items: HashMap<String, (usize, Vec<String>)>,
    /// First levels of category, in lower case.
    tops: HashSet<String>,
}

fn lower(path: &[String]) -> Vec<String> {
    path.iter().map(|level| level.trim().to_lowercase()).collect()
}

impl CategoryGrounder {
    /// Of a catalogue; items are known by their place in it.
    pub fn new(items: &[Item]) -> Self {
        let mut grounder = Self::default();
        for (place, item) in items.iter().enumerate() {
            grounder.words.insert(item);
            let categories = lower(&item.categories);
            grounder.tops.extend(categories.first().cloned());
            grounder.items.insert(item.id.clone(), (place, categories));
        }
        grounder
    }

    /// The item that an answer names; `None` where there is none.
    pub fn ground(&self, answer: &str) -> Option<usize> {
        let (path, _) = split_answer(answer);
        let path = lower(&path);
        let within = |depth: usize| {
            let path = path.get(..depth).unwrap_or_default();
            let usable = |id: &str| self.items.get(id).is_some_and(|(_, categories)| categories.starts_with(path));
            match self.words.ground(answer, &usable) {
                Grounding::Item { id, .. } => self.items.get(&id).map(|(place, _)| *place),
                Grounding::Category(_) | Grounding::None => None,
            }
        };
        let known = path.first().is_some_and(|top| self.tops.contains(top));
        // A path whose first level nobody has is no path: it is the beginning of a title.
        let least = usize::from(known);
        let most = if known { path.len() } else { 0 };
        (least..=most).rev().find_map(within)
    }
}
