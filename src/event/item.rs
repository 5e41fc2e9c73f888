//! Catalogue items as they arrive over HTTP or from a file.

use super::decode::{FieldError, check_id};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest title, in bytes; prompts cut shorter.
pub const MAX_TITLE_BYTES: usize = 1024;
/// Title of a deleted item in the overlay: a control character, which no client may send. Programs before deletions were read
/// such an item as a paused one without a name.
const DELETED_TITLE: &str = "\u{7f}";
/// Most category levels an item may have.
pub const MAX_CATEGORIES: usize = 3;

/// Whether an item may be recommended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ItemState {
    /// May be recommended and grounded to.
    #[default]
    Active,
    /// Known, shown in histories, never recommended.
    Paused,
}

/// One catalogue item (DESIGN 5.1): `POST /v1/items` and `items.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// 1–128 bytes, no control characters.
    pub id: String,
    /// What it is called, at most [`MAX_TITLE_BYTES`].
    pub title: String,
    /// Up to three levels, broadest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Maker, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// In the shop's own currency; not negative.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<f64>,
    /// Active unless said otherwise.
    #[serde(default)]
    pub state: ItemState,
}

/// An item as the store keeps it: fields that a later version adds are passed over, while at the door they are an error.
#[derive(Deserialize)]
#[serde(remote = "Item")]
struct StoredItem {
    id: String,
    title: String,
    #[serde(default)]
    categories: Vec<String>,
    #[serde(default)]
    brand: Option<String>,
    #[serde(default)]
    price: Option<f64>,
    #[serde(default)]
    state: ItemState,
}

impl Item {
    /// The item of a stored record.
    pub fn of_stored(bytes: &[u8]) -> Result<Item, serde_json::Error> {
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let item = StoredItem::deserialize(&mut reader)?;
        reader.end()?;
        Ok(item)
    }

    /// An item as it comes in: a JSON object with known fields within their limits; else the first field that is wrong.
    pub fn of_json(value: &Value) -> Result<Item, FieldError> {
        // An array of the fields' values would be taken, too.
        if !value.is_object() {
            return Err(FieldError::new("item", "must be a json object"));
        }
        let item: Item = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            FieldError::new(if path == "." { "item".to_string() } else { path }, error.into_inner().to_string())
        })?;
        item.validate()?;
        Ok(item)
    }

    /// What takes the place of an item that was deleted, so that every replica hears of it.
    pub fn deleted(id: &str) -> Item {
        let (id, title) = (id.to_owned(), DELETED_TITLE.to_owned());
        Item { id, title, categories: Vec::new(), brand: None, price: None, state: ItemState::Paused }
    }

    /// Whether this says that the item is no more.
    pub fn is_deleted(&self) -> bool {
        self.title == DELETED_TITLE
    }

    /// Checks limits and ranges; names the first field that is wrong.
    pub fn validate(&self) -> Result<(), FieldError> {
        check_id("id", &self.id)?;
        if self.title.trim().is_empty() {
            return Err(FieldError::new("title", "must not be empty"));
        }
        if self.is_deleted() {
            return Err(FieldError::new("title", "must not be a control character"));
        }
        if self.title.len() > MAX_TITLE_BYTES {
            return Err(FieldError::new("title", format!("longer than {MAX_TITLE_BYTES} bytes")));
        }
        if self.categories.len() > MAX_CATEGORIES {
            return Err(FieldError::new("categories", format!("more than {MAX_CATEGORIES} levels")));
        }
        for category in &self.categories {
            check_id("categories", category)?;
        }
        if let Some(brand) = &self.brand {
            check_id("brand", brand)?;
        }
        match self.price {
            Some(price) if !(price.is_finite() && price >= 0.0) => {
                Err(FieldError::new("price", "must be a number that is not negative"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_02_a_stored_item_of_a_later_version_is_read_and_a_posted_one_refused() {
        let later = br#"{"id":"i","title":"t","state":"paused","colour":"red","price":2.5}"#;
        let item = Item::of_stored(later).expect("read");
        assert_eq!((item.id.as_str(), item.state, item.price), ("i", ItemState::Paused, Some(2.5)));
        assert!(serde_json::from_slice::<Item>(later).expect_err("refused").to_string().contains("colour"));
        let array = serde_json::json!(["id", "a title"]);
        assert!(Item::of_json(&array).expect_err("an array").to_string().contains("must be a json object"));
        for bad in [&later[..20], b"", b"{}", b"\xff", b"[]"] {
            assert!(Item::of_stored(bad).is_err(), "{}", bad.escape_ascii());
        }
    }
}
