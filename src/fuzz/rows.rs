//! Files of events: a bad row is a row with an error, a broken file ends with one, and reading always ends.

use crate::ingest::rows::Rows;
use bytes::Bytes;

/// JSON lines: each line that is not empty is a row, in order.
pub(super) fn lines(bytes: &[u8]) -> bool {
    let rows = Rows::of_bytes(Bytes::copy_from_slice(bytes), false).expect("lines can always be opened");
    let rows: Vec<_> = rows.map(|row| row.expect("memory can always be read")).collect();
    let texts = bytes.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace));
    assert_eq!(rows.len(), texts.count());
    assert!(rows.iter().flat_map(|row| row.as_ref().err()).all(|error| !error.is_empty()));
    rows.iter().any(Result::is_ok)
}

/// Parquet. Rows are read up to the first error or to a number that no table of this size holds without repeating itself.
pub(super) fn table(bytes: &[u8]) -> bool {
    const ENOUGH: usize = 10_000;
    let rows = match Rows::of_bytes(Bytes::copy_from_slice(bytes), true) {
        Ok(rows) => rows,
        Err(message) => {
            assert!(!message.is_empty());
            return false;
        }
    };
    let mut good = false;
    for row in rows.take(ENOUGH) {
        match row {
            Ok(Ok(value)) => {
                assert!(value.is_object(), "{value}");
                good = true;
            }
            Ok(Err(message)) => assert!(!message.is_empty()),
            Err(_) => break,
        }
    }
    good
}
