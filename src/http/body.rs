//! Reading request bodies within limits, and taking batches apart: a wrapper object, one object, or NDJSON.

use super::ApiError;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// A refused body is read and thrown away up to this size, so that the client sees the 413 and not a reset.
const DISCARD_LIMIT: usize = 8 << 20;

/// A body may pause this long.
const BODY_SILENCE: Duration = Duration::from_secs(10);

/// Reads a body of at most `limit` bytes.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut kept = BytesMut::new();
    let mut seen = 0;
    // A client that stops sending must not keep one of the places for requests.
    while let Some(chunk) = tokio::time::timeout(BODY_SILENCE, stream.next())
        .await
        .map_err(|_| ApiError::Timeout { seconds: BODY_SILENCE.as_secs() })?
    {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("body could not be read: {error}")))?;
        seen += chunk.len();
        if seen > limit.max(DISCARD_LIMIT) {
            break;
        }
        if seen <= limit {
            kept.extend_from_slice(&chunk);
        }
    }
    if seen > limit { Err(ApiError::TooLarge { limit }) } else { Ok(kept.freeze()) }
}

/// Parses a whole body, an object, as `T`; the message says where the JSON is wrong.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(ApiError::bad_request("body: must be a json object, not a list"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        if path == "." { ApiError::bad_request(format!("body: {message}")) } else { ApiError::field(&path, message) }
    })?;
    deserializer.end().map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
    Ok(value)
}

/// One entry of a batch: the value, or why its line is not JSON.
pub type Entry = Result<Value, String>;

/// Takes a batch apart: `{"<name>": […]}`, one object, or one object a line (NDJSON).
///
/// `lines`: the client says that it sends NDJSON ([`says_ndjson`]), so even a first line that is wrong is only that line.
pub fn parse_batch(bytes: &[u8], name: &str, limit: usize, lines: bool) -> Result<Vec<Entry>, ApiError> {
    let entries = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(mut object)) if object.contains_key(name) => {
            if let Some(other) = object.keys().find(|key| *key != name) {
                return Err(ApiError::field(other, "unknown field"));
            }
            match object.remove(name) {
                Some(Value::Array(values)) => values.into_iter().map(Ok).collect(),
                _ => return Err(ApiError::field(name, "must be an array")),
            }
        }
        Ok(value @ Value::Object(_)) => vec![Ok(value)],
        Ok(_) => {
            return Err(ApiError::bad_request(format!("body: must be {{\"{name}\": […]}}, one object, or ndjson")));
        }
        Err(error) => {
            parse_lines(bytes, lines).ok_or_else(|| ApiError::bad_request(format!("body: malformed json: {error}")))?
        }
    };
    if entries.is_empty() {
        return Err(ApiError::field(name, "is empty"));
    }
    if entries.len() > limit {
        return Err(ApiError::field(name, format!("{} entries, at most {limit} per call", entries.len())));
    }
    Ok(entries)
}

/// Whether the content type says NDJSON.
pub fn says_ndjson(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    ["application/x-ndjson", "application/ndjson", "application/jsonl"]
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known))
}

/// NDJSON: said so, or more than one line, the first of which is an object; other lines may be wrong one by one.
fn parse_lines(bytes: &[u8], said: bool) -> Option<Vec<Entry>> {
    let lines: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace)).collect();
    let parse =
        |line: &&[u8]| serde_json::from_slice::<Value>(line).map_err(|error| format!("malformed json: {error}"));
    let entries: Vec<Entry> = lines.iter().map(parse).collect();
    let looks_so = entries.len() > 1 && matches!(entries.first(), Some(Ok(Value::Object(_))));
    (looks_so || (said && !entries.is_empty())).then_some(entries)
}

/// Only JSON is served so far; a client that accepts nothing else is told so.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else { return Ok(()) };
    let json = accept.split(',').map(|part| part.split(';').next().unwrap_or("").trim());
    if json.clone().any(|kind| matches!(kind, "*/*" | "application/*" | "application/json")) {
        return Ok(());
    }
    Err(ApiError::NotAcceptable { accept: accept.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Result<(usize, usize), ApiError> {
        let entries = parse_batch(text.as_bytes(), "events", 3, false)?;
        Ok((entries.len(), entries.iter().filter(|entry| entry.is_err()).count()))
    }

    #[test]
    fn the_three_shapes_of_a_batch() {
        assert_eq!(count(r#"{"events":[{"a":1},{"a":2}]}"#).expect("wrapper"), (2, 0));
        assert_eq!(count(r#"{"a":1}"#).expect("single"), (1, 0));
        assert_eq!(count("{\"a\":1}\n{\"a\":2}\n\n{bad\n").expect("ndjson"), (3, 1));
    }

    #[test]
    fn a_client_that_says_ndjson_may_begin_with_a_bad_line() {
        let entries = parse_batch(b"{bad\n{\"a\":1}\n", "events", 3, true).expect("lines");
        assert!(entries[0].is_err() && entries[1].is_ok() && entries.len() == 2);
        assert!(parse_batch(b" \n", "events", 3, true).is_err());
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        for text in [
            "",
            "{",
            "[1]",
            "3",
            r#"{"events":3}"#,
            r#"{"events":[]}"#,
            r#"{"events":[1,2,3,4]}"#,
            r#"{"events":[{}],"x":1}"#,
            "{bad\n{\"a\":1}",
        ] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_read_away_and_refused() {
        let body = Body::from(vec![b'x'; 2 << 20]);
        assert!(matches!(read_body(body, 1 << 20).await, Err(ApiError::TooLarge { .. })));
        assert_eq!(read_body(Body::from("abc"), 3).await.expect("fits"), "abc");
    }
}
