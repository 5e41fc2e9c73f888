//! A record's bytes → event or item, or why not.
//!
//! In: value and headers (`content-type`, and `ce_…` of a CloudEvent in binary mode). Out: [`Event`], [`Item`], or a [`BadRecord`] whose reason is a metric label and whose
//! message tells the producer what would be right. Callers: [`super::consumer`]. Pure.

use super::record::CONTENT_TYPE;
use crate::event::cloudevent;
use crate::event::decode::shortened;
use crate::event::{BadReason, Event, EventDecoder, FieldError, Item, json, protobuf};
use serde_json::Value;
use std::fmt;

/// Longest message of a [`BadRecord`], in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Before a CloudEvent's attribute in binary mode.
const CLOUDEVENT_PREFIX: &str = "ce_";

/// A record that will never be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// Which kind of wrong.
    pub reason: BadReason,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl BadRecord {
    /// A refusal; the message is shortened, for it goes into a header and may repeat what the record says.
    pub fn new(reason: BadReason, message: impl Into<String>) -> BadRecord {
        BadRecord { reason, message: shortened(message.into(), MAX_MESSAGE_BYTES) }
    }
}

impl fmt::Display for BadRecord {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.reason.as_str(), self.message)
    }
}

/// What a record of the items topic asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemChange {
    /// Add or replace.
    Put(Item),
    /// A tombstone: the item of this id is no more.
    Delete(String),
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    /// A CloudEvent in structured mode; its own attributes count, not those of headers.
    CloudEvent,
    Protobuf,
}

/// Decodes records; one per process.
#[derive(Debug, Clone)]
pub struct RecordDecoder {
    events: EventDecoder,
    max_bytes: usize,
}

impl RecordDecoder {
    /// A decoder that refuses values of more than `max_bytes`.
    pub fn new(events: EventDecoder, max_bytes: usize) -> RecordDecoder {
        RecordDecoder { events, max_bytes }
    }

    /// An event, checked against the wall clock `now_ms`; `header` gives a header's text by its name.
    pub fn event(
        &self,
        value: Option<&[u8]>,
        header: impl Fn(&str) -> Option<String>,
        now_ms: i64,
    ) -> Result<Event, BadRecord> {
        let bytes = self.checked(value)?;
        let format = format_of(header(CONTENT_TYPE).as_deref())?;
        let envelope = match format {
            Format::CloudEvent => None,
            _ => cloudevent::of_headers(|name| header(&[CLOUDEVENT_PREFIX, name].concat())).map_err(field)?,
        };
        if format == Format::Json
            && envelope.is_none()
            && let Some(event) = self.events.plain(bytes, now_ms)
        {
            return Ok(event);
        }
        let decoded = match (format, envelope) {
            (Format::Protobuf, envelope) => {
                let object = protobuf::to_json(bytes).map_err(|error| {
                    BadRecord::new(BadReason::Protobuf, format!("the value is no taiji.v1.Event: {error}"))
                })?;
                self.events.decode_own(&object, &envelope.unwrap_or_default(), now_ms)
            }
            (_, Some(envelope)) => self.events.decode_data(&read_json(bytes)?, &envelope, now_ms),
            (_, None) => self.events.decode(&read_json(bytes)?, now_ms),
        };
        decoded.map_err(field)
    }

    /// An item, or its tombstone (a null value under the item's id as key).
    pub fn item(
        &self,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        content_type: Option<&str>,
    ) -> Result<ItemChange, BadRecord> {
        if value.is_none() {
            let id = key.and_then(|key| std::str::from_utf8(key).ok()).filter(|id| !id.is_empty());
            let missing = || BadRecord::new(BadReason::Null, "a tombstone needs the item's id as its key");
            return id.map(|id| ItemChange::Delete(id.to_string())).ok_or_else(missing);
        }
        let bytes = self.checked(value)?;
        if format_of(content_type)? == Format::Protobuf {
            return Err(BadRecord::new(BadReason::ContentType, "items are read as application/json only"));
        }
        Item::of_json(&read_json(bytes)?).map(ItemChange::Put).map_err(field)
    }

    /// Size and framing, which every value must get past.
    fn checked<'v>(&self, value: Option<&'v [u8]>) -> Result<&'v [u8], BadRecord> {
        let bytes = value.ok_or_else(|| BadRecord::new(BadReason::Null, "the value is null"))?;
        if bytes.len() > self.max_bytes {
            let message = format!("{} bytes, more than kafka.max_record_bytes = {}", bytes.len(), self.max_bytes);
            return Err(BadRecord::new(BadReason::TooLarge, message));
        }
        // Neither JSON nor a protobuf message can begin with a zero byte.
        if let [0, id @ ..] = bytes
            && let Some(id) = id.first_chunk::<4>()
        {
            let message = format!(
                "the value is framed by a schema registry's serialiser (schema id {}): produce plain json, or protobuf with \
                 the header content-type: application/x-protobuf",
                u32::from_be_bytes(*id)
            );
            return Err(BadRecord::new(BadReason::SchemaRegistry, message));
        }
        Ok(bytes)
    }
}

fn field(error: FieldError) -> BadRecord {
    BadRecord::new(BadReason::Field, error.to_string())
}

fn read_json(bytes: &[u8]) -> Result<Value, BadRecord> {
    let parsed = json::parse(bytes)
        .map_err(|error| BadRecord::new(BadReason::Json, format!("the value is not json: {error}")))?;
    match parsed.repeated.first() {
        Some(path) => Err(field(json::twice(path))),
        None => Ok(parsed.value),
    }
}

/// Without a header a value is JSON; parameters such as `charset` change nothing.
fn format_of(content_type: Option<&str>) -> Result<Format, BadRecord> {
    let Some(header) = content_type else { return Ok(Format::Json) };
    let media_type = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" | "text/json" | "text/plain" => Ok(Format::Json),
        "application/cloudevents+json" => Ok(Format::CloudEvent),
        "application/x-protobuf" | "application/protobuf" | "application/vnd.google.protobuf" => Ok(Format::Protobuf),
        _ => Err(BadRecord::new(
            BadReason::ContentType,
            format!(
                "content-type {header:?} is none of application/json, application/cloudevents+json, application/x-protobuf"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ActionTable, ItemState};
    use crate::proto;
    use proptest::prelude::*;
    use prost::Message;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_700_000_000_000;

    fn decoder() -> RecordDecoder {
        RecordDecoder::new(EventDecoder::new(ActionTable::default(), BTreeMap::new()), 1000)
    }

    fn event(value: &[u8], content_type: Option<&str>) -> Result<Event, BadRecord> {
        decoder().event(Some(value), typed(content_type), NOW)
    }

    /// Headers with a content type and nothing else.
    fn typed(content_type: Option<&str>) -> impl Fn(&str) -> Option<String> {
        move |name| content_type.filter(|_| name == CONTENT_TYPE).map(String::from)
    }

    fn refused(value: Option<&[u8]>, content_type: Option<&str>) -> BadReason {
        decoder().event(value, typed(content_type), NOW).expect_err("refused").reason
    }

    fn event_json() -> String {
        format!(r#"{{"event_id":"e","user_id":"u","item_id":"i","action":"click","ts_ms":{NOW}}}"#)
    }

    #[test]
    fn json_with_and_without_a_header_and_protobuf_are_the_same_event() {
        let text = event_json();
        let plain = event(text.as_bytes(), None).expect("json");
        let typed = event(text.as_bytes(), Some("application/json; charset=utf-8")).expect("json");
        let message = proto::Event {
            event_id: "e".into(),
            user_id: "u".into(),
            item_id: "i".into(),
            action: "click".into(),
            ts_ms: NOW,
            ..proto::Event::default()
        };
        let bytes = message.encode_to_vec();
        let protobuf = event(&bytes, Some("Application/X-Protobuf")).expect("protobuf");
        assert!(plain == typed && plain == protobuf);
    }

    #[test]
    fn a_structured_cloudevent_is_opened() {
        let text = format!(r#"{{"specversion":"1.0","type":"t","source":"s","id":"1","data":{}}}"#, event_json());
        let opened = event(text.as_bytes(), Some("application/cloudevents+json")).expect("event");
        assert_eq!(opened.event_id, "e");
    }

    #[test]
    fn a_binary_cloudevent_has_its_attributes_in_headers_and_its_content_type_says_how_it_is_written() {
        let attributes = |kind: &'static str, time: &'static str| {
            move |name: &str| {
                let value = match name {
                    CONTENT_TYPE => kind,
                    "ce_specversion" => "1.0",
                    "ce_id" => "7",
                    "ce_source" => "/shop",
                    "ce_type" => "click",
                    "ce_time" => time,
                    _ => "",
                };
                (!value.is_empty()).then(|| value.to_string())
            }
        };
        let time = "2023-11-14T22:13:20Z";
        let text = br#"{"user_id":"u","item_id":"i","action":"click"}"#;
        let plain = decoder().event(Some(text), attributes("application/json", time), NOW).expect("json");
        assert_eq!((plain.ts_ms, plain.event_id.len()), (NOW, 32));
        let message = proto::Event {
            user_id: "u".into(),
            item_id: "i".into(),
            action: "click".into(),
            ..proto::Event::default()
        };
        let bytes = message.encode_to_vec();
        let protobuf = decoder().event(Some(&bytes), attributes("application/x-protobuf", time), NOW);
        assert_eq!(protobuf.as_ref(), Ok(&plain));
        let timeless = decoder().event(Some(text), attributes("", ""), NOW).expect_err("no time");
        assert!(timeless.message.starts_with("ts_ms"), "{timeless}");
        // In structured mode the headers are nothing.
        let structured = format!(r#"{{"specversion":"1.0","type":"t","source":"s","id":"1","data":{}}}"#, event_json());
        let header = attributes("application/cloudevents+json", "noon");
        assert_eq!(decoder().event(Some(structured.as_bytes()), header, NOW).expect("event").event_id, "e");
    }

    #[test]
    fn messages_stay_short_whatever_they_repeat() {
        let long = "x".repeat(1 << 20);
        let bad = event(b"{}", Some(&long)).expect_err("refused");
        assert!(bad.message.len() <= MAX_MESSAGE_BYTES, "{}", bad.message.len());
        let item = format!(r#"{{"id":"i","title":"t","{}":1}}"#, "y".repeat(900));
        let bad = decoder().item(None, Some(item.as_bytes()), None).expect_err("refused");
        assert!(bad.message.len() <= MAX_MESSAGE_BYTES, "{}", bad.message.len());
    }

    #[test]
    fn every_kind_of_wrong_has_its_reason() {
        let large = "x".repeat(1001);
        for (value, content_type, reason) in [
            (None, None, BadReason::Null),
            (Some(&b""[..]), None, BadReason::Json),
            (Some(&b"\xff\xfe{}"[..]), None, BadReason::Json),
            (Some(&b"[1]"[..]), None, BadReason::Field),
            (Some(&b"{\"user_id\":\"u\"}"[..]), None, BadReason::Field),
            (Some(large.as_bytes()), None, BadReason::TooLarge),
            (Some(&b"\x00\x00\x00\x00\x2a{}"[..]), None, BadReason::SchemaRegistry),
            (Some(&b"\x00\x00\x00\x00\x2a\x00"[..]), Some("application/x-protobuf"), BadReason::SchemaRegistry),
            (Some(&b"\x0a\xff"[..]), Some("application/x-protobuf"), BadReason::Protobuf),
            (Some(&b"{}"[..]), Some("avro/binary"), BadReason::ContentType),
        ] {
            assert_eq!(refused(value, content_type), reason, "{value:?} {content_type:?}");
        }
        let framed = event(b"\x00\x00\x00\x00\x2a{}", None).expect_err("framed");
        assert!(framed.message.contains("schema id 42") && framed.message.contains("produce plain json"), "{framed}");
    }

    #[test]
    fn items_and_tombstones() {
        let item = |key: Option<&[u8]>, value: Option<&[u8]>| decoder().item(key, value, None);
        let put = item(None, Some(br#"{"id":"i","title":"Tea","state":"paused"}"#)).expect("item");
        assert!(matches!(put, ItemChange::Put(Item { state: ItemState::Paused, .. })));
        assert_eq!(item(Some(b"i"), None), Ok(ItemChange::Delete("i".into())));
        for (key, value, reason) in [
            (None, None, BadReason::Null),
            (Some(&b"\xff"[..]), None, BadReason::Null),
            (Some(&b"i"[..]), Some(&b"{\"id\":\"i\",\"title\":\"\"}"[..]), BadReason::Field),
            (Some(&b"i"[..]), Some(&b"{\"id\":1}"[..]), BadReason::Field),
            (Some(&b"i"[..]), Some(&b"tea"[..]), BadReason::Json),
        ] {
            assert_eq!(item(key, value).expect_err("refused").reason, reason);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            content_type in prop::option::of(prop_oneof!["application/json", "application/x-protobuf", ".*"]),
        ) {
            let decoded = event(&bytes, content_type.as_deref());
            prop_assert!(decoded.is_ok() || !decoded.expect_err("refused").message.is_empty());
            let item = decoder().item(Some(&bytes), Some(&bytes), content_type.as_deref());
            prop_assert!(item.is_ok() || !item.expect_err("refused").message.is_empty());
        }
    }
}
