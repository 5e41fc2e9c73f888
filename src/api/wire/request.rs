//! The body of `POST /v1/features` in any encoding.

use super::{Encoding, arrow_request};
use crate::http::{ApiError, parse_json};
use crate::proto;
use prost::Message;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct FeaturesRequest {
    pub users: Vec<String>,
    #[serde(default)]
    pub groups: Option<Vec<String>>,
    /// Part of the contract, not built yet: refused by name rather than ignored.
    #[serde(default)]
    pub spaces: Option<IgnoredAny>,
    /// See `staleness`.
    #[serde(default)]
    pub max_staleness_ms: Option<u64>,
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

/// Reads a request; a 400 says what is wrong with it.
pub(in crate::api) fn decode(encoding: Encoding, body: &[u8]) -> Result<FeaturesRequest, ApiError> {
    match encoding {
        Encoding::Json => parse_json(body),
        Encoding::MessagePack => of_message_pack(body),
        Encoding::Protobuf => {
            let request = proto::FeaturesRequest::decode(body)
                .map_err(|error| ApiError::bad_request(format!("body: malformed protobuf: {error}")))?;
            Ok(FeaturesRequest {
                users: request.users,
                groups: (!request.groups.is_empty()).then_some(request.groups),
                spaces: None,
                max_staleness_ms: request.max_staleness_ms,
                deadline_ms: request.deadline_ms,
            })
        }
        Encoding::Arrow => arrow_request::request(body),
    }
}

/// For the fuzz target: whether a body of the n-th encoding is a request; Feast's, in MessagePack, behind them.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn is_request(number: u8, body: &[u8]) -> bool {
    match Encoding::ALL.get(usize::from(number)) {
        Some(encoding) => decode(*encoding, body).is_ok_and(|request| {
            assert!(request.users.iter().map(String::len).sum::<usize>() <= body.len());
            true
        }),
        None => of_message_pack::<crate::api::feast::FeastRequest>(body).is_ok(),
    }
}

/// Deeper than any request is.
const DEPTH: usize = 32;

/// A whole body, a map whose keys are texts, as `T`.
pub(in crate::api) fn of_message_pack<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order: only a map (fixmap, map16, map32) is one. Numbers would be taken for fields,
    // too, and are no keys of JSON's data model.
    if !matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(ApiError::bad_request("body: must be a msgpack map"));
    }
    let malformed = |error: String| ApiError::bad_request(format!("body: malformed msgpack: {error}"));
    let mut deserializer = rmp_serde::Deserializer::new(body);
    deserializer.set_max_depth(DEPTH);
    let value = Value::deserialize(&mut deserializer).map_err(|error| malformed(error.to_string()))?;
    if !deserializer.get_ref().is_empty() {
        return Err(ApiError::bad_request("body: something follows the msgpack map"));
    }
    T::deserialize(value).map_err(|error| ApiError::bad_request(format!("body: {error}")))
}
