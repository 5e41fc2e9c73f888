//! JSONL files, plain or gzip → records, line by line. Errors name file and line.
//!
//! Callers: `dataset` (all three files), `taiji-trainer` and load tools (events one at a time).

use super::{DataError, Label, UserRecord};
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use taiji::event::{ActionTable, Event, EventDecoder, Item, MAX_FUTURE_MS};

/// Opens a text file; gzip is recognised by its first two bytes, not by its name.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>, DataError> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(DataError::io(path))?);
    let head = file.fill_buf().map_err(DataError::io(path))?;
    let zipped = head.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> = if zipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    Ok(Box::new(BufReader::with_capacity(1 << 16, plain)))
}

/// The path of `name` or `name.gz` in a folder, or `None`.
pub(crate) fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    [name.to_string(), format!("{name}.gz")].into_iter().map(|file| folder.join(file)).find(|path| path.is_file())
}

/// All items of a file; a wrong or repeated one is refused with its line.
pub fn read_items(path: &Path) -> Result<Vec<Item>, DataError> {
    let mut first_line_of = BTreeMap::new();
    let mut items = Vec::new();
    for entry in JsonLines::open(path)? {
        let (line, value) = entry?;
        let item: Item = from_value(path, line, value)?;
        item.validate().map_err(|error| DataError::line(path, line, error.to_string()))?;
        if let Some(first) = first_line_of.insert(item.id.clone(), line) {
            return Err(DataError::line(path, line, format!("id: {} is already on line {first}", item.id)));
        }
        items.push(item);
    }
    Ok(items)
}

/// All users of a file.
pub fn read_users(path: &Path) -> Result<Vec<UserRecord>, DataError> {
    JsonLines::open(path)?
        .map(|entry| {
            let (line, value) = entry?;
            let user: UserRecord = from_value(path, line, value)?;
            taiji::event::decode::check_id("user_id", &user.user_id)
                .map_err(|error| DataError::line(path, line, error.to_string()))?;
            Ok(user)
        })
        .collect()
}

/// The labels of a folder's impressions (`labels.jsonl`).
pub fn read_labels(folder: &Path) -> Result<Vec<Label>, DataError> {
    let name = "labels.jsonl";
    let missing = || DataError::Missing { folder: folder.display().to_string(), name: name.to_string() };
    let path = find(folder, name).ok_or_else(missing)?;
    let labels = read_lines::<Label>(&path)?.zip(1..).map(|(label, line)| match label? {
        label if label.converted && !label.clicked => {
            Err(DataError::line(&path, line, "converted: true without a click; a conversion comes of one"))
        }
        label => Ok(label),
    });
    labels.collect()
}

/// The lines of a file as their type says.
pub fn read_lines<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<impl Iterator<Item = Result<T, DataError>> + use<T>, DataError> {
    let shown = path.to_path_buf();
    Ok(JsonLines::open(path)?.map(move |entry| {
        let (line, value) = entry?;
        from_value(&shown, line, value)
    }))
}

/// The events of a file one by one, validated as the service does; files may be of any date.
pub fn read_events(
    path: &Path,
    actions: ActionTable,
) -> Result<impl Iterator<Item = Result<Event, DataError>> + use<>, DataError> {
    let decoder = EventDecoder::new(actions, BTreeMap::new());
    let shown = path.to_path_buf();
    Ok(JsonLines::open(path)?.map(move |entry| {
        let (line, value) = entry?;
        decoder
            .decode(&value, i64::MAX - MAX_FUTURE_MS)
            .map_err(|error| DataError::line(&shown, line, error.to_string()))
    }))
}

fn from_value<T: serde::de::DeserializeOwned>(path: &Path, line: usize, value: Value) -> Result<T, DataError> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| DataError::line(path, line, format!("{}: {}", error.path(), error.inner())))
}

/// Lines of JSON with their numbers; empty lines are skipped.
pub(super) struct JsonLines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    line: usize,
}

impl JsonLines {
    pub(super) fn open(path: &Path) -> Result<Self, DataError> {
        Ok(JsonLines { path: path.to_path_buf(), reader: open(path)?, line: 0 })
    }
}

impl Iterator for JsonLines {
    type Item = Result<(usize, Value), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.line += 1;
            match self.reader.read_until(b'\n', &mut text) {
                Ok(0) => return None,
                Ok(_) if text.trim_ascii().is_empty() => continue,
                Ok(_) => break,
                Err(source) => {
                    // A reader that failed once (broken gzip) would fail for ever: end after telling.
                    self.reader = Box::new(std::io::empty());
                    return Some(Err(DataError::unreadable(&self.path, self.line, source)));
                }
            }
        }
        let parsed = serde_json::from_slice(&text).map_err(|error| {
            DataError::line(&self.path, self.line, format!("column {}: not json: {error}", error.column()))
        });
        Some(parsed.map(|value| (self.line, value)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_and_plain_read_the_same_and_errors_name_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let good = "{\"id\":\"1\",\"title\":\"a\"}\n\n{\"id\":\"2\",\"title\":\"b\"}\n";
        let plain = folder.path().join("plain");
        std::fs::write(&plain, good).unwrap();
        let zipped = folder.path().join("zipped");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&zipped).unwrap(), flate2::Compression::fast());
        encoder.write_all(good.as_bytes()).unwrap();
        encoder.finish().unwrap();
        assert_eq!(read_items(&plain).unwrap(), read_items(&zipped).unwrap());
        assert_eq!(read_items(&plain).unwrap().len(), 2);

        let bad = folder.path().join("bad.jsonl");
        for (text, part) in [
            ("{\"id\":\"1\",\"title\":\"a\"}\n{\"id\":\"1\",\"title\":\"a\"}", "line 2: id"),
            ("\n{\"id\":\"1\"}", "line 2"),
            ("{", "column 1"),
            ("{\"id\":\"1\",\"title\":\"a\",\"price\":-1}", "price"),
        ] {
            std::fs::write(&bad, text).unwrap();
            let message = read_items(&bad).unwrap_err().to_string();
            assert!(message.contains("bad.jsonl") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_wrong_event_is_named_and_the_next_one_still_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let good = "{\"user_id\":\"u\",\"item_id\":\"1\",\"action\":\"click\",\"ts_ms\":1500000000000}";
        std::fs::write(&path, format!("{good}\n{}\n{good}", good.replace("click", "clack"))).unwrap();
        let events: Vec<_> = read_events(&path, ActionTable::default()).unwrap().collect();
        assert_eq!(events.len(), 3);
        assert!(events[1].as_ref().unwrap_err().to_string().contains("line 2: action"));
        assert!(events[2].is_ok());
    }
}
