//! The container: metadata, table of tensors, their bytes.
//!
//! In: a file. Out: [`Gguf`]. Every length is held against what is left of the file before anything is allocated; a wrong one,
//! an unknown type and a cut file are errors that name file and field. Called by `convert`. Source: the GGUF specification of
//! the ggml project, versions 2 and 3, little-endian.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::GgufError;
use super::blocks::TensorType;

/// Metadata and table of tensors longer than this are damage (bytes); those of 256 k tokens take some 20 MB.
const HEADER_LIMIT: u64 = 64 << 20;
/// Longest key or tensor name (bytes).
const NAME_LIMIT: u64 = 1024;
/// Most numbers of one tensor.
const TENSOR_LIMIT: u64 = 1 << 40;
/// Where tensors begin unless the file says otherwise: on multiples of this.
const ALIGNMENT: u64 = 32;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i64),
    /// Any float; one of 32 bits has the shortest decimal form that gives it back.
    Float(f64),
    /// Truth.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list of integers or truths.
    Integers(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f64>),
    /// A list of texts.
    Texts(Vec<String>),
}

/// Where a tensor stands.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlace {
    /// Kind of numbers.
    pub kind: TensorType,
    /// Shape, row-major: the last axis is the one that blocks run along.
    pub shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

/// An opened file.
pub struct Gguf<R> {
    source: R,
    /// The file, for messages.
    pub path: PathBuf,
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, TensorPlace>,
    data_start: u64,
}

impl<R: Read + Seek> Gguf<R> {
    /// Reads everything but the tensors' bytes; `path` is for messages.
    pub fn open(mut source: R, path: &Path) -> Result<Self, GgufError> {
        let length = source.seek(SeekFrom::End(0)).map_err(GgufError::io(path))?;
        source.rewind().map_err(GgufError::io(path))?;
        let mut header = Header { source, path, position: 0, length };
        let (tensor_count, metadata_count) = header.counts()?;
        let metadata = header.metadata(metadata_count)?;
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(Value::Integer(value)) if *value > 0 && value.count_ones() == 1 && *value <= 1 << 20 => *value as u64,
            Some(_) => return Err(header.wrong("general.alignment", "is not a power of two up to 1 MiB".to_owned())),
        };
        let tensors = header.tensors(tensor_count, alignment)?;
        let data_start = header.position.next_multiple_of(alignment);
        for (name, place) in &tensors {
            if place.offset.checked_add(place.bytes).is_none_or(|end| end > length.saturating_sub(data_start)) {
                let message = format!("ends behind the end of the file of {length} bytes: fetch the file again");
                return Err(header.wrong(&format!("tensor {name}"), message));
            }
        }
        Ok(Self { source: header.source, path: path.to_owned(), metadata, tensors, data_start })
    }

    /// An error about a field of this file.
    pub fn wrong(&self, field: &str, message: impl Into<String>) -> GgufError {
        GgufError::Field { path: self.path.clone(), field: field.to_owned(), message: message.into() }
    }

    /// A size or an id among the metadata: an integer from 0.
    pub fn size(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(_) => Err(self.wrong(key, "is not an integer from 0")),
        }
    }

    /// A text among the metadata.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "is not a text")),
        }
    }

    /// A truth among the metadata.
    pub fn truth(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(_) => Err(self.wrong(key, "is not true or false")),
        }
    }

    /// A list of texts that must be there.
    pub fn texts(&self, key: &str) -> Result<&[String], GgufError> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Ok(texts),
            Some(_) => Err(self.wrong(key, "is not a list of texts")),
            None => Err(self.wrong(key, "is missing")),
        }
    }

    /// Where a tensor of a given shape stands.
    pub fn place(&self, name: &str, shape: &[usize]) -> Result<&TensorPlace, GgufError> {
        let field = format!("tensor {name}");
        let Some(place) = self.tensors.get(name) else {
            return Err(self.wrong(&field, format!("is missing; its shape would be {shape:?}")));
        };
        match place.shape == shape {
            true => Ok(place),
            false => Err(self.wrong(&field, format!("has shape {:?}, the metadata ask for {shape:?}", place.shape))),
        }
    }

    /// A tensor's values, row-major.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, GgufError> {
        let bytes = self.read_bytes(name, shape)?;
        let mut values = Vec::new();
        self.place(name, shape)?.kind.dequantise(&bytes, &mut values);
        Ok(values)
    }

    /// A tensor's bytes as they stand in the file, row by row.
    pub fn read_bytes(&mut self, name: &str, shape: &[usize]) -> Result<Vec<u8>, GgufError> {
        let (offset, count) = self.place(name, shape).map(|place| (place.offset, place.bytes))?;
        let mut bytes = vec![0; count as usize];
        self.source
            .seek(SeekFrom::Start(self.data_start + offset))
            .and_then(|_| self.source.read_exact(&mut bytes))
            .map_err(GgufError::io(&self.path))?;
        Ok(bytes)
    }
}

/// What is read in order.
struct Header<'a, R> {
    source: R,
    path: &'a Path,
    position: u64,
    length: u64,
}

impl<R: Read> Header<'_, R> {
    fn wrong(&self, field: &str, message: String) -> GgufError {
        GgufError::Field { path: self.path.to_owned(), field: field.to_owned(), message }
    }

    fn bytes(&mut self, field: &str, count: u64) -> Result<Vec<u8>, GgufError> {
        let left = self.length.min(HEADER_LIMIT) - self.position;
        if count > left {
            let message = format!("would take {count} bytes, {left} are left for it: the file is cut or damaged");
            return Err(self.wrong(field, message));
        }
        let mut bytes = vec![0; count as usize];
        self.source.read_exact(&mut bytes).map_err(GgufError::io(self.path))?;
        self.position += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], GgufError> {
        let bytes = self.bytes(field, N as u64)?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    fn u32(&mut self, field: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    fn u64(&mut self, field: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    fn text(&mut self, field: &str, limit: u64) -> Result<String, GgufError> {
        let length = self.u64(field)?;
        if length > limit {
            return Err(self.wrong(field, format!("has {length} bytes, more than {limit}")));
        }
        let bytes = self.bytes(field, length)?;
        String::from_utf8(bytes).map_err(|_| self.wrong(field, "is not UTF-8".to_owned()))
    }

    /// Magic and version; numbers of tensors and of metadata.
    fn counts(&mut self) -> Result<(u64, u64), GgufError> {
        let magic: [u8; 4] = self.array("magic")?;
        if magic != *b"GGUF" {
            return Err(self.wrong("magic", format!("is {magic:?}: this is no GGUF file")));
        }
        let version = self.u32("version")?;
        if version != 2 && version != 3 {
            return Err(self.wrong("version", format!("is {version}; 2 and 3, little-endian, can be read")));
        }
        Ok((self.u64("tensor count")?, self.u64("metadata count")?))
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>, GgufError> {
        let mut metadata = BTreeMap::new();
        for number in 0..count {
            let key = self.text(&format!("key {number} of {count}"), NAME_LIMIT)?;
            let kind = self.u32(&key)?;
            let value = match kind {
                9 => self.list(&key)?,
                _ => self.value(&key, kind)?,
            };
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.wrong(&key, "stands there twice".to_owned()));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.array(key)?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array(key)?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array(key)?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array(key)?))),
            4 => Value::Integer(i64::from(self.u32(key)?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array(key)?))),
            6 => Value::Float(shortest(f32::from_le_bytes(self.array(key)?))),
            7 => match self.array(key)? {
                [0_u8] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.wrong(key, format!("is a truth of value {other}"))),
            },
            8 => Value::Text(self.text(key, HEADER_LIMIT)?),
            10 => {
                let value = self.u64(key)?;
                Value::Integer(i64::try_from(value).map_err(|_| self.wrong(key, format!("is {value}, too large")))?)
            }
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.wrong(key, format!("has a value of type {other}, which is not known"))),
        })
    }

    fn list(&mut self, key: &str) -> Result<Value, GgufError> {
        let (kind, count) = (self.u32(key)?, self.u64(key)?);
        let mut list = match kind {
            0..=5 | 7 | 10 | 11 => Value::Integers(Vec::new()),
            6 | 12 => Value::Floats(Vec::new()),
            8 => Value::Texts(Vec::new()),
            other => return Err(self.wrong(key, format!("is a list of type {other}, which is not known"))),
        };
        // A length that lies ends at the end of the file: nothing is reserved for it.
        for _ in 0..count {
            match (&mut list, self.value(key, kind)?) {
                (Value::Integers(all), Value::Integer(one)) => all.push(one),
                (Value::Integers(all), Value::Bool(one)) => all.push(i64::from(one)),
                (Value::Floats(all), Value::Float(one)) => all.push(one),
                (Value::Texts(all), Value::Text(one)) => all.push(one),
                _ => return Err(self.wrong(key, format!("is a list of mixed types, {kind} and another"))),
            }
        }
        Ok(list)
    }

    fn tensors(&mut self, count: u64, alignment: u64) -> Result<BTreeMap<String, TensorPlace>, GgufError> {
        let mut tensors = BTreeMap::new();
        for number in 0..count {
            let name = self.text(&format!("name of tensor {number} of {count}"), NAME_LIMIT)?;
            let place = self.tensor(&format!("tensor {name}"), alignment)?;
            if tensors.insert(name.clone(), place).is_some() {
                return Err(self.wrong(&format!("tensor {name}"), "stands there twice".to_owned()));
            }
        }
        Ok(tensors)
    }

    fn tensor(&mut self, field: &str, alignment: u64) -> Result<TensorPlace, GgufError> {
        let axes = self.u32(field)?;
        if axes == 0 || axes > 4 {
            return Err(self.wrong(field, format!("has {axes} axes; 1 to 4 are known")));
        }
        let lengths = (0..axes).map(|_| self.u64(field)).collect::<Result<Vec<u64>, _>>()?;
        let number = self.u32(field)?;
        let offset = self.u64(field)?;
        let Some(kind) = TensorType::of(number) else {
            let known = TensorType::KNOWN;
            return Err(self.wrong(field, format!("has numbers of type {number}, which is not known: {known} are")));
        };
        let values = lengths.iter().try_fold(1_u64, |product, &length| product.checked_mul(length));
        let Some(values) = values.filter(|values| (1..=TENSOR_LIMIT).contains(values)) else {
            return Err(self.wrong(field, format!("has the shape {lengths:?}, which no tensor has")));
        };
        let (weights, size) = kind.block();
        if !lengths[0].is_multiple_of(weights as u64) {
            let message = format!("has rows of {}, not whole blocks of {weights} ({})", lengths[0], kind.name());
            return Err(self.wrong(field, message));
        }
        if !offset.is_multiple_of(alignment) {
            return Err(self.wrong(field, format!("begins at {offset}, not on a multiple of {alignment}")));
        }
        let shape = lengths.iter().rev().map(|&length| length as usize).collect();
        Ok(TensorPlace { kind, shape, offset, bytes: values / weights as u64 * size as u64 })
    }
}

/// The float whose decimal form is the shortest one that gives `value` back: 1e-5, not 9.99999974e-6.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
