//! Figures of any shape as tables: what a stage judged is its own affair, the page shows all of it.
//!
//! In: JSON. Out: HTML. Lists of objects become tables, all else rows, together with their neighbours under the dotted name of the
//! object they stand in; objects with `estimate`, `low` and `high` are an estimate with its interval.

use super::html::{count, escape, number};
use serde_json::{Map, Value};

/// Columns that no table needs: what an interval was made by.
const MOST_COLUMNS: usize = 8;

/// Everything in a value.
pub fn figures(value: &Value) -> String {
    let mut found = Found::default();
    found.walk("", value);
    let mut html = String::new();
    for (name, table) in &found.tables {
        html.push_str(&format!("<h4>{}</h4>{table}", escape(name)));
    }
    let groups: String = found
        .groups
        .iter()
        .map(|(name, rows)| {
            let row = |(key, shown): &(String, String)| {
                format!("<tr><th scope=\"row\">{}</th><td>{shown}</td></tr>", escape(&key.replace('_', " ")))
            };
            let rows: String = rows.iter().map(row).collect();
            format!("<div><h4>{}</h4><table>{rows}</table></div>", escape(name))
        })
        .collect();
    if !groups.is_empty() {
        html.push_str(&format!("<div class=\"figures\">{groups}</div>"));
    }
    html
}

#[derive(Default)]
struct Found {
    /// Rows by the object they stand in.
    groups: Vec<(String, Vec<(String, String)>)>,
    tables: Vec<(String, String)>,
}

impl Found {
    fn walk(&mut self, name: &str, value: &Value) {
        let below = |key: &str| match name {
            "" => key.to_string(),
            _ => format!("{name}.{key}"),
        };
        match value {
            Value::Object(fields) if interval(fields).is_none() => {
                fields.iter().for_each(|(key, inner)| self.walk(&below(key), inner));
            }
            Value::Array(entries) => match table(entries) {
                Some(table) => self.tables.push((name.to_string(), table)),
                None => self.row(name, entries.iter().map(shown).collect::<Vec<_>>().join(", ")),
            },
            Value::Null => {}
            plain => self.row(name, shown(plain)),
        }
    }

    fn row(&mut self, name: &str, shown: String) {
        let (of, key) = name.rsplit_once('.').unwrap_or(("", name));
        let place = self.groups.iter().position(|(group, _)| group == of).unwrap_or_else(|| {
            self.groups.push((of.to_string(), Vec::new()));
            self.groups.len() - 1
        });
        self.groups[place].1.push((key.to_string(), shown));
    }
}

/// A table of objects with the same keys.
fn table(entries: &[Value]) -> Option<String> {
    let Some(Value::Object(first)) = entries.first() else { return None };
    let keys: Vec<&String> = first.keys().take(MOST_COLUMNS).collect();
    let heads: String =
        keys.iter().map(|key| format!("<th scope=\"col\">{}</th>", escape(&key.replace('_', " ")))).collect();
    let mut rows = String::new();
    for entry in entries {
        let Value::Object(fields) = entry else { return None };
        let cells = keys.iter().map(|key| format!("<td>{}</td>", fields.get(*key).map(shown).unwrap_or_default()));
        rows.push_str(&format!("<tr>{}</tr>", cells.collect::<String>()));
    }
    Some(format!("<div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"))
}

/// An estimate with its interval, if an object is one.
fn interval(fields: &Map<String, Value>) -> Option<String> {
    let of = |key: &str| fields.get(key)?.as_f64();
    let (estimate, low, high) = (of("estimate")?, of("low")?, of("high")?);
    Some(format!("{} <span class=\"aside\">{} to {}</span>", number(estimate), number(low), number(high)))
}

/// One value in a cell.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_string(),
        Value::Bool(false) => "no".to_string(),
        Value::Number(given) => match (given.as_u64(), given.as_f64()) {
            (Some(whole), _) => count(whole),
            (None, Some(value)) => number(value),
            (None, None) => escape(&given.to_string()),
        },
        Value::String(text) => escape(text),
        Value::Array(entries) => entries.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => interval(fields).unwrap_or_else(|| escape(&value.to_string())),
    }
}
