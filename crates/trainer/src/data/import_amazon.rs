//! `import amazon`: review sequences (TSV) and item texts (JSONL) → our three files.
//!
//! In: `user item pos ts rating` sorted by user and pos, and `{"item", "title", "brand", "categories", "keywords"}`; both
//! may be gzip. Out: `items.jsonl`, `events.jsonl` by time, `users.jsonl`. Caller: `taiji-trainer import`.
//!
//! The order that counts is `pos`, so time strictly increases with it: see [`times`].

use super::read::{JsonLines, open};
use super::{DataError, UserRecord, write_jsonl};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead;
use std::path::Path;
use taiji::event::item::{MAX_CATEGORIES, MAX_TITLE_BYTES};
use taiji::event::{Event, Item, ItemState, MAX_ID_BYTES, MIN_TS_MS};

/// 2018-01-01, from which users without usable times count days.
const FALLBACK_START_MS: i64 = 1_514_764_800_000;
const DAY_MS: i64 = 86_400_000;
/// A later time (year 2100) is as wrong as none.
const MAX_TS_MS: i64 = 4_102_444_800_000;
const COLUMNS: [&str; 5] = ["user", "item", "pos", "ts", "rating"];

/// What an import did; its `Display` is what the command prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ImportSummary {
    pub users: usize,
    pub events: usize,
    pub items: usize,
    /// Lines of the item file without title and keywords: not in `items.jsonl`, their events are kept.
    pub items_without_text: usize,
    /// Users whose times were replaced by days since 2018-01-01.
    pub users_with_made_up_times: usize,
}

impl fmt::Display for ImportSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} users ({} with made-up times), {} events, {} items ({} more have no text and were left out)",
            self.users, self.users_with_made_up_times, self.events, self.items, self.items_without_text
        )
    }
}

/// Reads both files and writes the three of ours into `out`, which is created.
pub fn import_amazon(interactions: &Path, items: &Path, out: &Path) -> Result<ImportSummary, DataError> {
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;
    let mut summary = ImportSummary::default();
    let catalogue = read_catalogue(items, &mut summary)?;
    let mut events = Vec::new();
    let mut users = Vec::new();
    for (user, rows) in read_interactions(interactions)? {
        let (times, made_up) = times(&rows.iter().map(|row| (row.pos, row.ts)).collect::<Vec<_>>());
        summary.users_with_made_up_times += usize::from(made_up);
        users.push(UserRecord { user_id: user.to_string(), profile: BTreeMap::new(), latent: None });
        events.extend(rows.iter().zip(times).map(|(row, ts_ms)| purchase(user, row, ts_ms)));
    }
    events.sort_by(|left, right| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id)));
    summary.items = write_jsonl(&out.join("items.jsonl"), catalogue)?;
    summary.users = write_jsonl(&out.join("users.jsonl"), users)?;
    summary.events = write_jsonl(&out.join("events.jsonl"), events)?;
    Ok(summary)
}

/// One line of the interactions.
#[derive(Debug)]
struct Row {
    item: u64,
    pos: u64,
    /// Unix seconds.
    ts: Option<i64>,
    rating: Option<f64>,
}

fn purchase(user: u64, row: &Row, ts_ms: i64) -> Event {
    Event {
        event_id: format!("{user}-{:06}", row.pos),
        user_id: user.to_string(),
        item_id: Some(row.item.to_string()),
        action: "purchase".to_string(),
        ts_ms,
        value: row.rating,
        domain: None,
        request_id: None,
        context: BTreeMap::new(),
    }
}

/// Times in ms for one user's `(pos, ts in seconds)`, strictly increasing; and whether they are made up.
///
/// Any time missing, absurd or decreasing: 2018-01-01 + `pos` days for all. Equal times: one ms apart.
fn times(rows: &[(u64, Option<i64>)]) -> (Vec<i64>, bool) {
    let usable = |ts: &i64| (MIN_TS_MS..MAX_TS_MS).contains(&ts.saturating_mul(1000));
    let known: Vec<i64> = rows.iter().filter_map(|(_, ts)| ts.filter(usable)).collect();
    if known.len() < rows.len() || known.windows(2).any(|pair| pair[1] < pair[0]) {
        return (rows.iter().map(|(pos, _)| FALLBACK_START_MS + *pos as i64 * DAY_MS).collect(), true);
    }
    let mut last_ms = i64::MIN;
    let spread = known.into_iter().map(|ts| {
        last_ms = (ts * 1000).max(last_ms.saturating_add(1));
        last_ms
    });
    (spread.collect(), false)
}

/// All rows by user, in the order of `pos`.
fn read_interactions(path: &Path) -> Result<BTreeMap<u64, Vec<Row>>, DataError> {
    let mut users: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
    for (index, text) in open(path)?.lines().enumerate() {
        let line = index + 1;
        let text = text.map_err(|error| DataError::line(path, line, format!("cannot be read: {error}")))?;
        let fields: Vec<&str> = text.trim_end_matches('\r').split('\t').collect();
        if fields.len() != COLUMNS.len() {
            let message = format!("{} columns; must be {} (tab-separated)", fields.len(), COLUMNS.join(" "));
            return Err(DataError::line(path, line, message));
        }
        if line == 1 {
            if fields != COLUMNS {
                return Err(DataError::line(path, line, format!("the header must be {}", COLUMNS.join(" "))));
            }
            continue;
        }
        let (user, row) = parse_row(&fields).map_err(|message| DataError::line(path, line, message))?;
        let rows = users.entry(user).or_default();
        if rows.last().is_some_and(|last| last.pos >= row.pos) {
            let message = format!("column 3 (pos): {} does not rise for user {user}; sort by user and pos", row.pos);
            return Err(DataError::line(path, line, message));
        }
        rows.push(row);
    }
    Ok(users)
}

/// The largest `pos` and ids: keeps made-up days within `i64` and ids within their limits.
const MAX_INTEGER: u64 = 1_000_000_000;

fn parse_row(fields: &[&str]) -> Result<(u64, Row), String> {
    let column = |index: usize| format!("column {} ({})", index + 1, COLUMNS[index]);
    let integer = |index: usize| match fields[index].parse::<u64>() {
        Ok(value) if value <= MAX_INTEGER => Ok(value),
        _ => Err(format!("{}: '{}' is not an integer from 0 to {MAX_INTEGER}", column(index), fields[index])),
    };
    let ts = match fields[3] {
        "" => None,
        text => Some(text.parse::<i64>().map_err(|_| format!("{}: '{text}' is not unix seconds", column(3)))?),
    };
    let rating = match fields[4] {
        "" => None,
        text => match text.parse::<f64>() {
            Ok(value) if value.is_finite() => Some(value),
            _ => return Err(format!("{}: '{text}' is not a number", column(4))),
        },
    };
    Ok((integer(0)?, Row { item: integer(1)?, pos: integer(2)?, ts, rating }))
}

fn read_catalogue(path: &Path, summary: &mut ImportSummary) -> Result<Vec<Item>, DataError> {
    let mut items: BTreeMap<u64, Item> = BTreeMap::new();
    for entry in JsonLines::open(path)? {
        let (line, value) = entry?;
        let id = value["item"]
            .as_u64()
            .ok_or_else(|| DataError::line(path, line, "item: must be an integer that is not negative"))?;
        let Some(title) = ["title", "keywords"].iter().find_map(|field| text_of(&value[*field], MAX_TITLE_BYTES))
        else {
            summary.items_without_text += 1;
            continue;
        };
        let levels = value["categories"].as_array().map(Vec::as_slice).unwrap_or_default();
        let item = Item {
            id: id.to_string(),
            title,
            categories: levels.iter().filter_map(|level| text_of(level, MAX_ID_BYTES)).take(MAX_CATEGORIES).collect(),
            brand: text_of(&value["brand"], MAX_ID_BYTES),
            price: value["price"].as_f64().filter(|price| *price >= 0.0),
            state: ItemState::Active,
        };
        item.validate().map_err(|error| DataError::line(path, line, error.to_string()))?;
        if items.insert(id, item).is_some() {
            return Err(DataError::line(path, line, format!("item: {id} is there twice")));
        }
    }
    Ok(items.into_values().collect())
}

/// A string value on one line, at most `max_bytes`; `None` when nothing is left.
fn text_of(value: &Value, max_bytes: usize) -> Option<String> {
    let line = value.as_str()?.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut text = line.collect::<Vec<_>>().join(" ");
    while text.len() > max_bytes {
        text.pop();
    }
    (!text.trim().is_empty()).then(|| text.trim_end().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::data::{Dataset, ExampleSettings, Split, build_examples};
    use proptest::prelude::*;
    use taiji::event::ActionTable;

    proptest! {
        #[test]
        fn time_strictly_increases_with_pos(rows in prop::collection::vec(
            (1u64..4, prop_oneof![8 => (1_300_000_000i64..1_300_000_003).prop_map(Some), 1 => Just(None), 1 => any::<i64>().prop_map(Some)]), 1..12,
        )) {
            let mut pos = 0;
            let rows: Vec<(u64, Option<i64>)> = rows.into_iter().map(|(step, ts)| { pos += step; (pos, ts) }).collect();
            let (times, made_up) = times(&rows);
            prop_assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(times.iter().all(|ts| *ts >= MIN_TS_MS));
            if made_up {
                prop_assert_eq!(times[0], FALLBACK_START_MS + rows[0].0 as i64 * DAY_MS);
            } else {
                for (time, (_, ts)) in times.iter().zip(&rows) {
                    prop_assert!((0..12).contains(&(time - ts.unwrap() * 1000)));
                }
            }
        }
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        let (tsv, items) = (folder.path().join("x.tsv"), folder.path().join("i.jsonl"));
        std::fs::write(&items, "{\"item\":0,\"title\":\"a\"}\n{\"item\":1,\"title\":null}\n").unwrap();
        for (text, part) in [
            ("user item\n", "line 1: 1 columns"),
            ("user\titem\tpos\tts\tstars\n", "line 1: the header"),
            ("user\titem\tpos\tts\trating\n0\tx\t0\t\t\n", "line 2: column 2 (item)"),
            ("user\titem\tpos\tts\trating\n0\t0\t0\tnow\t\n", "line 2: column 4 (ts)"),
            ("user\titem\tpos\tts\trating\n0\t0\t0\t\tgood\n", "column 5 (rating)"),
            ("user\titem\tpos\tts\trating\n0\t0\t1\t\t\n0\t0\t1\t\t\n", "line 3: column 3 (pos)"),
        ] {
            std::fs::write(&tsv, text).unwrap();
            let message = import_amazon(&tsv, &items, &folder.path().join("out")).unwrap_err().to_string();
            assert!(message.contains("x.tsv") && message.contains(part), "{message}");
        }
        std::fs::write(&tsv, "user\titem\tpos\tts\trating\n0\t0\t0\t\t5\n0\t1\t1\t\t\n").unwrap();
        let summary = import_amazon(&tsv, &items, &folder.path().join("out")).unwrap();
        assert_eq!((summary.users, summary.events, summary.items, summary.items_without_text), (1, 2, 1, 1));
    }

    #[test]
    fn the_public_sets_import_and_give_examples() {
        let shared = testkit::data_folder();
        for (set, users, events) in [("instruments", 24_772, 206_153), ("beauty", 22_363, 198_502)] {
            let interactions = shared.join(format!("{set}.interactions.tsv.gz"));
            if !interactions.is_file() {
                testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", interactions.display()));
                continue;
            }
            let folder = tempfile::tempdir().unwrap();
            let items = shared.join(format!("{set}.items.jsonl.gz"));
            let summary = import_amazon(&interactions, &items, folder.path()).unwrap();
            assert_eq!((summary.users, summary.events), (users, events));
            let dataset = Dataset::load(folder.path(), &ActionTable::default()).unwrap();
            let examples = build_examples(&dataset, &ExampleSettings::new(Split::Train));
            println!("{set}: {summary}; {} training examples", examples.len());
            assert!(examples.len() > 20_000);
        }
    }
}
