//! A record's bytes → event or item, or why not.
//!
//! In: value and `content-type` header. Out: [`Event`], [`Item`], or a [`BadRecord`] whose reason is a metric label and whose
//! message tells the producer what would be right. Callers: [`super::consumer`]. Pure.

use crate::event::{Event, EventDecoder, Item, protobuf};
use serde_json::Value;
use std::fmt;

/// Why a record is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadReason {
    /// Larger than `kafka.max_record_bytes`.
    TooLarge,
    /// No value, or an item without a key to name it.
    Null,
    /// The content type is none we read.
    ContentType,
    /// Framed by a schema registry's serialiser.
    SchemaRegistry,
    /// Not JSON.
    Json,
    /// Not the protobuf message.
    Protobuf,
    /// A field is missing or wrong.
    Field,
    /// A header's name is not text.
    Headers,
    /// The store cannot take it whatever we do: what it keeps of that user cannot be read.
    Store,
}

impl BadReason {
    /// All of them, for metrics that start at zero.
    pub const ALL: [BadReason; 9] = [
        BadReason::TooLarge,
        BadReason::Null,
        BadReason::ContentType,
        BadReason::SchemaRegistry,
        BadReason::Json,
        BadReason::Protobuf,
        BadReason::Field,
        BadReason::Headers,
        BadReason::Store,
    ];

    /// Label in metrics and headers, and what `taiji dlq --reason` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            BadReason::TooLarge => "too_large",
            BadReason::Null => "null",
            BadReason::ContentType => "content_type",
            BadReason::SchemaRegistry => "schema_registry",
            BadReason::Json => "json",
            BadReason::Protobuf => "protobuf",
            BadReason::Field => "field",
            BadReason::Headers => "headers",
            BadReason::Store => "store",
        }
    }

    /// The stage in Kafka Connect's vocabulary.
    pub fn stage(self) -> &'static str {
        match self {
            BadReason::Headers => "HEADER_CONVERTER",
            BadReason::Store => "TASK_PUT",
            _ => "VALUE_CONVERTER",
        }
    }
}

/// A record that will never be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRecord {
    /// Which kind of wrong.
    pub reason: BadReason,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl BadRecord {
    /// A refusal.
    pub fn new(reason: BadReason, message: impl Into<String>) -> BadRecord {
        BadRecord { reason, message: message.into() }
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
    /// A tombstone: the item of this id is no longer offered.
    Pause(String),
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
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

    /// An event, checked against the wall clock `now_ms`.
    pub fn event(&self, value: Option<&[u8]>, content_type: Option<&str>, now_ms: i64) -> Result<Event, BadRecord> {
        let bytes = self.checked(value)?;
        let decoded = match format_of(content_type)? {
            Format::Json => match self.events.plain(bytes, now_ms) {
                Some(event) => return Ok(event),
                None => self.events.decode(&json(bytes)?, now_ms),
            },
            Format::Protobuf => {
                let object = protobuf::to_json(bytes).map_err(|error| {
                    BadRecord::new(BadReason::Protobuf, format!("the value is no taiji.v1.Event: {error}"))
                })?;
                self.events.decode_own(&object, now_ms)
            }
        };
        decoded.map_err(|error| BadRecord::new(BadReason::Field, error.to_string()))
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
            return id.map(|id| ItemChange::Pause(id.to_string())).ok_or_else(missing);
        }
        let bytes = self.checked(value)?;
        if format_of(content_type)? == Format::Protobuf {
            return Err(BadRecord::new(BadReason::ContentType, "items are read as application/json only"));
        }
        let field = |message: String| BadRecord::new(BadReason::Field, message);
        let item: Item = serde_path_to_error::deserialize(&json(bytes)?)
            .map_err(|error| field(format!("{}: {}", error.path(), error.inner())))?;
        item.validate().map_err(|error| field(error.to_string()))?;
        Ok(ItemChange::Put(item))
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

fn json(bytes: &[u8]) -> Result<Value, BadRecord> {
    serde_json::from_slice(bytes)
        .map_err(|error| BadRecord::new(BadReason::Json, format!("the value is not json: {error}")))
}

/// Without a header a value is JSON; parameters such as `charset` change nothing.
fn format_of(content_type: Option<&str>) -> Result<Format, BadRecord> {
    let Some(header) = content_type else { return Ok(Format::Json) };
    let media_type = header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" | "text/json" | "text/plain" | "application/cloudevents+json" => Ok(Format::Json),
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
    use crate::feature::proto;
    use proptest::prelude::*;
    use prost::Message;
    use std::collections::BTreeMap;

    const NOW: i64 = 1_700_000_000_000;

    fn decoder() -> RecordDecoder {
        RecordDecoder::new(EventDecoder::new(ActionTable::default(), BTreeMap::new()), 1000)
    }

    fn refused(value: Option<&[u8]>, content_type: Option<&str>) -> BadReason {
        decoder().event(value, content_type, NOW).expect_err("refused").reason
    }

    fn event_json() -> String {
        format!(r#"{{"event_id":"e","user_id":"u","item_id":"i","action":"click","ts_ms":{NOW}}}"#)
    }

    #[test]
    fn json_with_and_without_a_header_and_protobuf_are_the_same_event() {
        let text = event_json();
        let plain = decoder().event(Some(text.as_bytes()), None, NOW).expect("json");
        let typed = decoder().event(Some(text.as_bytes()), Some("application/json; charset=utf-8"), NOW).expect("json");
        let message = proto::Event {
            event_id: "e".into(),
            user_id: "u".into(),
            item_id: "i".into(),
            action: "click".into(),
            ts_ms: NOW,
            ..proto::Event::default()
        };
        let bytes = message.encode_to_vec();
        let protobuf = decoder().event(Some(&bytes), Some("Application/X-Protobuf"), NOW).expect("protobuf");
        assert!(plain == typed && plain == protobuf);
    }

    #[test]
    fn a_structured_cloudevent_is_opened() {
        let text = format!(r#"{{"specversion":"1.0","type":"t","source":"s","id":"1","data":{}}}"#, event_json());
        let event = decoder().event(Some(text.as_bytes()), Some("application/cloudevents+json"), NOW).expect("event");
        assert_eq!(event.event_id, "e");
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
        let framed = decoder().event(Some(b"\x00\x00\x00\x00\x2a{}"), None, NOW).expect_err("framed");
        assert!(framed.message.contains("schema id 42") && framed.message.contains("produce plain json"), "{framed}");
    }

    #[test]
    fn items_and_tombstones() {
        let item = |key: Option<&[u8]>, value: Option<&[u8]>| decoder().item(key, value, None);
        let put = item(None, Some(br#"{"id":"i","title":"Tea","state":"paused"}"#)).expect("item");
        assert!(matches!(put, ItemChange::Put(Item { state: ItemState::Paused, .. })));
        assert_eq!(item(Some(b"i"), None), Ok(ItemChange::Pause("i".into())));
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
            let decoded = decoder().event(Some(&bytes), content_type.as_deref(), NOW);
            prop_assert!(decoded.is_ok() || !decoded.expect_err("refused").message.is_empty());
            let item = decoder().item(Some(&bytes), Some(&bytes), content_type.as_deref());
            prop_assert!(item.is_ok() || !item.expect_err("refused").message.is_empty());
        }
    }
}
