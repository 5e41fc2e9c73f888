//! Records → a JSONL file, through a temporary name so that a half-written file is never taken for a whole one.
//!
//! Callers: `synth`, `import`, `stages`.

use super::DataError;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes one JSON object a line; the file appears under its name only when it is complete.
pub fn write_jsonl<T: Serialize>(path: &Path, records: impl IntoIterator<Item = T>) -> Result<usize, DataError> {
    let partial = path.with_extension("partial");
    let mut file = BufWriter::with_capacity(1 << 16, File::create(&partial).map_err(DataError::io(&partial))?);
    let mut count = 0;
    for record in records {
        serde_json::to_writer(&mut file, &record).map_err(|error| DataError::io(&partial)(error.into()))?;
        file.write_all(b"\n").map_err(DataError::io(&partial))?;
        count += 1;
    }
    file.flush().map_err(DataError::io(&partial))?;
    std::fs::rename(&partial, path).map_err(DataError::io(path))?;
    Ok(count)
}
