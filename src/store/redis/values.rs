//! Taking Redis' answers apart; an answer of another shape is a [`StoreError::Corrupt`].

use super::keys::loggable;
use crate::store::{StoreError, StoreResult};
use redis::{FromRedisValue, Value};

/// The answer as that type.
pub fn read<T: FromRedisValue>(key: &str, value: Value) -> StoreResult<T> {
    redis::from_redis_value(value).map_err(|error| corrupt(key, error.to_string()))
}

/// A record that this version cannot read.
pub fn corrupt(key: &str, message: impl Into<String>) -> StoreError {
    StoreError::Corrupt { key: loggable(key), message: message.into() }
}

/// A number in text; absent = 0.
pub fn number<T: std::str::FromStr + Default>(key: &str, text: Option<&[u8]>) -> StoreResult<T> {
    let Some(bytes) = text else { return Ok(T::default()) };
    let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| corrupt(key, format!("{:?} is no number", bytes.escape_ascii().to_string())))
}
