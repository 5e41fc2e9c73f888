//! `import amazon`: review sequences (TSV) and item texts (JSONL) → our three files.
//!
//! In: `user item pos ts rating` sorted by user and pos, and `{"item", "title", "brand", "categories", "keywords"}`; both
//! may be gzip. Out: `items.jsonl`, `events.jsonl` by time, `users.jsonl`. Caller: `taiji-trainer import`.
//!
//! A row that cannot be taken is left out and told of (`rejected.jsonl`), up to a share of its file; a wrong header or a file
//! that cannot be read is an error. The order that counts is `pos`, so time strictly increases with it: see [`times`].

use super::MAX_TS_MS;
use super::rejected::{RejectedRow, RowGate, tell_rejected, write_rejected};
use crate::data::read::{JsonLines, open};
use crate::data::time_split::DAY_MS;
use crate::data::{DataError, UserRecord, write_jsonl};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead;
use std::path::Path;
use taiji::event::item::{MAX_CATEGORIES, MAX_TITLE_BYTES};
use taiji::event::{Event, Item, ItemState, MAX_ID_BYTES, MIN_TS_MS};

/// 2018-01-01, from which users without usable times count days.
const FALLBACK_START_MS: i64 = 1_514_764_800_000;
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
    /// Rows of both files that were left out.
    pub rejected: Vec<RejectedRow>,
}

impl fmt::Display for ImportSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} users ({} with made-up times), {} events, {} items ({} more have no text and were left out)",
            self.users, self.users_with_made_up_times, self.events, self.items, self.items_without_text
        )?;
        tell_rejected(&self.rejected, out)
    }
}

/// Reads both files and writes the three of ours into `out`, which is created. More bad rows than `max_bad_share` (0 to 1) of a
/// file are an error.
pub fn import_amazon(
    interactions: &Path,
    items: &Path,
    out: &Path,
    max_bad_share: f64,
) -> Result<ImportSummary, DataError> {
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;
    let mut summary = ImportSummary::default();
    let catalogue = read_catalogue(items, max_bad_share, &mut summary)?;
    let by_user = read_interactions(interactions, max_bad_share, &mut summary)?;
    let mut events = Vec::new();
    let mut users = Vec::new();
    for (user, rows) in by_user {
        let (times, made_up) = times(&rows.iter().map(|row| (row.pos, row.ts)).collect::<Vec<_>>());
        summary.users_with_made_up_times += usize::from(made_up);
        users.push(UserRecord { user_id: user.to_string(), profile: BTreeMap::new(), latent: None });
        events.extend(rows.iter().zip(times).map(|(row, ts_ms)| purchase(user, row, ts_ms)));
    }
    events.sort_by(|left, right| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id)));
    summary.items = write_jsonl(&out.join("items.jsonl"), catalogue)?;
    summary.users = write_jsonl(&out.join("users.jsonl"), users)?;
    summary.events = write_jsonl(&out.join("events.jsonl"), events)?;
    write_rejected(out, &summary.rejected)?;
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
fn read_interactions(
    path: &Path,
    max_bad_share: f64,
    summary: &mut ImportSummary,
) -> Result<BTreeMap<u64, Vec<Row>>, DataError> {
    let mut users: BTreeMap<u64, Vec<Row>> = BTreeMap::new();
    let mut gate = RowGate::new(path);
    for (index, bytes) in open(path)?.split(b'\n').enumerate() {
        let line = index + 1;
        let path_shown = || path.display().to_string();
        let bytes = bytes.map_err(|source| DataError::Unreadable { path: path_shown(), line, source })?;
        if line == 1 {
            check_header(&bytes).map_err(|message| DataError::line(path, line, message))?;
            continue;
        }
        let row = parse_row(&bytes).and_then(|(user, row)| {
            let last = users.get(&user).and_then(|rows| rows.last());
            match last.is_some_and(|last| last.pos >= row.pos) {
                true => Err(format!("column 3 (pos): {} does not rise for user {user}; sort by user and pos", row.pos)),
                false => Ok((user, row)),
            }
        });
        if let Some((user, row)) = gate.admit(row.map_err(|message| DataError::line(path, line, message)))? {
            users.entry(user).or_default().push(row);
        }
    }
    summary.rejected.extend(gate.finish(max_bad_share)?);
    Ok(users)
}

/// The five fields of a line.
fn fields_of(line: &[u8]) -> Result<Vec<&str>, String> {
    let text = std::str::from_utf8(line).map_err(|error| format!("not utf-8: {error}"))?;
    let fields: Vec<&str> = text.trim_end_matches('\r').split('\t').collect();
    match fields.len() == COLUMNS.len() {
        true => Ok(fields),
        false => Err(format!("{} columns; must be {} (tab-separated)", fields.len(), COLUMNS.join(" "))),
    }
}

fn check_header(line: &[u8]) -> Result<(), String> {
    match fields_of(line)? == COLUMNS {
        true => Ok(()),
        false => Err(format!("the header must be {}", COLUMNS.join(" "))),
    }
}

/// The largest `pos` and ids: keeps made-up days within `i64` and ids within their limits.
const MAX_INTEGER: u64 = 1_000_000_000;

fn parse_row(line: &[u8]) -> Result<(u64, Row), String> {
    let fields = fields_of(line)?;
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

fn read_catalogue(path: &Path, max_bad_share: f64, summary: &mut ImportSummary) -> Result<Vec<Item>, DataError> {
    let mut items: BTreeMap<u64, Item> = BTreeMap::new();
    let mut gate = RowGate::new(path);
    for entry in JsonLines::open(path)? {
        let row = entry.and_then(|(line, value)| {
            let (id, item) = parse_item(&value).map_err(|message| DataError::line(path, line, message))?;
            match items.contains_key(&id) {
                true => Err(DataError::line(path, line, format!("item: {id} is there twice"))),
                false => Ok((id, item)),
            }
        });
        match gate.admit(row)? {
            Some((id, Some(item))) => _ = items.insert(id, item),
            Some((_, None)) => summary.items_without_text += 1,
            None => {}
        }
    }
    summary.rejected.extend(gate.finish(max_bad_share)?);
    Ok(items.into_values().collect())
}

/// Id and item of one line; no item where it has neither title nor keywords.
fn parse_item(value: &Value) -> Result<(u64, Option<Item>), String> {
    let id = value["item"].as_u64().ok_or("item: must be an integer that is not negative")?;
    let Some(title) = ["title", "keywords"].iter().find_map(|field| text_of(&value[*field], MAX_TITLE_BYTES)) else {
        return Ok((id, None));
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
    item.validate().map_err(|error| error.to_string())?;
    Ok((id, Some(item)))
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
            let message = import_amazon(&tsv, &items, &folder.path().join("out"), 0.01).unwrap_err().to_string();
            assert!(message.contains("x.tsv") && message.contains(part), "{message}");
        }
        std::fs::write(&tsv, "user\titem\tpos\tts\trating\n0\t0\t0\t\t5\n0\t1\t1\t\t\n").unwrap();
        let summary = import_amazon(&tsv, &items, &folder.path().join("out"), 0.01).unwrap();
        assert_eq!((summary.users, summary.events, summary.items, summary.items_without_text), (1, 2, 1, 1));
    }

    #[test]
    fn bad_rows_are_left_out_and_told_up_to_the_share() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut rows = b"user\titem\tpos\tts\trating\n".to_vec();
        rows.extend((0..97).flat_map(|pos| format!("0\t{pos}\t{pos}\t\t5\n").into_bytes()));
        rows.extend(b"0\t1\t3\t\t5\n0\tx\t99\t\t5\n0\t1\t\xff\t\t5\n");
        std::fs::write(at("x.tsv"), &rows).unwrap();
        std::fs::write(
            at("i.jsonl"),
            "{\"item\":0,\"title\":\"a\"}\n{\"item\":0,\"title\":\"b\"}\n{oops\n{\"item\":1}\n",
        )
        .unwrap();
        let import = |share: f64| import_amazon(&at("x.tsv"), &at("i.jsonl"), &at("out"), share);

        let message = import(0.1).unwrap_err().to_string();
        assert!(
            message.contains("i.jsonl: 2 of 4 rows") && message.contains("line 2: item: 0 is there twice"),
            "{message}"
        );
        let summary = import(0.5).unwrap();
        assert_eq!((summary.events, summary.items, summary.items_without_text), (97, 1, 1));
        let told: Vec<(usize, bool)> =
            summary.rejected.iter().map(|row| (row.line, row.file.ends_with("i.jsonl"))).collect();
        assert_eq!(told, [(2, true), (3, true), (99, false), (100, false), (101, false)]);
        let shown = summary.to_string();
        assert!(shown.contains("5 bad rows") && shown.contains("line 101: not utf-8"), "{shown}");
        assert_eq!(std::fs::read_to_string(at("out/rejected.jsonl")).unwrap().lines().count(), 5);

        std::fs::write(at("i.jsonl"), "{\"item\":0,\"title\":\"a\"}\n").unwrap();
        let message = import(0.029).unwrap_err().to_string();
        assert!(message.contains("3 of 100 rows") && message.contains("line 99"), "{message}");
        import(0.03).unwrap();
        let good = rows.iter().position(|byte| *byte == b'x').unwrap() - 2 - "0\t1\t3\t\t5\n".len();
        std::fs::write(at("x.tsv"), &rows[..good]).unwrap();
        assert_eq!(import(0.0).unwrap().rejected, []);
        assert!(!at("out/rejected.jsonl").exists(), "what is told is of the latest import");
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
            let summary = import_amazon(&interactions, &items, folder.path(), 0.0).unwrap();
            assert_eq!((summary.users, summary.events), (users, events));
            let dataset = Dataset::load(folder.path(), &ActionTable::default()).unwrap();
            let examples = build_examples(&dataset, &ExampleSettings::new(Split::Train));
            println!("{set}: {summary}; {} training examples", examples.len());
            assert!(examples.len() > 20_000);
        }
    }
}
