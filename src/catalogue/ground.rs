//! From the words of an answer to an item or a category path.
//!
//! An answer is `L1 > L2 > L3: title`, or a title alone. Words decide, not substrings: the item that shares most of
//! its title's words (rare words count more) wins if it shares enough of them.

use crate::event::Item;
use crate::prompt::split_answer;
use std::collections::{BTreeSet, HashMap};

/// Share of the weighted words that answer and title must have in common to be called the same item.
const MIN_OVERLAP: f64 = 0.6;
/// Words in more titles than this do not start a search (they still count in the score).
const MAX_POSTINGS: usize = 400;

/// What an answer was grounded to.
#[derive(Debug, Clone, PartialEq)]
pub enum Grounding {
    /// An item, with its categories (broadest first).
    Item {
        /// Its id.
        id: String,
        /// Its categories.
        categories: Vec<String>,
    },
    /// A known category path, as far as it is known.
    Category(Vec<String>),
    /// Nothing known.
    None,
}

/// Word index over titles, and the set of category paths.
#[derive(Debug, Default)]
pub struct Grounder {
    titles: Vec<Title>,
    rows: HashMap<String, usize>,
    /// Rows of items that were taken out.
    free: Vec<usize>,
    postings: HashMap<String, Vec<usize>>,
    /// Lower-cased `l1 > l2 > l3` prefixes → the path as written.
    paths: HashMap<String, Vec<String>>,
}

#[derive(Debug)]
struct Title {
    id: String,
    words: BTreeSet<String>,
    categories: Vec<String>,
}

/// Lower-case words of letters and digits.
fn words(text: &str) -> BTreeSet<String> {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(String::from).collect()
}

impl Grounder {
    /// Adds or replaces an item.
    pub fn insert(&mut self, item: &Item) {
        let title = Title { id: item.id.clone(), words: words(&item.title), categories: item.categories.clone() };
        for depth in 1..=item.categories.len() {
            let path = &item.categories[..depth];
            self.paths.insert(path_key(path), path.to_vec());
        }
        self.remove(&item.id);
        let row = self.free.pop().unwrap_or(self.titles.len());
        self.index_words(row, &title);
        self.rows.insert(item.id.clone(), row);
        match self.titles.get_mut(row) {
            Some(place) => *place = title,
            None => self.titles.push(title),
        }
    }

    /// Takes an item out; its category paths stay known.
    pub fn remove(&mut self, id: &str) {
        let Some(row) = self.rows.remove(id) else { return };
        for word in std::mem::take(&mut self.titles[row].words) {
            if let Some(list) = self.postings.get_mut(&word) {
                list.retain(|other| *other != row);
                if list.is_empty() {
                    self.postings.remove(&word);
                }
            }
        }
        self.free.push(row);
    }

    fn index_words(&mut self, row: usize, title: &Title) {
        for word in &title.words {
            self.postings.entry(word.clone()).or_default().push(row);
        }
    }

    /// Grounds an answer to an item that `usable` admits, else to a category path.
    pub fn ground(&self, answer: &str, usable: &dyn Fn(&str) -> bool) -> Grounding {
        let (path, title) = split_answer(answer);
        let known = (1..=path.len()).rev().find_map(|depth| self.paths.get(&path_key(&path[..depth])));
        // What stands before the colon may be the beginning of a title: it is a path where its first level is known.
        let whole = || known.is_none().then(|| self.best_title(&words(answer), usable)).flatten();
        if let Some(row) = self.best_title(&words(&title), usable).or_else(whole) {
            let title = &self.titles[row];
            return Grounding::Item { id: title.id.clone(), categories: title.categories.clone() };
        }
        known.map(|path| Grounding::Category(path.clone())).unwrap_or(Grounding::None)
    }

    /// The row with the largest weighted overlap (intersection over union), ties to the lowest row.
    fn best_title(&self, wanted: &BTreeSet<String>, usable: &dyn Fn(&str) -> bool) -> Option<usize> {
        let mut candidates: BTreeSet<usize> = BTreeSet::new();
        for word in wanted {
            if let Some(rows) = self.postings.get(word).filter(|rows| rows.len() <= MAX_POSTINGS) {
                candidates.extend(rows);
            }
        }
        let mut best: Option<(f64, usize)> = None;
        for row in candidates {
            let title = &self.titles[row];
            let shared: f64 = title.words.intersection(wanted).map(|word| self.weight(word)).sum();
            let all: f64 = title.words.union(wanted).map(|word| self.weight(word)).sum();
            let overlap = shared / all.max(f64::MIN_POSITIVE);
            if overlap >= MIN_OVERLAP && best.is_none_or(|(top, _)| overlap > top) && usable(&title.id) {
                best = Some((overlap, row));
            }
        }
        best.map(|(_, row)| row)
    }

    /// Rare words tell more: inverse document frequency.
    fn weight(&self, word: &str) -> f64 {
        let count = self.postings.get(word).map(Vec::len).unwrap_or(0);
        (1.0 + self.titles.len() as f64 / (1.0 + count as f64)).ln()
    }
}

fn path_key(path: &[impl AsRef<str>]) -> String {
    path.iter().map(|level| level.as_ref().to_lowercase()).collect::<Vec<_>>().join(" > ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ItemState;

    fn grounder() -> Grounder {
        let mut grounder = Grounder::default();
        for (id, title) in [("1", "Blue Steel Kettle 1.5 L"), ("2", "Red Steel Kettle"), ("3", "Garden Hose")] {
            grounder.insert(&Item {
                id: id.into(),
                title: title.into(),
                categories: vec!["Home".into(), "Kitchen".into()],
                brand: None,
                price: None,
                state: ItemState::Active,
            });
        }
        grounder
    }

    #[test]
    fn titles_ground_to_items_whatever_the_case_and_path() {
        let grounder = grounder();
        let id = |answer: &str| match grounder.ground(answer, &|_| true) {
            Grounding::Item { id, .. } => id,
            other => format!("{other:?}"),
        };
        assert_eq!(id("Home > Kitchen: red steel KETTLE"), "2");
        assert_eq!(id("Blue steel kettle, 1.5 l"), "1");
        assert_eq!(id("garden hose"), "3");
    }

    #[test]
    fn unknown_titles_fall_back_to_the_known_part_of_the_path() {
        let grounder = grounder();
        let path = |answer: &str| grounder.ground(answer, &|_| true);
        assert_eq!(
            path("home > kitchen > pans: copper pan"),
            Grounding::Category(vec!["Home".into(), "Kitchen".into()])
        );
        assert_eq!(path("Moon > Dust: x"), Grounding::None);
        assert_eq!(path(""), Grounding::None);
    }

    #[test]
    fn audit_08_an_item_taken_out_is_grounded_to_no_more_and_its_place_is_used_again() {
        let mut grounder = grounder();
        grounder.remove("2");
        grounder.remove("unknown");
        assert!(matches!(grounder.ground("red steel kettle", &|_| true), Grounding::None));
        let item = |id: &str, title: &str| Item { title: title.into(), ..Item::deleted(id) };
        for round in 0..10 {
            grounder.insert(&item("4", &format!("Copper Pan {round}")));
            grounder.remove("4");
        }
        grounder.insert(&item("2", "Green Lamp"));
        assert_eq!((grounder.titles.len(), grounder.free.len()), (3, 0));
        assert!(matches!(grounder.ground("green lamp", &|_| true), Grounding::Item { id, .. } if id == "2"));
        assert!(!grounder.postings.contains_key("copper"));
    }

    #[test]
    fn paused_items_are_never_grounded_to() {
        let grounder = grounder();
        assert_eq!(grounder.ground("Garden Hose", &|id| id != "3"), Grounding::None);
    }

    fn one_level_shop() -> Grounder {
        let mut grounder = Grounder::default();
        for (id, title, category) in [
            ("1", "guitar strings", Some("Music")),
            ("2", "oak stand", Some("Music")),
            ("3", "Starlight: return of the comet", None),
            ("4", "red pan", Some("Home")),
        ] {
            grounder.insert(&Item {
                id: id.into(),
                title: title.into(),
                categories: category.iter().map(|name| name.to_string()).collect(),
                brand: None,
                price: None,
                state: ItemState::Active,
            });
        }
        grounder
    }

    #[test]
    fn audit_15_an_answer_of_one_category_level_grounds_to_its_item_and_to_its_category() {
        let grounder = one_level_shop();
        let ground = |answer: &str| grounder.ground(answer, &|_| true);
        let item = |id: &str, category: &str| Grounding::Item { id: id.into(), categories: vec![category.into()] };
        assert_eq!(ground("Music: guitar strings"), item("1", "Music"));
        assert_eq!(ground("music: red pan"), item("4", "Home"), "the title decides");
        assert_eq!(ground("Music: a harp nobody sells"), Grounding::Category(vec!["Music".into()]));
        assert_eq!(ground("Moon: dust"), Grounding::None);
    }

    #[test]
    fn audit_15_a_title_with_a_colon_and_no_category_is_found_whole() {
        let grounder = one_level_shop();
        let found = grounder.ground("Starlight: return of the comet", &|_| true);
        assert_eq!(found, Grounding::Item { id: "3".into(), categories: Vec::new() });
    }
}
