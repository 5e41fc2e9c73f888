//! Events and items as producers send them: an accepted one keeps the limits of DESIGN 5.1 and survives being written again; a
//! refusal names a field or a reason, in few words.

use crate::event::decode::{FieldError, check_id};
use crate::event::json::parse_strictly;
use crate::event::{
    ActionTable, BadReason, Event, EventDecoder, MAX_ATTRIBUTES, MAX_FUTURE_MS, MAX_ID_BYTES, MAX_TEXT_BYTES,
    MIN_TS_MS, protobuf as wire,
};
use crate::http::parse_batch;
use crate::ingest::kafka::decode::{BadRecord, ItemChange, RecordDecoder};
use crate::proto;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;

/// The wall clock of the targets.
pub(super) const NOW_MS: i64 = 1_700_000_000_000;
/// Larger records are refused.
const MAX_RECORD_BYTES: usize = 1 << 20;
/// A refusal is shorter than this.
const MAX_MESSAGE_BYTES: usize = 1024;
const MAX_ENTRIES: usize = 50;

fn decoder(field_map: BTreeMap<String, String>) -> RecordDecoder {
    RecordDecoder::new(EventDecoder::new(ActionTable::default(), field_map), MAX_RECORD_BYTES)
}

fn content_type(kind: &'static str) -> impl Fn(&str) -> Option<String> {
    move |name| (name == "content-type" && !kind.is_empty()).then(|| kind.to_string())
}

/// A record's value without headers.
pub(super) fn json(bytes: &[u8]) -> bool {
    checked(decoder(BTreeMap::new()).event(Some(bytes), content_type(""), NOW_MS))
}

/// A foreign schema.
pub(super) fn mapped(bytes: &[u8]) -> bool {
    let map =
        [("user_id", "/who/id"), ("item_id", "/what/0"), ("action", "/verb"), ("ts_ms", "/at"), ("context", "/more~1")];
    let map = map.map(|(field, pointer)| (field.to_string(), pointer.to_string()));
    checked(decoder(map.into()).event(Some(bytes), content_type(""), NOW_MS))
}

/// `application/x-protobuf`; what the message says is the same after it is written again.
pub(super) fn protobuf(bytes: &[u8]) -> bool {
    if let Ok(message) = proto::Event::decode(bytes) {
        let again = wire::to_json(&message.encode_to_vec());
        assert_eq!(wire::to_json(bytes), again);
    }
    checked(decoder(BTreeMap::new()).event(Some(bytes), content_type("application/x-protobuf"), NOW_MS))
}

/// `application/cloudevents+json`.
pub(super) fn cloudevent_structured(bytes: &[u8]) -> bool {
    let decoder = decoder(BTreeMap::new());
    checked(decoder.event(Some(bytes), content_type("application/cloudevents+json"), NOW_MS))
}

/// `name: value` lines, an empty line, the value.
pub(super) fn cloudevent_binary(bytes: &[u8]) -> bool {
    let end = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let lines = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let headers: Vec<(&str, &str)> = lines.lines().filter_map(|line| line.split_once(": ")).collect();
    let header = |name: &str| headers.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
    let value = bytes.get(end + 2..).unwrap_or_default();
    let decoded = decoder(BTreeMap::new()).event(Some(value), header, NOW_MS);
    if let (Ok(event), Some("1.0")) = (&decoded, header("ce_specversion").as_deref()) {
        let whole =
            ["ce_id", "ce_source", "ce_type"].iter().all(|name| header(name).is_some_and(|text| !text.is_empty()));
        let structured = header("content-type").is_some_and(|kind| kind.to_ascii_lowercase().contains("cloudevents"));
        assert!(whole || structured, "an event with half an envelope: {event:?}");
    }
    checked(decoded)
}

fn checked(decoded: Result<Event, BadRecord>) -> bool {
    match decoded {
        Ok(event) => {
            check_limits(&event);
            check_again(&event);
            true
        }
        Err(bad) => {
            check_refusal(&bad);
            false
        }
    }
}

fn check_refusal(bad: &BadRecord) {
    assert!((1..=MAX_MESSAGE_BYTES).contains(&bad.message.len()), "{} bytes of message", bad.message.len());
    assert!(!bad.message.chars().any(char::is_control), "{:?}", bad.message);
    if bad.reason == BadReason::Field {
        let (field, reason) = bad.message.split_once(": ").expect("a field and its reason");
        assert!(!reason.is_empty() && field.len() <= MAX_ID_BYTES + 20, "{bad}");
    }
}

/// DESIGN 5.1.
fn check_limits(event: &Event) {
    let ids = [Some(&event.event_id), Some(&event.user_id), event.item_id.as_ref(), event.request_id.as_ref()];
    for id in ids.into_iter().flatten() {
        assert_eq!(check_id("id", id), Ok(()));
    }
    assert!(ActionTable::default().get(&event.action).is_some(), "{}", event.action);
    assert!((MIN_TS_MS..=NOW_MS + MAX_FUTURE_MS).contains(&event.ts_ms), "{}", event.ts_ms);
    assert!(event.value.is_none_or(f64::is_finite));
    match event.action.as_str() {
        "search" => {
            let query = event.context.get("query").and_then(Value::as_str).expect("a query");
            assert!((1..=MAX_TEXT_BYTES).contains(&query.len()));
        }
        "profile" => {
            assert!((1..=MAX_ATTRIBUTES).contains(&event.context.len()));
            assert!(event.context.values().all(|value| value.to_string().len() <= MAX_TEXT_BYTES));
        }
        _ => assert!(event.item_id.is_some()),
    }
}

/// Written as JSON and read again it is the same event. (Numbers that no decimal text of theirs names exactly may move by their
/// last bit once.)
fn check_again(event: &Event) {
    let again = |event: &Event| {
        let text = serde_json::to_vec(event).expect("json");
        decoder(BTreeMap::new())
            .event(Some(&text), content_type(""), NOW_MS)
            .expect("an accepted event is accepted again")
    };
    let once = again(event);
    let without_numbers =
        |event: &Event| Event { value: event.value.map(|_| 0.0), context: BTreeMap::new(), ..event.clone() };
    assert_eq!(without_numbers(&once), without_numbers(event));
    assert!(once.context.keys().eq(event.context.keys()));
}

/// An item of the items topic.
pub(super) fn item(bytes: &[u8]) -> bool {
    let decoder = decoder(BTreeMap::new());
    match decoder.item(Some(b"key"), Some(bytes), None) {
        Ok(ItemChange::Put(item)) => {
            assert_eq!(item.validate(), Ok(()));
            let text = serde_json::to_vec(&item).expect("json");
            let again = decoder.item(None, Some(&text), None);
            assert!(matches!(again, Ok(ItemChange::Put(again)) if again.id == item.id && again.title == item.title));
            true
        }
        Ok(ItemChange::Delete(id)) => panic!("a value is no tombstone: {id}"),
        Err(bad) => {
            check_refusal(&bad);
            false
        }
    }
}

/// A body of `POST /v1/events`, with and without a content type that says NDJSON.
pub(super) fn batch(bytes: &[u8]) -> bool {
    let mut accepted = false;
    for lines in [false, true] {
        let Ok(entries) = parse_batch(bytes, "events", MAX_ENTRIES, lines) else { continue };
        accepted = true;
        assert!((1..=MAX_ENTRIES).contains(&entries.len()));
        // More than one value that is no array of ours: then a line is an entry, in order.
        if serde_json::from_slice::<Value>(bytes).is_err() {
            let texts: Vec<&[u8]> =
                bytes.split(|byte| *byte == b'\n').filter(|line| !line.iter().all(u8::is_ascii_whitespace)).collect();
            assert_eq!(texts.len(), entries.len());
            for (text, entry) in texts.iter().zip(&entries) {
                assert_eq!(parse_strictly(text, "event").ok(), entry.as_ref().ok().cloned());
            }
        }
        let decoder = EventDecoder::new(ActionTable::default(), BTreeMap::new());
        for value in entries.iter().flatten() {
            match decoder.decode(value, NOW_MS) {
                Ok(event) => check_limits(&event),
                Err(FieldError { field, reason }) => assert!(field.len() <= MAX_ID_BYTES && !reason.is_empty()),
            }
        }
    }
    accepted
}
