//! The rows of a file of events: JSON lines (plain or .gz) or Parquet.
//!
//! In: a path. Out: one JSON value a row, for [`crate::event::EventDecoder`], and how far the reader is. A row that is no
//! JSON is a row with an error; a file that cannot be read any further ends with one. Caller: `backfill`.

use crate::event::json::parse_strictly;
use flate2::read::MultiGzDecoder;
use parquet::file::reader::{ChunkReader, FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Longest line of a JSON file, in bytes; a longer one is a bad row.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, Error)]
pub enum RowsError {
    /// Not there, no permission, or no Parquet although it is called so.
    #[error("{} cannot be opened: {message}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system or the decoder said.
        message: String,
    },
    /// It ends or breaks in the middle.
    #[error("{} cannot be read after row {row}: {message}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Rows read before.
        row: u64,
        /// What the system or the decoder said.
        message: String,
    },
}

/// A file's rows, in order. `Err` inside = a bad row; `Err` outside = the end of what can be read.
pub struct Rows {
    path: PathBuf,
    source: Source,
    row: u64,
    total: u64,
    /// Bytes of the file read so far; JSON lines only.
    bytes: Arc<AtomicU64>,
}

enum Source {
    Lines(BufReader<Box<dyn Read + Send>>),
    Table(Box<RowIter<'static>>),
}

impl Rows {
    /// Opens a file; `.parquet` is Parquet, anything else JSON lines, `.gz` compressed.
    pub fn open(path: &Path) -> Result<Rows, RowsError> {
        let failed = |message: String| RowsError::Open { path: path.to_owned(), message };
        let file = File::open(path).map_err(|error| failed(error.to_string()))?;
        let length = file.metadata().map_err(|error| failed(error.to_string()))?.len();
        let bytes = Arc::new(AtomicU64::new(0));
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if extension == "parquet" {
            let (source, total) = table(file).map_err(failed)?;
            return Ok(Rows { path: path.to_owned(), source, row: 0, total, bytes });
        }
        let counted = Counted { file, bytes: bytes.clone() };
        let reader: Box<dyn Read + Send> = match extension {
            "gz" => Box::new(MultiGzDecoder::new(counted)),
            _ => Box::new(counted),
        };
        let source = Source::Lines(BufReader::with_capacity(1 << 20, reader));
        Ok(Rows { path: path.to_owned(), source, row: 0, total: length, bytes })
    }

    /// The rows of bytes in memory, for the fuzz targets; nothing tells how far it is.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn of_bytes(content: bytes::Bytes, is_table: bool) -> Result<Rows, String> {
        let (source, total) = match is_table {
            true => table(content)?,
            false => (Source::Lines(BufReader::new(Box::new(std::io::Cursor::new(content)))), 0),
        };
        Ok(Rows { path: PathBuf::new(), source, row: 0, total, bytes: Arc::default() })
    }

    /// Size of the whole: rows of a table, bytes of other files.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How much of [`Self::total`] was read.
    pub fn position(&self) -> u64 {
        match self.source {
            Source::Lines(_) => self.bytes.load(Ordering::Relaxed),
            Source::Table(_) => self.row,
        }
    }

    fn next_row(&mut self) -> Result<Option<Result<Value, String>>, String> {
        match &mut self.source {
            Source::Table(rows) => match unless_panicking(|| rows.next())? {
                None => Ok(None),
                Some(row) => row.map(|row| Some(table_row(&row))).map_err(|error| error.to_string()),
            },
            Source::Lines(reader) => loop {
                match next_line(reader)? {
                    None => return Ok(None),
                    // Empty lines are no rows, as everywhere where JSON lines are taken.
                    Some(Ok(line)) if line.iter().all(u8::is_ascii_whitespace) => {}
                    Some(line) => {
                        let parse = |line: Vec<u8>| parse_strictly(&line, "row").map_err(|error| error.to_string());
                        return Ok(Some(line.and_then(parse)));
                    }
                }
            },
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Result<Value, String>, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read =
            self.next_row().map_err(|message| RowsError::Read { path: self.path.clone(), row: self.row, message });
        self.row += u64::from(matches!(read, Ok(Some(_))));
        read.transpose()
    }
}

/// A table's rows and how many they are.
fn table<R: ChunkReader + 'static>(content: R) -> Result<(Source, u64), String> {
    let reader = unless_panicking(|| SerializedFileReader::new(content))?.map_err(|error| error.to_string())?;
    let total = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
    Ok((Source::Table(Box::new(RowIter::from_file_into(Box::new(reader)))), total))
}

/// The decoder panics on some damaged tables (found by the fuzz target `rows_table`); to us that is a file that cannot be read any
/// further. It is not used again after that.
fn unless_panicking<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "the table is damaged: its decoder gave up".to_owned())
}

/// The next line without its end; a bad row where it is too long.
fn next_line(reader: &mut impl BufRead) -> Result<Option<Result<Vec<u8>, String>>, String> {
    let mut line = Vec::new();
    let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    if read == 0 {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') && read as u64 == MAX_LINE_BYTES {
        reader.skip_until(b'\n').map_err(|error| error.to_string())?;
        return Ok(Some(Err(format!("the line is longer than {MAX_LINE_BYTES} bytes"))));
    }
    Ok(Some(Ok(line)))
}

/// A row of a table as the JSON of an event. A text column `context` holds a JSON object: tables have no open maps.
fn table_row(row: &Row) -> Result<Value, String> {
    let mut object = Map::new();
    for (name, field) in row.get_column_iter() {
        let value = match (name.as_str(), field) {
            (_, Field::Null) => continue,
            ("context", Field::Str(text)) => parse_strictly(text.as_bytes(), "context")
                .map_err(|error| format!("context is no JSON object: {error}"))?,
            (_, field) => json_of(field)?,
        };
        object.insert(name.clone(), value);
    }
    Ok(Value::Object(object))
}

/// Times become milliseconds; what no event can hold is an error.
fn json_of(field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => {
            std::str::from_utf8(bytes.data()).map_err(|_| "a binary column holds no text".to_owned())?.into()
        }
        Field::TimestampMillis(value) => (*value).into(),
        Field::TimestampMicros(value) => value.div_euclid(1000).into(),
        Field::Group(row) => table_row(row)?,
        Field::ListInternal(list) => {
            list.elements().iter().map(json_of).collect::<Result<Vec<Value>, String>>()?.into()
        }
        Field::MapInternal(map) => {
            let entry = |(key, value): &(Field, Field)| match key {
                Field::Str(key) => Ok((key.clone(), json_of(value)?)),
                _ => Err("a map's keys are no text".to_owned()),
            };
            Value::Object(map.entries().iter().map(entry).collect::<Result<Map<String, Value>, String>>()?)
        }
        Field::Float16(_) | Field::Decimal(_) | Field::Date(_) | Field::TimeMillis(_) | Field::TimeMicros(_) => {
            return Err(format!("a column's type cannot be part of an event: {field}"));
        }
    })
}

/// Counts what is read of a file.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use flate2::write::GzEncoder;
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;
    use std::io::Write;

    fn read(path: &Path) -> Vec<Result<Value, String>> {
        Rows::open(path).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn lines_plain_and_compressed_are_the_same_rows() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(MAX_LINE_BYTES as usize + 7);
        let text = format!("{{\"a\": 1}}\n\n  \n{{broken\n\"{long}\"\n[2]");
        let (plain, packed) = (folder.path().join("a.jsonl"), folder.path().join("a.jsonl.gz"));
        std::fs::write(&plain, &text).unwrap();
        let mut encoder = GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap();
        for path in [&plain, &packed] {
            let rows = read(path);
            assert_eq!(
                (rows.len(), rows[0].as_ref().unwrap(), rows[3].as_ref().unwrap()),
                (4, &json!({"a": 1}), &json!([2]))
            );
            assert!(rows[1].is_err());
            assert!(rows[2].as_ref().unwrap_err().contains("longer than"), "{:?}", rows[2]);
            let mut all = Rows::open(path).unwrap();
            assert_eq!((all.by_ref().count(), all.position()), (4, all.total()));
        }
        let bytes = std::fs::read(&packed).unwrap();
        let cut = folder.path().join("cut.gz");
        std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
        let end = Rows::open(&cut).unwrap().find_map(Result::err).unwrap().to_string();
        assert!(end.contains("cut.gz cannot be read after row"), "{end}");
    }

    #[test]
    fn a_table_gives_the_same_events_as_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.parquet");
        let schema = "message events {
            required binary user_id (UTF8); optional binary item_id (UTF8); required int64 ts_ms (TIMESTAMP_MICROS);
            optional double value; optional binary context (UTF8); }";
        let properties = Arc::new(WriterProperties::builder().build());
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let text = |values: &[&str]| values.iter().map(|value| ByteArray::from(*value)).collect::<Vec<ByteArray>>();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&text(&["u1", "u2", "u3"]), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&text(&["i"]), Some(&[1, 0, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let times = [1_700_000_000_000_999, 1_700_000_000_001_000, 1_700_000_000_002_000];
        column.typed::<Int64Type>().write_batch(&times, None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[2.5], Some(&[1, 0, 0]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let contexts = text(&["{\"query\": \"red shoes\"}", "no json"]);
        column.typed::<ByteArrayType>().write_batch(&contexts, Some(&[0, 1, 1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();

        let rows = read(&path);
        let first = json!({"user_id": "u1", "item_id": "i", "ts_ms": 1_700_000_000_000_i64, "value": 2.5});
        let second = json!({"user_id": "u2", "ts_ms": 1_700_000_000_001_i64, "context": {"query": "red shoes"}});
        assert_eq!((rows[0].as_ref().unwrap(), rows[1].as_ref().unwrap()), (&first, &second));
        assert!(rows[2].as_ref().unwrap_err().contains("context is no JSON object"));
        let mut all = Rows::open(&path).unwrap();
        assert_eq!((all.by_ref().count(), all.position(), all.total()), (3, 3, 3));
    }

    #[test]
    fn a_table_that_makes_its_decoder_panic_ends_with_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.parquet");
        let damaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/rows_table/found-column-sizes");
        std::fs::copy(damaged, &path).unwrap();
        let end = Rows::open(&path).unwrap().find_map(Result::err).unwrap().to_string();
        assert!(end.contains("damaged.parquet cannot be read after row 0: the table is damaged"), "{end}");
    }

    #[test]
    fn a_file_that_is_not_there_or_no_table_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let table = folder.path().join("a.parquet");
        std::fs::write(&table, "no table").unwrap();
        for path in [folder.path().join("absent.jsonl"), table] {
            let message = Rows::open(&path).err().unwrap().to_string();
            assert!(
                message.starts_with(&path.display().to_string()) && message.contains("cannot be opened"),
                "{message}"
            );
        }
    }
}
