//! A request as an Arrow IPC stream: the users are the text column `user_id`; `groups` (comma-separated), `max_staleness_ms` and
//! `deadline_ms` stand in the schema's metadata.
//!
//! The library that reads streams trusts what a stream says of itself: a length makes it allocate as much, an offset beyond the body
//! makes it panic. So what a stream says is held against what came before it is read: text columns only, nothing compressed.

use super::FeaturesRequest;
use crate::http::ApiError;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::{Message, MessageHeader, RecordBatch, Schema, Type, root_as_message};
use arrow_schema::DataType;
use std::io::Cursor;

/// Begins a message; a length follows.
const CONTINUATION: u32 = u32::MAX;

/// Reads a request; a 400 says what is wrong with it.
pub(super) fn request(body: &[u8]) -> Result<FeaturesRequest, ApiError> {
    check_stream(body).map_err(malformed)?;
    let reader = StreamReader::try_new(Cursor::new(body), None).map_err(malformed)?;
    let schema = reader.schema();
    let mut request = FeaturesRequest::default();
    for (key, text) in schema.metadata() {
        let number = || text.parse().map_err(|_| ApiError::field(key, format!("{text:?} is no number")));
        match key.as_str() {
            "groups" => request.groups = Some(text.split(',').map(str::to_string).collect()),
            "max_staleness_ms" => request.max_staleness_ms = Some(number()?),
            "deadline_ms" => request.deadline_ms = Some(number()?),
            // Libraries write metadata of their own (pandas).
            _ => {}
        }
    }
    let place = schema.index_of("user_id").map_err(|_| ApiError::field("user_id", "the stream has no such column"))?;
    for batch in reader {
        push_users(batch.map_err(malformed)?.column(place), &mut request.users)?;
    }
    Ok(request)
}

fn malformed(error: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("body: malformed arrow stream: {error}"))
}

fn push_users(column: &ArrayRef, users: &mut Vec<String>) -> Result<(), ApiError> {
    if column.null_count() > 0 {
        return Err(ApiError::field("user_id", "has nulls"));
    }
    match column.data_type() {
        DataType::LargeUtf8 => users.extend(column.as_string::<i64>().iter().flatten().map(str::to_string)),
        _ => users.extend(column.as_string::<i32>().iter().flatten().map(str::to_string)),
    }
    Ok(())
}

/// Holds every message of the stream against what came.
fn check_stream(mut rest: &[u8]) -> Result<(), String> {
    let mut columns = None;
    while let Some(length) = message_length(&mut rest)? {
        let message = root_as_message(take(&mut rest, length)?).map_err(|error| error.to_string())?;
        let body_length = usize::try_from(message.bodyLength()).map_err(|_| "a length below 0")?;
        take(&mut rest, body_length)?;
        check_message(&message, body_length, &mut columns)?;
    }
    columns.map(|_| ()).ok_or_else(|| "no schema".to_string())
}

/// Bytes of the next message; `None` at the end of the stream.
fn message_length(rest: &mut &[u8]) -> Result<Option<usize>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let mut word = || take(rest, 4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    // Streams of before 2019 have no continuation.
    let length = match word()? {
        CONTINUATION => word()?,
        length => length,
    };
    Ok((length > 0).then_some(length as usize))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, left) =
        rest.split_at_checked(count).ok_or_else(|| format!("{count} bytes announced, {} came", rest.len()))?;
    *rest = left;
    Ok(taken)
}

fn check_message(message: &Message<'_>, body_length: usize, columns: &mut Option<Vec<Type>>) -> Result<(), String> {
    match message.header_type() {
        MessageHeader::Schema if columns.is_none() => {
            let schema = message.header_as_schema().ok_or("a schema without content")?;
            *columns = Some(text_columns(&schema)?);
            Ok(())
        }
        MessageHeader::RecordBatch => {
            let columns = columns.as_ref().ok_or("a batch before the schema")?;
            let batch = message.header_as_record_batch().ok_or("a batch without content")?;
            check_batch(&batch, columns, body_length)
        }
        other => Err(format!("a message of kind {other:?}; a request is one schema, then batches")),
    }
}

fn text_columns(schema: &Schema<'_>) -> Result<Vec<Type>, String> {
    let fields = schema.fields().ok_or("a schema without columns")?;
    fields
        .iter()
        .map(|field| {
            let is_text = matches!(field.type_type(), Type::Utf8 | Type::LargeUtf8) && field.dictionary().is_none();
            let name = field.name().unwrap_or_default();
            if is_text {
                Ok(field.type_type())
            } else {
                Err(format!("column {name:?} is no utf8; send text columns alone"))
            }
        })
        .collect()
}

/// One node and three buffers a column (validity, offsets, text), all of them within the body and large enough.
fn check_batch(batch: &RecordBatch<'_>, columns: &[Type], body_length: usize) -> Result<(), String> {
    if batch.compression().is_some() {
        return Err("compressed batches are not taken".into());
    }
    let (nodes, buffers) =
        (batch.nodes().ok_or("a batch without nodes")?, batch.buffers().ok_or("a batch without buffers")?);
    if nodes.len() != columns.len() || buffers.len() != 3 * columns.len() {
        return Err("another number of columns than the schema has".into());
    }
    for buffer in buffers {
        let (start, length) = (usize::try_from(buffer.offset()), usize::try_from(buffer.length()));
        let end = start.ok().zip(length.ok()).and_then(|(start, length)| start.checked_add(length));
        if end.is_none_or(|end| end > body_length) {
            return Err("a buffer outside the body".into());
        }
    }
    for (place, (node, column)) in nodes.iter().zip(columns).enumerate() {
        let width = if *column == Type::Utf8 { 4 } else { 8 };
        let offsets = buffers.get(3 * place + 1).length() / width;
        if node.length() != batch.length() || node.length() < 0 || (node.length() > 0 && offsets <= node.length()) {
            return Err("more rows than there are offsets".into());
        }
        if !(0..=node.length()).contains(&node.null_count()) {
            return Err("more nulls than rows".into());
        }
        let validity = buffers.get(3 * place).length();
        if node.null_count() > 0 && validity.saturating_mul(8) < node.length() {
            return Err("more rows than the validity has bits".into());
        }
    }
    Ok(())
}
