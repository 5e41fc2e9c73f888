//! The protobuf form of an event (`taiji.v1.Event`) → the JSON object that [`super::EventDecoder`] validates, so that both
//! forms pass the same checks.
//!
//! Callers: `ingest::kafka`.

use crate::proto::{self, context_value::Kind};
use prost::{DecodeError, Message};
use serde_json::{Map, Number, Value};

/// Decodes the message; an empty string and a time of 0 are absent fields.
pub fn to_json(bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    let event = proto::Event::decode(bytes)?;
    let mut object = Map::new();
    for (name, text) in [
        ("event_id", event.event_id),
        ("user_id", event.user_id),
        ("item_id", event.item_id),
        ("action", event.action),
        ("domain", event.domain),
        ("request_id", event.request_id),
    ] {
        if !text.is_empty() {
            object.insert(name.to_string(), Value::String(text));
        }
    }
    if event.ts_ms != 0 {
        object.insert("ts_ms".to_string(), Value::from(event.ts_ms));
    }
    if let Some(value) = event.value {
        object.insert("value".to_string(), number(value));
    }
    if !event.context.is_empty() {
        let context = event.context.into_iter().map(|(name, value)| (name, json_of(value.kind))).collect();
        object.insert("context".to_string(), Value::Object(context));
    }
    Ok(object)
}

fn json_of(kind: Option<Kind>) -> Value {
    match kind {
        Some(Kind::Text(text)) => Value::String(text),
        Some(Kind::Number(value)) => number(value),
        Some(Kind::Integer(value)) => Value::from(value),
        Some(Kind::Flag(flag)) => Value::Bool(flag),
        None => Value::Null,
    }
}

/// NaN and infinities have no JSON form; as text they are refused by the field's own check.
fn number(value: f64) -> Value {
    Number::from_f64(value).map(Value::Number).unwrap_or_else(|| Value::String(value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::cloudevent::Envelope;
    use crate::event::{ActionTable, Event, EventDecoder, FieldError};
    use std::collections::BTreeMap;

    const NOW: i64 = 1_700_000_000_000;

    fn decode(event: &proto::Event) -> Result<Event, FieldError> {
        let object = to_json(&event.encode_to_vec()).expect("a message");
        EventDecoder::new(ActionTable::default(), BTreeMap::new()).decode_own(&object, &Envelope::default(), NOW)
    }

    #[test]
    fn a_message_becomes_the_same_event_as_its_json() {
        let attribute = |kind| proto::ContextValue { kind: Some(kind) };
        let event = proto::Event {
            event_id: "e".into(),
            user_id: "u".into(),
            action: "profile".into(),
            ts_ms: NOW,
            context: BTreeMap::from([
                ("region".to_string(), attribute(Kind::Text("north".into()))),
                ("age".to_string(), attribute(Kind::Integer(30))),
                ("cross_opt_out".to_string(), attribute(Kind::Flag(true))),
            ]),
            ..proto::Event::default()
        };
        let json = serde_json::json!({"event_id":"e","user_id":"u","action":"profile","ts_ms":NOW,
            "context":{"region":"north","age":30,"cross_opt_out":true}});
        let decoder = EventDecoder::new(ActionTable::default(), BTreeMap::new());
        assert_eq!(decode(&event), decoder.decode(&json, NOW));
    }

    #[test]
    fn what_is_wrong_is_named_as_in_json() {
        let click = proto::Event { action: "click".into(), item_id: "i".into(), ts_ms: NOW, ..proto::Event::default() };
        assert_eq!(decode(&click).expect_err("no user").field, "user_id");
        let timeless = proto::Event { user_id: "u".into(), ts_ms: 0, ..click.clone() };
        assert_eq!(decode(&timeless).expect_err("no time").reason, "is missing");
        let infinite = proto::Event { user_id: "u".into(), value: Some(f64::INFINITY), ..click };
        assert_eq!(decode(&infinite).expect_err("no number").field, "value");
        assert!(to_json(b"\x0a\xff").is_err());
    }
}
