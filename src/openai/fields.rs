//! A request's JSON object, taken apart field by field, so that every refusal names its field.
//!
//! In: body bytes. Out: typed values; what nobody took is refused at the end. `null` counts as absent, as at OpenAI.
//! Callers: the handlers and `options`.

use super::OpenAiError;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// Fields of OpenAI's API that change nothing here and are taken as they come.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// The fields that were not taken yet.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a whole body; it must be one JSON object.
    pub fn parse(bytes: &[u8]) -> Result<Fields, OpenAiError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| OpenAiError::invalid(format!("body: malformed json: {error}")))?;
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            _ => Err(OpenAiError::invalid("body: must be a json object")),
        }
    }

    /// Takes a value of any type.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes a number within a range.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, OpenAiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(OpenAiError::field(name, format!("must be a number from {low} to {high}, not {value}"))),
        }
    }

    /// Takes a whole number within a range.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, OpenAiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let (low, high) = (range.start(), range.end());
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(OpenAiError::field(name, format!("must be an integer from {low} to {high}, not {value}"))),
        }
    }

    /// Takes true or false; absent is false.
    pub fn flag(&mut self, name: &str) -> Result<bool, OpenAiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(OpenAiError::field(name, format!("must be true or false, not {other}"))),
        }
    }

    /// Takes a string.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, OpenAiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(OpenAiError::field(name, format!("must be a string, not {other}"))),
        }
    }

    /// Refuses a field by name unless it says what holds anyway: one of `defaults`, or an empty list or object.
    pub fn refuse(&mut self, name: &str, defaults: &[Value]) -> Result<(), OpenAiError> {
        let Some(value) = self.take(name) else { return Ok(()) };
        let empty = match &value {
            Value::Array(list) => list.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => false,
        };
        let equal = |default: &Value| match (default.as_f64(), value.as_f64()) {
            (Some(left), Some(right)) => left == right,
            _ => *default == value,
        };
        if empty || defaults.iter().any(equal) {
            return Ok(());
        }
        Err(OpenAiError::field(name, "is not supported here; leave it out"))
    }

    /// Refuses what is left, except what changes nothing here.
    pub fn finish(self) -> Result<(), OpenAiError> {
        match self.0.keys().find(|name| !IGNORED.contains(&name.as_str())) {
            Some(name) => Err(OpenAiError::field(name, "unknown field")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).expect("object")
    }

    fn param<T: std::fmt::Debug>(result: Result<T, OpenAiError>) -> String {
        match result.expect_err("refused") {
            OpenAiError::Invalid { param, .. } => param,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "{", "[]", "3", "{} x"] {
            assert_eq!(param(Fields::parse(text.as_bytes())), "", "{text}");
        }
    }

    #[test]
    fn values_are_taken_by_type_and_range_and_null_is_absent() {
        let mut given = fields(json!({"a": 0.5, "b": 3, "c": true, "d": "x", "e": null}));
        assert_eq!(given.number("a", 0.0..=1.0).expect("number"), Some(0.5));
        assert_eq!(given.integer("b", 1..=3).expect("integer"), Some(3));
        assert!(given.flag("c").expect("flag") && !given.flag("nothing").expect("flag"));
        assert_eq!(given.text("d").expect("text").as_deref(), Some("x"));
        assert_eq!(given.text("e").expect("text"), None);
        given.finish().expect("nothing left");
        let mut wrong = fields(json!({"a": 1.5, "b": 1.5, "c": "yes", "d": 3}));
        assert_eq!(param(wrong.number("a", 0.0..=1.0)), "a");
        assert_eq!(param(wrong.integer("b", 1..=3)), "b");
        assert_eq!(param(wrong.flag("c")), "c");
        assert_eq!(param(wrong.text("d")), "d");
    }

    #[test]
    fn defaults_pass_and_everything_else_is_refused_by_name() {
        let mut given = fields(json!({"tools": [], "best_of": 1.0, "echo": true, "user": "me", "odd": 1}));
        given.refuse("tools", &[]).expect("empty");
        given.refuse("best_of", &[json!(1)]).expect("default");
        assert_eq!(param(given.refuse("echo", &[json!(false)])), "echo");
        assert_eq!(param(given.finish()), "odd");
    }
}
