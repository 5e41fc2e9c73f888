//! Logs of shown items, as Open Bandit has them.
//!
//! In: tab-separated values (`.gz` accepted) with a header that has `item`, `position`, `click` and `propensity`; other columns are not read.
//! Out: [`Log`]. Called by the command line.

use super::OffPolicyError;
use crate::data::{DataError, open_text};
use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;

/// One item that was shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// From 0; where in the page.
    pub position: usize,
    /// From 0.
    pub item: usize,
    /// Chance that the logging policy gave to this item at this position, above 0.
    pub propensity: f64,
    /// What came of it, 1 = a click.
    pub reward: f64,
}

/// Items and positions that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Items that may be shown.
    pub items: usize,
    /// Positions of a page.
    pub positions: usize,
}

/// What one policy logged.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// In the order of the file.
    pub records: Vec<Record>,
    /// Of its pages.
    pub shape: Shape,
}

impl Log {
    /// Of records; `items` there are in all, shown or not.
    pub fn new(records: Vec<Record>, items: usize) -> Result<Self, OffPolicyError> {
        let nothing = |message: String| OffPolicyError::Nothing { message };
        let positions = records.iter().map(|record| record.position + 1).max();
        let positions = positions.ok_or_else(|| nothing("the log is empty".into()))?;
        let known: BTreeSet<u64> = records.iter().map(|record| record.reward.to_bits()).collect();
        if known.len() < 2 {
            return Err(nothing(format!(
                "all {} rewards of the log are the same: no value can be estimated",
                records.len()
            )));
        }
        Ok(Self { records, shape: Shape { items, positions } })
    }

    /// Reads a file. `items`: as in [`Log::new`].
    pub fn read(path: &Path, items: usize) -> Result<Self, OffPolicyError> {
        let mut records = Vec::new();
        let mut columns = None;
        for (line, text) in (1..).zip(open_text(path)?.lines()) {
            let text = text.map_err(|error| DataError::unreadable(path, line, error))?;
            let fields: Vec<&str> = text.split('\t').collect();
            let Some(columns) = &columns else {
                columns = Some(Columns::of(&fields).map_err(|message| DataError::line(path, line, message))?);
                continue;
            };
            records.push(columns.record(&fields, items).map_err(|message| DataError::line(path, line, message))?);
        }
        Self::new(records, items)
    }

    /// Of every record, as the logging policy earned them.
    pub fn rewards(&self) -> Vec<f64> {
        self.records.iter().map(|record| record.reward).collect()
    }
}

/// Where the columns are.
struct Columns([usize; 4]);

impl Columns {
    fn of(header: &[&str]) -> Result<Self, String> {
        let place = |name: &str| {
            let found = header.iter().position(|column| *column == name);
            found.ok_or_else(|| format!("the header has no column {name}"))
        };
        Ok(Self([place("item")?, place("position")?, place("click")?, place("propensity")?]))
    }

    /// Positions are from 1 in the file.
    fn record(&self, fields: &[&str], items: usize) -> Result<Record, String> {
        let [item, position, click, propensity] = self.0.map(|place| fields.get(place).copied().unwrap_or(""));
        let whole =
            |name: &str, text: &str| text.parse::<usize>().map_err(|_| format!("{name} {text:?} is no whole number"));
        let record = Record {
            item: whole("item", item)?,
            position: whole("position", position)?.checked_sub(1).ok_or("position 0: they count from 1")?,
            reward: f64::from(u8::from(match click {
                "0" => false,
                "1" => true,
                _ => return Err(format!("click {click:?} is neither 0 nor 1")),
            })),
            propensity: propensity.parse().map_err(|_| format!("propensity {propensity:?} is no number"))?,
        };
        if record.item >= items {
            return Err(format!("item {} is not below the number of items, {items}", record.item));
        }
        if !(record.propensity > 0.0 && record.propensity <= 1.0) {
            return Err(format!("propensity {} is not above 0 and at most 1", record.propensity));
        }
        Ok(record)
    }
}
