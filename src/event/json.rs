//! JSON read strictly: a key that stands twice in one object is found, where the last would count in silence and two readers of
//! one event could disagree.
//!
//! In: bytes. Out: a [`Value`], and where keys stood twice. Callers: whoever takes events and items.

use super::FieldError;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A step from an object or a list to what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Of an object.
    Key(String),
    /// Of a list.
    Index(usize),
}

/// A document.
#[derive(Debug, PartialEq)]
pub struct Parsed {
    /// With the first of equal keys.
    pub value: Value,
    /// Paths of keys that stood twice in their object: of every part that lies two steps below the top, one.
    pub repeated: Vec<Vec<Step>>,
}

/// Reads one document.
pub fn parse(bytes: &[u8]) -> serde_json::Result<Parsed> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut repeated = Vec::new();
    let value = Strict { depth: 0, repeated: &mut repeated }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    // They were gathered from the inside out.
    repeated.iter_mut().for_each(|path| path.reverse());
    Ok(Parsed { value, repeated })
}

/// Reads one document in which no key may stand twice; a refusal names `whole` where it is about no single field.
pub fn parse_strictly(bytes: &[u8], whole: &str) -> Result<Value, FieldError> {
    let parsed = parse(bytes).map_err(|error| FieldError::new(whole, format!("malformed json: {error}")))?;
    match parsed.repeated.first() {
        Some(path) => Err(twice(path)),
        None => Ok(parsed.value),
    }
}

/// The refusal of a key that stands twice.
pub fn twice(path: &[Step]) -> FieldError {
    let mut field = String::new();
    for step in path {
        match step {
            Step::Key(key) if field.is_empty() => field.push_str(key),
            Step::Key(key) => field.push_str(&format!(".{key}")),
            Step::Index(index) => field.push_str(&format!("[{index}]")),
        }
    }
    FieldError::new(field, "stands twice in its object")
}

/// For a field of a struct: an object's entries, none of them twice.
pub fn strict_entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, Value>>, D::Error> {
    let mut repeated = Vec::new();
    let value = Strict { depth: 2, repeated: &mut repeated }.deserialize(deserializer)?;
    match value {
        _ if !repeated.is_empty() => Err(D::Error::custom("a key stands twice")),
        Value::Null => Ok(None),
        Value::Object(entries) => Ok(Some(entries.into_iter().collect())),
        _ => Err(D::Error::custom("not an object")),
    }
}

/// Reads any value, noting repeated keys.
struct Strict<'r> {
    depth: usize,
    repeated: &'r mut Vec<Vec<Step>>,
}

impl Strict<'_> {
    fn below(&mut self) -> Strict<'_> {
        Strict { depth: self.depth + 1, repeated: self.repeated }
    }

    /// Everything noted since `before` lies one step below.
    fn stepped(&mut self, before: usize, step: impl Fn() -> Step) {
        for path in &mut self.repeated[before..] {
            path.push(step());
        }
    }

    /// Of one entry of a batch, one repetition is enough.
    fn keep_one(&mut self, before: usize) {
        if self.depth >= 2 {
            self.repeated.truncate(before + 1);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any valid JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        let (start, mut values) = (self.repeated.len(), Vec::new());
        loop {
            let before = self.repeated.len();
            let Some(value) = list.next_element_seed(self.below())? else { break };
            self.stepped(before, || Step::Index(values.len()));
            values.push(value);
        }
        self.keep_one(start);
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let (start, mut object) = (self.repeated.len(), Map::new());
        while let Some(key) = entries.next_key::<String>()? {
            let before = self.repeated.len();
            let value = entries.next_value_seed(self.below())?;
            self.stepped(before, || Step::Key(key.clone()));
            match object.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(entry) => self.repeated.push(vec![Step::Key(entry.key().clone())]),
            }
        }
        self.keep_one(start);
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(text: &str) -> Vec<String> {
        parse(text.as_bytes()).expect("json").repeated.iter().map(|path| twice(path).field).collect()
    }

    #[test]
    fn audit_05_a_key_that_stands_twice_is_found_wherever_it_is() {
        assert_eq!(fields(r#"{"a":1,"b":{"a":1},"c":[{"a":1},{"a":1}]}"#), Vec::<String>::new());
        assert_eq!(fields(r#"{"a":1,"a":1}"#), ["a"]);
        assert_eq!(fields(r#"{"context":{"query":"x","query":"y"}}"#), ["context.query"]);
        assert_eq!(fields(r#"[[{"a":{"b":1,"b":2}}]]"#), ["[0][0].a.b"]);
        assert_eq!(
            fields(r#"{"events":[{"a":1,"a":1,"a":1},{"a":1},{"b":1,"\u0062":1}]}"#),
            ["events[0].a", "events[2].b"]
        );
        let refused = parse_strictly(br#"{"user_id":"a","user_id":"b"}"#, "event").expect_err("twice");
        assert_eq!((refused.field.as_str(), refused.reason.as_str()), ("user_id", "stands twice in its object"));
        assert_eq!(parse_strictly(b"{", "event").expect_err("cut").field, "event");
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|object| Value::Object(object.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_has_no_repetition_is_read_as_ever(value in document()) {
            let text = value.to_string();
            let parsed = parse(text.as_bytes()).expect("json");
            prop_assert_eq!(&parsed.value, &serde_json::from_str::<Value>(&text).expect("json"));
            prop_assert_eq!(parsed.repeated.len(), 0);
        }

        #[test]
        fn what_is_no_json_is_refused_as_ever(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(parse(&bytes).is_ok(), serde_json::from_slice::<Value>(&bytes).is_ok());
        }
    }
}
