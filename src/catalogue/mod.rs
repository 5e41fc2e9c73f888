//! Items: the bundle's part plus an overlay of what was posted since; and grounding of text to them.
//!
//! In: `catalogue.parquet`, the store's item feed. Out: titles for prompts, grounded items and categories for features.
//! Callers: `refresh` (lookup, ground), `bundle` (load), `taiji_trainer::index` (write).

mod file;
mod ground;

pub use file::{CatalogueRow, read_catalogue, write_catalogue};
pub use ground::{Grounder, Grounding};

use crate::event::{Item, ItemState};
use crate::store::{FeatureStore, FeedCursor, StoreError};
use parking_lot::RwLock;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

/// Why an item is not taken.
pub const NO_ROOM: &str = "the catalogue has no room: delete items, or raise catalogue.max_items";

/// Items read from the overlay feed in one call.
const PAGE: usize = 1000;

/// The catalogue file cannot be used.
#[derive(Debug, Error)]
#[error("catalogue {path}: {message}")]
pub struct CatalogueError {
    /// Which file.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// All items a process knows; shared by `Arc`.
pub struct Catalogue {
    base: HashMap<String, CatalogueRow>,
    base_grounder: Grounder,
    overlay: RwLock<Overlay>,
    /// Most items of the overlay; 0 = no limit.
    max_items: usize,
}

#[derive(Default)]
struct Overlay {
    items: HashMap<String, Arc<Item>>,
    /// How many of them are marks of deleted ones.
    deleted: usize,
    grounder: Grounder,
    cursor: FeedCursor,
}

impl Overlay {
    /// Of a deleted item the mark stays: the bundle may hold it.
    fn apply(&mut self, item: Item) {
        match item.is_deleted() {
            true => self.grounder.remove(&item.id),
            false => self.grounder.insert(&item),
        }
        self.deleted += usize::from(item.is_deleted());
        let replaced = self.items.insert(item.id.clone(), Arc::new(item));
        self.deleted -= usize::from(replaced.is_some_and(|item| item.is_deleted()));
    }
}

impl Catalogue {
    /// Loads a generation's `catalogue.parquet`.
    pub fn load(path: &Path) -> Result<Catalogue, CatalogueError> {
        Ok(Self::from_rows(read_catalogue(path)?))
    }

    /// A catalogue of the given rows.
    pub fn from_rows(rows: Vec<CatalogueRow>) -> Catalogue {
        let mut base_grounder = Grounder::default();
        for row in &rows {
            base_grounder.insert(&row.item);
        }
        let base = rows.into_iter().map(|row| (row.item.id.clone(), row)).collect();
        Catalogue { base, base_grounder, overlay: RwLock::new(Overlay::default()), max_items: 0 }
    }

    /// The same with room for so many items in the overlay; 0 = no limit.
    pub fn limited_to(self, max_items: usize) -> Catalogue {
        Catalogue { max_items, ..self }
    }

    /// Whether the overlay has a limit.
    pub fn is_limited(&self) -> bool {
        self.max_items > 0
    }

    /// The item of that id; the overlay wins over the bundle. `None` for one that was deleted, too.
    pub fn get(&self, id: &str) -> Option<Arc<Item>> {
        if let Some(item) = self.overlay.read().items.get(id) {
            return Some(item.clone()).filter(|item| !item.is_deleted());
        }
        self.base.get(id).map(|row| row.item.clone())
    }

    /// Distinct users who used the item when the bundle was made; 0 for items it does not hold.
    pub fn distinct_users(&self, id: &str) -> u32 {
        self.base.get(id).map(|row| row.distinct_users).unwrap_or(0)
    }

    /// What an answer talks about: an item by title, else a category path, else nothing.
    pub fn ground(&self, answer: &str) -> Grounding {
        let overlay = self.overlay.read();
        let active = |id: &str| overlay.items.get(id).is_some_and(|item| item.state == ItemState::Active);
        let found = overlay.grounder.ground(answer, &active);
        if matches!(found, Grounding::Item { .. }) {
            return found;
        }
        // An item the overlay replaced is known by its new title only.
        let untouched = |id: &str| {
            !overlay.items.contains_key(id) && self.base.get(id).is_some_and(|row| row.item.state == ItemState::Active)
        };
        match self.base_grounder.ground(answer, &untouched) {
            Grounding::None => found,
            grounded => grounded,
        }
    }

    /// Applies overlay changes since the last call; returns how many.
    pub async fn catch_up(&self, store: &dyn FeatureStore) -> Result<usize, StoreError> {
        let mut applied = 0;
        loop {
            let cursor = self.overlay.read().cursor.clone();
            let page = store.items_after(&cursor, PAGE).await?;
            applied += page.entries.len();
            let mut overlay = self.overlay.write();
            for item in page.entries {
                overlay.apply(item);
            }
            overlay.cursor = page.cursor;
            if page.is_last {
                return Ok(applied);
            }
        }
    }

    /// Positions of those items the overlay has no room for. What it knows already is only replaced. Deleted items make room,
    /// but their marks stay in the feed: of both together there are at most twice as many.
    pub fn without_room<'a>(&self, items: impl IntoIterator<Item = &'a Item>) -> BTreeSet<usize> {
        let most = self.max_items;
        let overlay = self.overlay.read();
        let (all, living) = (overlay.items.len(), overlay.items.len() - overlay.deleted);
        let mut left = most.saturating_sub(living).min(most.saturating_mul(2).saturating_sub(all));
        let mut coming: HashSet<&str> = HashSet::new();
        let mut refused = BTreeSet::new();
        for (position, item) in items.into_iter().enumerate() {
            if most == 0 || overlay.items.contains_key(&item.id) || coming.contains(item.id.as_str()) {
                continue;
            }
            match left.checked_sub(1) {
                Some(less) => {
                    left = less;
                    coming.insert(&item.id);
                }
                None => {
                    refused.insert(position);
                }
            }
        }
        refused
    }

    /// Items in the (bundle, overlay) part.
    pub fn sizes(&self) -> (usize, usize) {
        let overlay = self.overlay.read();
        (self.base.len(), overlay.items.len() - overlay.deleted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str, title: &str) -> Item {
        Item { title: title.into(), state: ItemState::Active, ..Item::deleted(id) }
    }

    fn base() -> Catalogue {
        let rows = [item("b1", "Blue Kettle"), item("b2", "Red Lamp")];
        let rows = rows.into_iter().map(|item| CatalogueRow { item: Arc::new(item), distinct_users: 9 });
        Catalogue::from_rows(rows.collect())
    }

    #[test]
    fn audit_08_a_deleted_item_is_gone_from_bundle_and_overlay_until_it_is_posted_again() {
        let catalogue = base();
        let apply = |item: Item| catalogue.overlay.write().apply(item);
        apply(item("o1", "Garden Hose"));
        assert_eq!(catalogue.sizes(), (2, 1));
        for (id, title) in [("o1", "garden hose"), ("b1", "blue kettle")] {
            assert!(matches!(catalogue.ground(title), Grounding::Item { .. }), "{title}");
            apply(Item::deleted(id));
            apply(Item::deleted(id));
            assert!(catalogue.get(id).is_none(), "{id}");
            assert!(!matches!(catalogue.ground(title), Grounding::Item { .. }), "{title}");
        }
        assert_eq!(catalogue.sizes(), (2, 0));
        apply(item("b1", "Blue Kettle"));
        assert_eq!(catalogue.sizes(), (2, 1));
        assert!(catalogue.get("b1").is_some() && matches!(catalogue.ground("blue kettle"), Grounding::Item { .. }));
    }

    #[test]
    fn audit_08_the_overlay_has_room_for_so_many_and_deleting_makes_some() {
        let catalogue = base().limited_to(2);
        let apply = |item: Item| catalogue.overlay.write().apply(item);
        let refused = |ids: &[&str]| catalogue.without_room(&ids.iter().map(|id| item(id, "x")).collect::<Vec<_>>());
        assert_eq!(refused(&["a", "b", "a", "c"]), BTreeSet::from([3]));
        apply(item("a", "A"));
        apply(item("b", "B"));
        assert_eq!(refused(&["a", "b", "c"]), BTreeSet::from([2]));
        apply(Item::deleted("a"));
        assert_eq!(refused(&["c", "d"]), BTreeSet::from([1]));
        // Marks of deleted items are bounded, too.
        for id in ["c", "d"] {
            apply(item(id, "x"));
            apply(Item::deleted(id));
        }
        assert_eq!(refused(&["e"]), BTreeSet::from([0]));
        assert!(refused(&["a", "b"]).is_empty(), "an id that is known needs no room");
        assert!(base().without_room(&[item("e", "x")]).is_empty(), "no limit");
    }
}
