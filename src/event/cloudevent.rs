//! CloudEvents 1.0: structured (one JSON object whose `data` is the event) and binary (attributes in headers, the event is
//! the value or body).
//!
//! In: a JSON value, or headers. Out: the [`Envelope`] with what it says about the event, or `None` where there is no envelope.
//! Callers: [`super::EventDecoder`] opens structured ones, so HTTP and Kafka take the same; `api::events` and
//! `ingest::kafka::decode` ask for their headers' ([`of_headers`]).

use super::{FieldError, json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What an envelope says about its event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Envelope {
    /// For an event without an id of its own: a hash of `source` and `id`, which together are unique by the standard.
    pub(super) event_id: Option<String>,
    /// For an event without a time of its own: `time`, unix ms.
    pub(super) ts_ms: Option<i64>,
}

/// The envelope of binary mode, where there is one: `header` gives an attribute's value by its name (`specversion`, `id`, …),
/// decoded. A message that says `specversion` must have `id`, `source` and `type`, too.
pub fn of_headers(header: impl Fn(&str) -> Option<String>) -> Result<Option<Envelope>, FieldError> {
    let Some(version) = header("specversion") else { return Ok(None) };
    check_version(&version)?;
    let required = |name: &str| {
        let missing = || FieldError::new(name, "is missing among the cloudevent's headers");
        header(name).filter(|value| !value.is_empty()).ok_or_else(missing)
    };
    let (id, source, _) = (required("id")?, required("source")?, required("type")?);
    let ts_ms = header("time").map(|time| unix_ms(&time)).transpose()?;
    Ok(Some(Envelope { event_id: Some(identity(&source, &id)), ts_ms }))
}

/// Opens a structured envelope if the value is one: an object with `specversion`, `id`, `source` and `type`. Returns its data, too.
pub(super) fn open(value: &Value) -> Result<Option<(Value, Envelope)>, FieldError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let (Some(version), Some(id), Some(source), Some(_)) =
        (text("specversion"), text("id"), text("source"), text("type"))
    else {
        return Ok(None);
    };
    check_version(version)?;
    let ts_ms = match text("time") {
        Some(time) => Some(unix_ms(time)?),
        None => None,
    };
    Ok(Some((data(value)?, Envelope { event_id: Some(identity(source, id)), ts_ms })))
}

fn check_version(version: &str) -> Result<(), FieldError> {
    if version == "1.0" {
        return Ok(());
    }
    Err(FieldError::new("specversion", format!("{version:?} is not a version we read; 1.0 is")))
}

fn data(value: &Value) -> Result<Value, FieldError> {
    if let Some(encoded) = value.get("data_base64").and_then(Value::as_str) {
        let bytes = STANDARD.decode(encoded).map_err(|error| FieldError::new("data_base64", error.to_string()))?;
        return json::parse_strictly(&bytes, "data_base64");
    }
    value.get("data").cloned().ok_or_else(|| FieldError::new("data", "is missing in the cloudevent"))
}

fn unix_ms(time: &str) -> Result<i64, FieldError> {
    chrono::DateTime::parse_from_rfc3339(time)
        .map(|time| time.timestamp_millis())
        .map_err(|error| FieldError::new("time", format!("must be an RFC 3339 timestamp: {error}")))
}

fn identity(source: &str, id: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update((source.len() as u64).to_le_bytes());
    hasher.update(source.as_bytes());
    hasher.update(id.as_bytes());
    hex::encode(&hasher.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use crate::event::{ActionTable, Event, EventDecoder, FieldError};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const NOW: i64 = 1_800_000_000_000;

    fn decode(value: Value) -> Result<Event, FieldError> {
        EventDecoder::new(ActionTable::default(), BTreeMap::new()).decode(&value, NOW)
    }

    fn envelope(data: Value) -> Value {
        json!({"specversion":"1.0","type":"click","source":"/shop","id":"7","time":"2026-11-24T10:00:00.5Z","data":data})
    }

    #[test]
    fn the_data_is_the_event_and_the_envelope_fills_its_gaps() {
        let event = decode(envelope(json!({"user_id":"u","item_id":"i","action":"click"}))).expect("valid");
        assert_eq!((event.user_id.as_str(), event.ts_ms), ("u", 1_795_514_400_500));
        assert_eq!(event.event_id.len(), 32);
        let own = json!({"user_id":"u","item_id":"i","action":"click","event_id":"e","ts_ms":NOW});
        let event = decode(envelope(own)).expect("valid");
        assert_eq!((event.event_id.as_str(), event.ts_ms), ("e", NOW));
    }

    #[test]
    fn one_id_of_two_sources_is_two_events() {
        let data = json!({"user_id":"u","item_id":"i","action":"click"});
        let mut other = envelope(data.clone());
        other["source"] = json!("/app");
        let first = decode(envelope(data.clone())).expect("valid").event_id;
        assert_eq!(first, decode(envelope(data)).expect("valid").event_id);
        assert_ne!(first, decode(other).expect("valid").event_id);
    }

    #[test]
    fn binary_mode_is_the_same_event_as_structured_mode() {
        let data = json!({"user_id":"u","item_id":"i","action":"click"});
        let structured = envelope(data.clone());
        let header = |name: &str| structured.get(name).and_then(Value::as_str).map(String::from);
        let binary = super::of_headers(header).expect("valid").expect("an envelope");
        let decoder = EventDecoder::new(ActionTable::default(), BTreeMap::new());
        assert_eq!(decoder.decode_data(&data, &binary, NOW), decode(structured.clone()));
        assert_eq!(super::of_headers(|_| None), Ok(None));
        for (name, wrong) in [("specversion", "0.3"), ("id", ""), ("source", ""), ("type", ""), ("time", "noon")] {
            let header = |asked: &str| if asked == name { Some(wrong.to_string()) } else { header(asked) };
            assert_eq!(super::of_headers(header).expect_err("refused").field, name);
        }
    }

    #[test]
    fn base64_data_is_read_and_wrong_envelopes_name_the_field() {
        let mut binary = envelope(Value::Null);
        let text = r#"{"user_id":"u","item_id":"i","action":"click"}"#;
        binary["data_base64"] = json!(base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text));
        assert_eq!(decode(binary).expect("valid").user_id, "u");
        for (field, wrong) in [
            ("specversion", json!({"specversion":"0.3","type":"t","source":"s","id":"1","data":{}})),
            ("time", json!({"specversion":"1.0","type":"t","source":"s","id":"1","time":"yesterday","data":{}})),
            ("data", json!({"specversion":"1.0","type":"t","source":"s","id":"1"})),
            ("data_base64", json!({"specversion":"1.0","type":"t","source":"s","id":"1","data_base64":"%"})),
            ("user_id", json!({"specversion":"1.0","type":"t","source":"s","id":"1","data":{}})),
        ] {
            assert_eq!(decode(wrong).expect_err("refused").field, field);
        }
    }
}
