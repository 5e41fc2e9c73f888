//! `catalogue.parquet`: id, title, l1–l3, brand, price, state, distinct_users, scid, embedding_row.

use super::CatalogueError;
use crate::columns::{Column, ColumnData, read_columns, write_columns};
use crate::event::{Item, ItemState};
use std::path::Path;
use std::sync::Arc;

/// An item of the bundle with what was known when the bundle was made.
#[derive(Debug, Clone, PartialEq)]
pub struct CatalogueRow {
    /// The item itself.
    pub item: Arc<Item>,
    /// Distinct users who engaged with it in the training data.
    pub distinct_users: u32,
}

const COLUMNS: [&str; 9] = ["id", "title", "l1", "l2", "l3", "brand", "price", "state", "distinct_users"];

/// Writes the file. `scid` and `embedding_row` are null until the SCID tokenizer is built.
pub fn write_catalogue(path: &Path, rows: &[CatalogueRow]) -> Result<(), CatalogueError> {
    let text = |pick: &dyn Fn(&Item) -> Option<String>| {
        ColumnData::Bytes(rows.iter().map(|row| pick(&row.item).map(String::into_bytes)).collect())
    };
    let level = |depth: usize| text(&move |item: &Item| item.categories.get(depth).cloned());
    let columns = [
        Column::utf8("id", text(&|item| Some(item.id.clone()))),
        Column::utf8("title", text(&|item| Some(item.title.clone()))),
        Column::utf8("l1", level(0)),
        Column::utf8("l2", level(1)),
        Column::utf8("l3", level(2)),
        Column::utf8("brand", text(&|item| item.brand.clone())),
        Column::binary("price", ColumnData::Double(rows.iter().map(|row| row.item.price).collect())),
        Column::utf8("state", text(&|item| Some(state_name(item.state).to_string()))),
        Column::binary(
            "distinct_users",
            ColumnData::Int(rows.iter().map(|row| Some(row.distinct_users as i32)).collect()),
        ),
        Column::binary("scid", ColumnData::Bytes(vec![None; rows.len()])),
        Column::binary("embedding_row", ColumnData::Int(vec![None; rows.len()])),
    ];
    write_columns(path, &columns).map_err(|message| refuse(path, message))
}

/// Reads the file; every row must be a valid item.
pub fn read_catalogue(path: &Path) -> Result<Vec<CatalogueRow>, CatalogueError> {
    let mut columns = read_columns(path, &COLUMNS).map_err(|message| refuse(path, message))?.into_iter();
    let mut text = || match columns.next() {
        Some(ColumnData::Bytes(rows)) => Ok(rows.into_iter()),
        _ => Err(refuse(path, "a text column has another type".into())),
    };
    let (mut ids, mut titles, mut l1, mut l2, mut l3, mut brands) =
        (text()?, text()?, text()?, text()?, text()?, text()?);
    let Some(ColumnData::Double(prices)) = columns.next() else {
        return Err(refuse(path, "price is not a number".into()));
    };
    let Some(ColumnData::Bytes(states)) = columns.next() else { return Err(refuse(path, "state is not text".into())) };
    let Some(ColumnData::Int(users)) = columns.next() else {
        return Err(refuse(path, "distinct_users is not a number".into()));
    };
    let mut rows = Vec::with_capacity(prices.len());
    for ((price, state), distinct_users) in prices.into_iter().zip(states).zip(users) {
        let levels = [utf8(path, l1.next())?, utf8(path, l2.next())?, utf8(path, l3.next())?];
        let item = Item {
            id: utf8(path, ids.next())?.unwrap_or_default(),
            title: utf8(path, titles.next())?.unwrap_or_default(),
            categories: levels.into_iter().flatten().collect(),
            brand: utf8(path, brands.next())?,
            price,
            state: match state.as_deref() {
                Some(b"paused") => ItemState::Paused,
                _ => ItemState::Active,
            },
        };
        item.validate().map_err(|error| refuse(path, format!("item {:?}: {error}", item.id)))?;
        rows.push(CatalogueRow { item: Arc::new(item), distinct_users: distinct_users.unwrap_or(0).max(0) as u32 });
    }
    Ok(rows)
}

fn state_name(state: ItemState) -> &'static str {
    match state {
        ItemState::Active => "active",
        ItemState::Paused => "paused",
    }
}

/// The next value of a text column, checked for UTF-8.
fn utf8(path: &Path, value: Option<Option<Vec<u8>>>) -> Result<Option<String>, CatalogueError> {
    let Some(bytes) = value.flatten() else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| refuse(path, error.to_string()))
}

fn refuse(path: &Path, message: String) -> CatalogueError {
    CatalogueError { path: path.display().to_string(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_comes_back_as_written() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("catalogue.parquet");
        let item = |id: &str, categories: &[&str], price: Option<f64>| Item {
            id: id.into(),
            title: format!("title of {id}"),
            categories: categories.iter().map(|name| name.to_string()).collect(),
            brand: price.map(|_| "Brand".to_string()),
            price,
            state: if price.is_some() { ItemState::Active } else { ItemState::Paused },
        };
        let rows: Vec<CatalogueRow> = [item("1", &["A", "B", "C"], Some(2.5)), item("2", &[], None)]
            .into_iter()
            .map(|item| CatalogueRow { item: Arc::new(item), distinct_users: 7 })
            .collect();
        write_catalogue(&path, &rows).expect("write");
        assert_eq!(read_catalogue(&path).expect("read"), rows);
    }
}
