//! A request as an Arrow IPC stream: the users are the text column `user_id`; `groups` (comma-separated), `max_staleness_ms` and
//! `deadline_ms` stand in the schema's metadata. Text columns only, nothing compressed.
//!
//! The library that reads streams trusts what a stream says of itself: a length makes it allocate as much, an odd offset makes it
//! panic. So only its checked view of a message is used, and the one column that is wanted is read here.

use super::FeaturesRequest;
use crate::http::ApiError;
use arrow_ipc::{Buffer, Endianness, Message, MessageHeader, RecordBatch, Schema, Type, root_as_message_with_opts};
use flatbuffers::VerifierOptions;

/// Begins a message; a length follows.
const CONTINUATION: u32 = u32::MAX;
/// Of a text column: which values are there, where each begins and ends, the text.
const BUFFERS: usize = 3;
/// Tables of a message: parts of it may be named again and again, so that a small one would be long to look at.
const TABLES: usize = 4096;

/// Reads a request; a 400 says what is wrong with it.
pub(super) fn request(body: &[u8]) -> Result<FeaturesRequest, ApiError> {
    let malformed = |what: String| ApiError::bad_request(format!("body: malformed arrow stream: {what}"));
    let (mut request, mut rest, mut users) = (FeaturesRequest::default(), body, None);
    while let Some((message, buffers)) = next_message(&mut rest).map_err(malformed)? {
        match (message.header_type(), &users) {
            (MessageHeader::Schema, None) => {
                let schema = message.header_as_schema().ok_or_else(|| malformed("a schema without content".into()))?;
                if schema.endianness() != Endianness::Little {
                    return Err(malformed("its numbers are big-endian".into()));
                }
                read_metadata(&schema, &mut request)?;
                users = Some(UsersColumn::of(&schema)?);
            }
            (MessageHeader::RecordBatch, Some(users)) => {
                let batch =
                    message.header_as_record_batch().ok_or_else(|| malformed("a batch without content".into()))?;
                users.read(&batch, buffers, &mut request.users).map_err(malformed)?;
            }
            (other, _) => {
                return Err(malformed(format!("a message of kind {other:?}; first comes a schema, then batches")));
            }
        }
    }
    match (users, rest.is_empty()) {
        (Some(_), true) => Ok(request),
        (Some(_), false) => Err(malformed("something follows its end".into())),
        (None, _) => Err(malformed("no schema".into())),
    }
}

/// The next message and its body; `None` at the end of the stream.
fn next_message<'a>(rest: &mut &'a [u8]) -> Result<Option<(Message<'a>, &'a [u8])>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut word = || take(rest, 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    // Streams of before 2019 have no continuation.
    let length = match word()? {
        CONTINUATION => word()?,
        length => length,
    };
    if length == 0 {
        return Ok(None);
    }
    let bytes = take(rest, length as usize)?;
    // What a message seems to hold, each part counted as often as it is named, may be no more than twice what it is.
    let bounds = VerifierOptions {
        max_depth: 16,
        max_tables: TABLES,
        max_apparent_size: 2 * bytes.len() + 1024,
        ..VerifierOptions::default()
    };
    let message = root_as_message_with_opts(&bounds, bytes).map_err(|error| error.to_string())?;
    let body_length = usize::try_from(message.bodyLength()).map_err(|_| "a length below 0")?;
    Ok(Some((message, take(rest, body_length)?)))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let came = rest.len();
    let (taken, left) = rest.split_at_checked(count).ok_or_else(|| format!("{count} bytes announced, {came} came"))?;
    *rest = left;
    Ok(taken)
}

/// Keys that are not ours are passed over: libraries write metadata of their own.
fn read_metadata(schema: &Schema<'_>, request: &mut FeaturesRequest) -> Result<(), ApiError> {
    let mut seen = Vec::new();
    for pair in schema.custom_metadata().iter().flatten() {
        let (key, text) = (pair.key().unwrap_or_default(), pair.value().unwrap_or_default());
        if !["groups", "max_staleness_ms", "deadline_ms"].contains(&key) {
            continue;
        }
        if seen.contains(&key) {
            return Err(ApiError::field(key, "stands twice in the schema's metadata"));
        }
        seen.push(key);
        let number = || text.parse().map_err(|_| ApiError::field(key, format!("{text:?} is no number")));
        match key {
            "max_staleness_ms" => request.max_staleness_ms = Some(number()?),
            "deadline_ms" => request.deadline_ms = Some(number()?),
            _ => request.groups = (!text.is_empty()).then(|| text.split(',').map(str::to_string).collect()),
        }
    }
    Ok(())
}

/// Where the users stand in every batch.
struct UsersColumn {
    /// Among the columns.
    place: usize,
    columns: usize,
    /// Bytes of an offset.
    width: usize,
}

impl UsersColumn {
    fn of(schema: &Schema<'_>) -> Result<UsersColumn, ApiError> {
        let fields: Vec<_> = schema.fields().iter().flatten().collect();
        if let Some(other) = fields.iter().find(|field| !is_text(field)) {
            let name = other.name().unwrap_or_default();
            return Err(ApiError::field(name, "is no column of utf8; send text columns alone"));
        }
        let place = fields.iter().position(|field| field.name() == Some("user_id"));
        let place = place.ok_or_else(|| ApiError::field("user_id", "the stream has no such column"))?;
        let width = if fields[place].type_type() == Type::LargeUtf8 { 8 } else { 4 };
        Ok(UsersColumn { place, columns: fields.len(), width })
    }

    /// Adds a batch's users.
    fn read(&self, batch: &RecordBatch<'_>, body: &[u8], users: &mut Vec<String>) -> Result<(), String> {
        if batch.compression().is_some() {
            return Err("compressed batches are not taken".into());
        }
        let nodes = batch.nodes().ok_or("a batch without nodes")?;
        let buffers = batch.buffers().ok_or("a batch without buffers")?;
        if nodes.len() != self.columns || buffers.len() != BUFFERS * self.columns {
            return Err("another number of columns than the schema has".into());
        }
        let node = nodes.get(self.place);
        let count = usize::try_from(node.length()).map_err(|_| "a length below 0")?;
        if node.null_count() != 0 {
            return Err("user_id has nulls".into());
        }
        if count == 0 {
            return Ok(());
        }
        let buffer = |which: usize| slice(body, buffers.get(BUFFERS * self.place + which));
        let (offsets, text) = (buffer(1)?, buffer(2)?);
        if offsets.len() / self.width <= count {
            return Err("more rows than there are offsets".into());
        }
        let mut ends = offsets.chunks_exact(self.width).map(|bytes| {
            let mut word = [0; 8];
            word[..self.width].copy_from_slice(bytes);
            usize::try_from(u64::from_le_bytes(word)).ok()
        });
        let mut start = ends.next().flatten();
        for end in ends.take(count) {
            let range = start.zip(end).and_then(|(start, end)| text.get(start..end));
            let user =
                std::str::from_utf8(range.ok_or("a text outside its buffer")?).map_err(|error| error.to_string())?;
            users.push(user.to_string());
            start = end;
        }
        Ok(())
    }
}

fn is_text(field: &arrow_ipc::Field<'_>) -> bool {
    matches!(field.type_type(), Type::Utf8 | Type::LargeUtf8) && field.dictionary().is_none()
}

fn slice<'a>(body: &'a [u8], buffer: &Buffer) -> Result<&'a [u8], String> {
    let start = usize::try_from(buffer.offset()).ok();
    let range = start.zip(usize::try_from(buffer.length()).ok());
    let found = range.and_then(|(start, length)| body.get(start..start.checked_add(length)?));
    found.ok_or_else(|| "a buffer outside the body".to_string())
}
