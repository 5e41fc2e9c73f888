//! Taking bodies apart: one object, or a batch in a wrapper object, alone, or as NDJSON.

use super::ApiError;
use crate::event::FieldError;
use crate::event::json::{self, Parsed, Step};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

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

/// One entry of a batch: the value, or why it is none: its line is not JSON, or a key stands twice.
pub type Entry = Result<Value, FieldError>;

/// Takes a batch apart: `{"<name>": […]}`, one object, or one object a line (NDJSON).
///
/// `lines`: the client says that it sends NDJSON ([`says_ndjson`]), so even a first line that is wrong is only that line.
pub fn parse_batch(bytes: &[u8], name: &str, limit: usize, lines: bool) -> Result<Vec<Entry>, ApiError> {
    let entries = match json::parse(bytes) {
        Ok(Parsed { value: Value::Object(object), repeated }) if object.contains_key(name) => {
            unwrap_batch(object, name, repeated)?
        }
        Ok(Parsed { value: value @ Value::Object(_), repeated }) => {
            vec![repeated.first().map_or(Ok(value), |path| Err(json::twice(path)))]
        }
        Ok(_) => {
            return Err(ApiError::bad_request(format!("body: must be {{\"{name}\": […]}}, one object, or ndjson")));
        }
        Err(error) => parse_lines(bytes, name, lines)
            .ok_or_else(|| ApiError::bad_request(format!("body: malformed json: {error}")))?,
    };
    if entries.is_empty() {
        return Err(ApiError::field(name, "is empty"));
    }
    if entries.len() > limit {
        return Err(ApiError::field(name, format!("{} entries, at most {limit} per call", entries.len())));
    }
    Ok(entries)
}

/// The entries of `{"<name>": […]}`; a key that stands twice in one is that entry's fault alone.
fn unwrap_batch(
    mut object: serde_json::Map<String, Value>,
    name: &str,
    repeated: Vec<Vec<Step>>,
) -> Result<Vec<Entry>, ApiError> {
    if let Some(other) = object.keys().find(|key| *key != name) {
        return Err(ApiError::field(other, "unknown field"));
    }
    let Some(Value::Array(values)) = object.remove(name) else {
        return Err(ApiError::field(name, "must be an array"));
    };
    let mut entries: Vec<Entry> = values.into_iter().map(Ok).collect();
    for path in repeated {
        let [Step::Key(_), Step::Index(index), inner @ ..] = path.as_slice() else {
            let error = json::twice(&path);
            return Err(ApiError::field(&error.field, error.reason));
        };
        if let Some(entry) = entries.get_mut(*index) {
            *entry = Err(json::twice(inner));
        }
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
fn parse_lines(bytes: &[u8], name: &str, said: bool) -> Option<Vec<Entry>> {
    let whole = name.strip_suffix('s').unwrap_or(name);
    let lines: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace)).collect();
    let entries: Vec<Entry> = lines.iter().map(|line| json::parse_strictly(line, whole)).collect();
    let looks_so = entries.len() > 1
        && lines.first().is_some_and(|line| matches!(json::parse(line), Ok(Parsed { value: Value::Object(_), .. })));
    (looks_so || (said && !entries.is_empty())).then_some(entries)
}

/// Where only JSON is served: a client that accepts nothing else is told so.
pub fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else { return Ok(()) };
    let json = accept.split(',').map(|part| part.split(';').next().unwrap_or("").trim());
    if json
        .clone()
        .any(|kind| ["*/*", "application/*", "application/json"].iter().any(|known| kind.eq_ignore_ascii_case(known)))
    {
        return Ok(());
    }
    Err(ApiError::NotAcceptable { accept: accept.to_string(), served: "application/json".to_string() })
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

    #[test]
    fn audit_05_a_key_that_stands_twice_is_its_entrys_fault_alone() {
        let fields = |text: &str| -> Vec<Option<String>> {
            let entries = parse_batch(text.as_bytes(), "events", 3, false).expect("batch");
            entries.into_iter().map(|entry| entry.err().map(|error| error.field)).collect()
        };
        let twice = r#"{"user_id":"a","context":{"q":1,"q":2}}"#;
        assert_eq!(fields(twice), [Some("context.q".into())]);
        assert_eq!(fields(&format!(r#"{{"events":[{{"a":1}},{twice}]}}"#)), [None, Some("context.q".into())]);
        assert_eq!(fields(&format!("{{\"a\":1}}\n{twice}\n")), [None, Some("context.q".into())]);
        assert_eq!(fields(&format!("{twice}\n{{\"a\":1}}\n")), [Some("context.q".into()), None]);
        assert!(count(r#"{"events":[{}],"events":[{}]}"#).is_err());
    }
}
