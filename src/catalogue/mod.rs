//! Items: the bundle's part plus an overlay of what was posted since; and grounding of text to them.
//!
//! In: `catalogue.parquet`, the store's item feed. Out: titles for prompts, grounded items and categories for features.
//! Callers: `refresh` (lookup, ground), `bundle` (load), `taiji_trainer::index` (write).

mod file;
mod ground;

pub use file::{CatalogueRow, read_catalogue, write_catalogue};
pub use ground::Grounding;

use crate::event::{Item, ItemState};
use crate::store::{FeatureStore, FeedCursor, StoreError};
use ground::Grounder;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use thiserror::Error;

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
}

#[derive(Default)]
struct Overlay {
    items: HashMap<String, Arc<Item>>,
    grounder: Grounder,
    cursor: FeedCursor,
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
        Catalogue { base, base_grounder, overlay: RwLock::new(Overlay::default()) }
    }

    /// The item of that id; the overlay wins over the bundle.
    pub fn get(&self, id: &str) -> Option<Arc<Item>> {
        if let Some(item) = self.overlay.read().items.get(id) {
            return Some(item.clone());
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
                overlay.grounder.insert(&item);
                overlay.items.insert(item.id.clone(), Arc::new(item));
            }
            overlay.cursor = page.cursor;
            if page.is_last {
                return Ok(applied);
            }
        }
    }

    /// Items in the (bundle, overlay) part.
    pub fn sizes(&self) -> (usize, usize) {
        (self.base.len(), self.overlay.read().items.len())
    }
}
