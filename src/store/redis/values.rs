//! Taking Redis' answers apart; an answer of another shape is a [`StoreError::Corrupt`].

use super::keys::loggable;
use crate::store::codec::CodecResult;
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
    text.map_or(Ok(T::default()), |bytes| digits(bytes).map_err(|message| corrupt(key, message)))
}

/// The same where nobody needs the key's name yet.
pub fn digits<T: std::str::FromStr>(bytes: &[u8]) -> CodecResult<T> {
    let parsed = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{:?} is no number", bytes.escape_ascii().to_string()))
}
