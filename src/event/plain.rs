//! The short way of an event in JSON: taiji's own fields and nothing else, straight into their types.
//!
//! In: bytes. Out: the event, or `None` for whatever is not plain (a field map's record, CloudEvents, numeric ids, anything
//! wrong): the long way of [`super::decode`] takes that, and finds the words for a refusal. Caller: `ingest::kafka`.

use super::decode::check_id;
use super::json::strict_entries;
use super::{Domain, Event, EventDecoder};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    event_id: Option<String>,
    user_id: String,
    item_id: Option<String>,
    action: String,
    ts_ms: i64,
    value: Option<f64>,
    domain: Option<Domain>,
    request_id: Option<String>,
    #[serde(default, deserialize_with = "strict_entries")]
    context: Option<BTreeMap<String, Value>>,
}

impl EventDecoder {
    /// An event that needs no second look, checked against the wall clock `now_ms`.
    pub fn plain(&self, json: &[u8], now_ms: i64) -> Option<Event> {
        if self.has_field_map() {
            return None;
        }
        let plain: Plain = serde_json::from_slice(json).ok()?;
        let ids = [Some(&plain.user_id), Some(&plain.action)];
        let optional_ids = [plain.event_id.as_ref(), plain.item_id.as_ref(), plain.request_id.as_ref()];
        if ids.into_iter().chain(optional_ids).flatten().any(|id| check_id("id", id).is_err()) {
            return None;
        }
        let event = Event {
            event_id: plain.event_id.unwrap_or_default(),
            user_id: plain.user_id,
            item_id: plain.item_id,
            action: plain.action,
            ts_ms: plain.ts_ms,
            value: plain.value,
            domain: plain.domain,
            request_id: plain.request_id,
            context: plain.context.unwrap_or_default(),
        };
        self.finish(event, now_ms).ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::event::ActionTable;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: i64 = 1_700_000_000_000;

    fn decoder() -> EventDecoder {
        EventDecoder::new(ActionTable::default(), BTreeMap::new())
    }

    fn long_way(json: &[u8]) -> Option<Event> {
        serde_json::from_slice(json).ok().and_then(|value| decoder().decode(&value, NOW).ok())
    }

    #[test]
    fn plain_events_take_it_and_others_do_not() {
        let plain =
            json!({"event_id":"e","user_id":"u","item_id":"i","action":"click","ts_ms":NOW,"domain":"shop","value":1});
        let event = decoder().plain(plain.to_string().as_bytes(), NOW);
        assert!(event.is_some() && event == long_way(plain.to_string().as_bytes()));
        let cloud = json!({"specversion":"1.0","type":"t","source":"s","id":"1","data":plain});
        let numeric = json!({"user_id":7,"item_id":"i","action":"click","ts_ms":NOW});
        for other in [cloud, numeric] {
            assert_eq!(decoder().plain(other.to_string().as_bytes(), NOW), None);
            assert!(long_way(other.to_string().as_bytes()).is_some());
        }
        let mapped = EventDecoder::new(ActionTable::default(), [("user_id".into(), "/who".into())].into());
        assert_eq!(mapped.plain(plain.to_string().as_bytes(), NOW), None, "a field map may mean something else");
    }

    /// A value that a field may or may not take.
    fn any_value() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            any::<i64>().prop_map(Value::from),
            (NOW - 10..NOW + 10).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z\u{0}]{0,4}".prop_map(Value::from),
            prop_oneof!["click", "search", "profile", "shop", "impression"].prop_map(Value::from),
            Just(json!({"query": "q"})),
            Just(json!([1])),
        ]
    }

    proptest! {
        #[test]
        fn it_never_decides_otherwise_than_the_long_way(
            changes in prop::collection::btree_map(
                prop_oneof!["event_id", "user_id", "item_id", "action", "ts_ms", "value", "domain", "request_id", "context", "x"],
                any_value(), 0..4,
            ),
            cut in 0usize..200,
        ) {
            let mut value = json!({"event_id":"e","user_id":"u","item_id":"i","action":"click","ts_ms":NOW});
            for (field, changed) in changes {
                value[field] = changed;
            }
            let text = value.to_string();
            for bytes in [text.as_bytes(), &text.as_bytes()[..cut.min(text.len())]] {
                if let Some(event) = decoder().plain(bytes, NOW) {
                    prop_assert_eq!(Some(event), long_way(bytes));
                }
            }
        }
    }
}
