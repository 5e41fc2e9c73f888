//! JSON → [`Event`]: CloudEvents' envelope, field map, validation, and the id of events that carry none.

use super::cloudevent::{self, Envelope};
use super::{ActionTable, Domain, Event, MAX_ATTRIBUTES, MAX_FUTURE_MS, MAX_ID_BYTES, MAX_TEXT_BYTES, MIN_TS_MS};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use thiserror::Error;

/// Why one event or item was refused: the field and the reason, as the API reports them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// The event's field, as named in DESIGN 5.1.
    pub field: String,
    /// Lower-case, says what would be right.
    pub reason: String,
}

impl FieldError {
    /// A refusal of `field` for `reason`, both shortened: they may repeat what was sent, and go into headers, answers and logs.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        let (field, reason) = (shortened(field.into(), MAX_ID_BYTES), shortened(reason.into(), MAX_REASON_BYTES));
        FieldError { field, reason }
    }
}

/// Longest reason of a refusal, in bytes.
const MAX_REASON_BYTES: usize = 512;

/// A text of at most `limit` bytes on one line: what is cut off ends in "…", control characters become U+FFFD.
pub(crate) fn shortened(text: String, limit: usize) -> String {
    if text.len() <= limit && !text.chars().any(char::is_control) {
        return text;
    }
    let plain: String =
        text.chars().take(limit).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect();
    if plain.len() <= limit && text.chars().nth(limit).is_none() {
        return plain;
    }
    let end = plain.floor_char_boundary(limit.saturating_sub('…'.len_utf8()));
    format!("{}…", &plain[..end])
}

/// Ids are 1–128 bytes without control characters.
pub fn check_id(field: &str, id: &str) -> Result<(), FieldError> {
    if id.is_empty() {
        return Err(FieldError::new(field, "must not be empty"));
    }
    if id.len() > MAX_ID_BYTES {
        return Err(FieldError::new(field, format!("longer than {MAX_ID_BYTES} bytes")));
    }
    if id.chars().any(char::is_control) {
        return Err(FieldError::new(field, "contains a control character"));
    }
    Ok(())
}

/// The fields of an event that a foreign schema can be mapped to.
const FIELDS: [&str; 9] =
    ["event_id", "user_id", "item_id", "action", "ts_ms", "value", "domain", "request_id", "context"];

/// Turns one JSON value into a validated event. Cheap to clone; one per process.
#[derive(Debug, Clone)]
pub struct EventDecoder {
    actions: ActionTable,
    /// event field → JSON pointer into the foreign record; empty = the fields' own names.
    field_map: BTreeMap<String, String>,
}

impl EventDecoder {
    /// A decoder for the configured actions and field map (event field → JSON pointer).
    pub fn new(actions: ActionTable, field_map: BTreeMap<String, String>) -> Self {
        EventDecoder { actions, field_map }
    }

    /// The actions it accepts.
    pub fn actions(&self) -> &ActionTable {
        &self.actions
    }

    /// Decodes and validates one event against the wall clock `now_ms`.
    pub fn decode(&self, value: &Value, now_ms: i64) -> Result<Event, FieldError> {
        match cloudevent::open(value)? {
            Some((data, envelope)) => self.decode_data(&data, &envelope, now_ms),
            None => self.decode_data(value, &Envelope::default(), now_ms),
        }
    }

    /// Decodes the data of a CloudEvent in binary mode: applies the field map; `envelope` fills what the record itself leaves
    /// out.
    pub fn decode_data(&self, value: &Value, envelope: &Envelope, now_ms: i64) -> Result<Event, FieldError> {
        if self.field_map.is_empty() {
            let object = value.as_object().ok_or_else(|| FieldError::new("event", "must be a json object"))?;
            return self.decode_fields(object, envelope, now_ms);
        }
        self.decode_fields(&self.apply_map(value), envelope, now_ms)
    }

    /// Decodes a record with taiji's own field names, as the protobuf message has them.
    pub fn decode_own(
        &self,
        object: &Map<String, Value>,
        envelope: &Envelope,
        now_ms: i64,
    ) -> Result<Event, FieldError> {
        self.decode_fields(object, envelope, now_ms)
    }

    fn decode_fields(
        &self,
        object: &Map<String, Value>,
        envelope: &Envelope,
        now_ms: i64,
    ) -> Result<Event, FieldError> {
        if let Some(unknown) = object.keys().find(|key| !FIELDS.contains(&key.as_str())) {
            return Err(FieldError::new(unknown.as_str(), "unknown field"));
        }
        let event = Event {
            event_id: optional_id(object, "event_id")?.or_else(|| envelope.event_id.clone()).unwrap_or_default(),
            user_id: optional_id(object, "user_id")?.ok_or_else(|| FieldError::new("user_id", "is missing"))?,
            item_id: optional_id(object, "item_id")?,
            action: optional_id(object, "action")?.ok_or_else(|| FieldError::new("action", "is missing"))?,
            ts_ms: timestamp(object)?.or(envelope.ts_ms).ok_or_else(|| FieldError::new("ts_ms", "is missing"))?,
            value: number(object, "value")?,
            domain: domain(object)?,
            request_id: optional_id(object, "request_id")?,
            context: context(object)?,
        };
        self.finish(event, now_ms)
    }

    /// Validates, and gives an id to an event that brought none.
    pub(super) fn finish(&self, mut event: Event, now_ms: i64) -> Result<Event, FieldError> {
        self.validate(&event, now_ms)?;
        if event.event_id.is_empty() {
            event.event_id = canonical_id(&event, false);
        }
        Ok(event)
    }

    /// Records come in a foreign schema.
    pub(super) fn has_field_map(&self) -> bool {
        !self.field_map.is_empty()
    }

    /// Checks what the fields mean together: action, timestamp range, item, query.
    fn validate(&self, event: &Event, now_ms: i64) -> Result<(), FieldError> {
        if self.actions.get(&event.action).is_none() {
            return Err(FieldError::new("action", format!("unknown; configured are {}", self.actions.names())));
        }
        if event.ts_ms < MIN_TS_MS {
            return Err(FieldError::new("ts_ms", "before the year 2000; is it in seconds?"));
        }
        if event.ts_ms > now_ms + MAX_FUTURE_MS {
            return Err(FieldError::new("ts_ms", "more than one day in the future"));
        }
        match event.action.as_str() {
            "search" => match event.context.get("query").and_then(Value::as_str) {
                Some(query) if query.len() > MAX_TEXT_BYTES => {
                    Err(FieldError::new("context.query", format!("longer than {MAX_TEXT_BYTES} bytes")))
                }
                Some(query) if !query.trim().is_empty() => Ok(()),
                _ => Err(FieldError::new("context.query", "a search needs a non-empty query string")),
            },
            "profile" if event.context.is_empty() => {
                Err(FieldError::new("context", "a profile event needs at least one attribute"))
            }
            "profile" => check_attributes(&event.context),
            _ if event.item_id.is_none() => Err(FieldError::new("item_id", "is missing")),
            _ => Ok(()),
        }
    }

    /// Builds the event's own fields out of a foreign record.
    fn apply_map(&self, value: &Value) -> Map<String, Value> {
        let mut object = Map::new();
        for field in FIELDS {
            let found = match self.field_map.get(field) {
                Some(pointer) => value.pointer(pointer),
                None => value.get(field),
            };
            if let Some(found) = found {
                object.insert(field.to_string(), found.clone());
            }
        }
        object
    }
}

/// A profile is kept for ever and enters prompts: few attributes, short values.
fn check_attributes(attributes: &BTreeMap<String, Value>) -> Result<(), FieldError> {
    if attributes.len() > MAX_ATTRIBUTES {
        return Err(FieldError::new("context", format!("more than {MAX_ATTRIBUTES} attributes")));
    }
    for (name, value) in attributes {
        check_id("context", name)?;
        if value.to_string().len() > MAX_TEXT_BYTES {
            return Err(FieldError::new(format!("context.{name}"), format!("longer than {MAX_TEXT_BYTES} bytes")));
        }
    }
    Ok(())
}

/// A string id; numbers are taken as their decimal text, since many logs carry numeric ids.
fn optional_id(object: &Map<String, Value>, field: &str) -> Result<Option<String>, FieldError> {
    let text = match object.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => number.to_string(),
        Some(_) => return Err(FieldError::new(field, "must be a string")),
    };
    check_id(field, &text)?;
    Ok(Some(text))
}

fn timestamp(object: &Map<String, Value>) -> Result<Option<i64>, FieldError> {
    match object.get("ts_ms") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            value.as_i64().map(Some).ok_or_else(|| FieldError::new("ts_ms", "must be an integer, unix milliseconds"))
        }
    }
}

fn number(object: &Map<String, Value>, field: &str) -> Result<Option<f64>, FieldError> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| FieldError::new(field, "must be a number")),
    }
}

fn domain(object: &Map<String, Value>) -> Result<Option<Domain>, FieldError> {
    match object.get("domain") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_str()
            .and_then(Domain::parse)
            .map(Some)
            .ok_or_else(|| FieldError::new("domain", "must be one of app, search, video, live, shop, ad")),
    }
}

fn context(object: &Map<String, Value>) -> Result<BTreeMap<String, Value>, FieldError> {
    match object.get("context") {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(map)) => Ok(map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()),
        Some(_) => Err(FieldError::new("context", "must be an object")),
    }
}

/// The id under which programs before kept this event, where that is another: they took a value of 0.0 for none. `None` for an
/// event that brought its id.
pub(crate) fn former_id(event: &Event) -> Option<String> {
    let is_zero = event.value.map(f64::to_bits) == Some(0);
    (is_zero && event.event_id == canonical_id(event, false)).then(|| canonical_id(event, true))
}

/// Id of an event that brought none: a hash of its canonical fields, so a redelivery is the same event.
/// `former`: as programs before made it, which took a value of 0.0 for none.
fn canonical_id(event: &Event, former: bool) -> String {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(event.user_id.as_bytes());
    part(event.item_id.as_deref().unwrap_or("").as_bytes());
    part(event.action.as_bytes());
    part(&event.ts_ms.to_le_bytes());
    match event.value {
        // A value of 0.0 is told from an absent one, whose id stays what it ever was.
        Some(value) if value.to_bits() == 0 && !former => part(&[0; 9]),
        value => part(&value.map(f64::to_bits).unwrap_or(0).to_le_bytes()),
    }
    part(event.domain.map(Domain::as_str).unwrap_or("").as_bytes());
    part(event.request_id.as_deref().unwrap_or("").as_bytes());
    for (key, value) in &event.context {
        part(key.as_bytes());
        part(value.to_string().as_bytes());
    }
    hex::encode(&hasher.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: i64 = 1_700_000_000_000;

    fn decoder() -> EventDecoder {
        EventDecoder::new(ActionTable::default(), BTreeMap::new())
    }

    fn refused(value: Value) -> FieldError {
        decoder().decode(&value, NOW).expect_err("should be refused")
    }

    #[test]
    fn a_full_event_passes_and_keeps_its_id() {
        let event = decoder()
            .decode(
                &json!({"event_id":"e1","user_id":"u","item_id":"i","action":"click","ts_ms":NOW,"domain":"video"}),
                NOW,
            )
            .expect("valid");
        assert_eq!(event.event_id, "e1");
        assert_eq!(event.domain, Some(Domain::Video));
    }

    #[test]
    fn each_wrong_field_is_named() {
        let base = json!({"user_id":"u","item_id":"i","action":"click","ts_ms":NOW});
        for (field, bad) in [
            ("user_id", json!("")),
            ("user_id", json!("x".repeat(129))),
            ("item_id", json!("a\u{7}b")),
            ("action", json!("clack")),
            ("ts_ms", json!(NOW + MAX_FUTURE_MS + 1)),
            ("ts_ms", json!(1_700_000_000)),
            ("ts_ms", json!("now")),
            ("value", json!("5")),
            ("domain", json!("moon")),
            ("context", json!(3)),
        ] {
            let mut value = base.clone();
            value[field] = bad;
            assert_eq!(refused(value).field, field);
        }
        assert_eq!(refused(json!({"user_id":"u","action":"search","ts_ms":NOW})).field, "context.query");
        assert_eq!(refused(json!({"user_id":"u","action":"click","ts_ms":NOW})).field, "item_id");
        assert_eq!(refused(json!({"user_id":"u","item_id":"i","action":"click","ts_ms":NOW,"x":1})).field, "x");
    }

    #[test]
    fn a_refusal_repeats_little_of_what_was_sent_and_on_one_line() {
        let error = refused(json!({ "a\n".repeat(500_000): 1, "user_id": "u" }));
        assert!(error.field.len() <= MAX_ID_BYTES && error.field.starts_with("a\u{fffd}a"), "{error}");
        assert!(error.field.ends_with('…'));
        for length in [MAX_ID_BYTES, MAX_ID_BYTES + 1] {
            let error = refused(json!({ "é".repeat(length / 2): 1, "x".repeat(length): 1 }));
            assert!(error.field.len() <= MAX_ID_BYTES, "{error}");
        }
        assert_eq!(shortened("as it is".into(), 8), "as it is");
        assert_eq!(shortened("a\tb".into(), 8), "a\u{fffd}b");
    }

    #[test]
    fn queries_and_profiles_are_bounded() {
        let search = |query: String| json!({"user_id":"u","action":"search","ts_ms":NOW,"context":{"query":query}});
        assert_eq!(refused(search("x".repeat(MAX_TEXT_BYTES + 1))).field, "context.query");
        assert!(decoder().decode(&search("x".repeat(MAX_TEXT_BYTES)), NOW).is_ok());
        let profile = |context: Value| json!({"user_id":"u","action":"profile","ts_ms":NOW,"context":context});
        assert_eq!(refused(profile(json!({"bio": "x".repeat(MAX_TEXT_BYTES)}))).field, "context.bio");
        let many: Map<String, Value> = (0..=MAX_ATTRIBUTES).map(|n| (format!("a{n}"), json!(1))).collect();
        assert_eq!(refused(profile(Value::Object(many))).field, "context");
    }

    #[test]
    fn a_missing_event_id_is_the_same_for_the_same_event_only() {
        let decode = |value: Value| decoder().decode(&value, NOW).expect("valid").event_id;
        let one = json!({"user_id":"u","item_id":"i","action":"click","ts_ms":NOW});
        let mut other = one.clone();
        other["item_id"] = json!("j");
        assert_eq!(decode(one.clone()), decode(one.clone()));
        assert_ne!(decode(one), decode(other));
    }

    #[test]
    fn audit_08_a_value_of_zero_is_told_from_none_whose_id_stays() {
        let decode = |value: Option<Value>| {
            let mut event = json!({"user_id":"u","item_id":"i","action":"click","ts_ms":NOW});
            if let Some(value) = value {
                event["value"] = value;
            }
            decoder().decode(&event, NOW).expect("valid")
        };
        let (none, zero, other) = (decode(None), decode(Some(json!(0.0))), decode(Some(json!(2.5))));
        // As the program before made them.
        assert_eq!(none.event_id, "7c785b169003994804fd7663cb87d1d4");
        assert_eq!(other.event_id, "a4a8913ff0f556646fd5a30a9b5a02e3");
        assert_ne!(zero.event_id, none.event_id);
        assert_eq!(former_id(&zero), Some(none.event_id.clone()));
        assert_eq!(decode(Some(json!(0))).event_id, zero.event_id);
        let named = Event { event_id: "mine".into(), ..zero };
        assert_eq!([&none, &other, &named].map(former_id), [None, None, None]);
    }

    #[test]
    fn a_field_map_takes_a_foreign_schema() {
        let map = [("user_id", "/who/id"), ("item_id", "/what"), ("action", "/verb"), ("ts_ms", "/at")]
            .into_iter()
            .map(|(field, pointer)| (field.to_string(), pointer.to_string()))
            .collect();
        let decoder = EventDecoder::new(ActionTable::default(), map);
        let event = decoder
            .decode(&json!({"who":{"id":7},"what":"i","verb":"like","at":NOW,"noise":true}), NOW)
            .expect("valid");
        assert_eq!((event.user_id.as_str(), event.action.as_str()), ("7", "like"));
    }
}
