//! The body of `POST /v1/features` in any encoding.

use super::{Encoding, arrow_request};
use crate::http::{ApiError, parse_json};
use crate::proto;
use prost::Message;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

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

/// A whole body, a map, as `T`.
pub(in crate::api) fn of_message_pack<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A list would be taken for the fields in their order: only a map (fixmap, map16, map32) is one.
    if !matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)) {
        return Err(ApiError::bad_request("body: must be a msgpack map"));
    }
    let mut deserializer = rmp_serde::Deserializer::new(body);
    let request = T::deserialize(&mut deserializer)
        .map_err(|error| ApiError::bad_request(format!("body: malformed msgpack: {error}")))?;
    match deserializer.get_ref().is_empty() {
        true => Ok(request),
        false => Err(ApiError::bad_request("body: something follows the msgpack map")),
    }
}
