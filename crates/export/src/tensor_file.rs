//! Safetensors files that are written tensor by tensor, so that one is in memory at a time.
//!
//! In: names, types and shapes first, then the bytes in that order. Out: the file, as the library `safetensors` lays it out. Called by
//! `gguf`, `recover` and `rounded`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value as Json, json};

/// Begins a file of tensors one behind the other, given their names, types and shapes.
pub fn begin(path: &Path, entries: &[(String, Dtype, Vec<usize>)]) -> io::Result<BufWriter<File>> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    let mut end = 0_u64;
    for (name, dtype, shape) in entries {
        let begin = end;
        end += (dtype.bitsize() / 8 * shape.iter().product::<usize>()) as u64;
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut header = Json::Object(header).to_string();
    // Numbers begin on a multiple of eight, as the format asks.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut target = BufWriter::with_capacity(1 << 20, File::create(path)?);
    target.write_all(&(header.len() as u64).to_le_bytes())?;
    target.write_all(header.as_bytes())?;
    Ok(target)
}

/// Puts everything on disk.
pub fn finish(mut target: BufWriter<File>) -> io::Result<()> {
    target.flush()?;
    target.get_ref().sync_all()
}
