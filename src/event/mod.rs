//! Events and items as users of taiji send them, and behaviours as the store keeps them.
//!
//! In: JSON and CloudEvents from HTTP; JSON, CloudEvents or protobuf from Kafka. Out: validated [`Event`]s and [`Item`]s.
//! Callers: `api` (POST /v1/events, /v1/items), `ingest::kafka`, `taiji_trainer::data` (files of the same shape), `store` (keeps behaviours).

pub mod action;
mod bad_reason;
pub mod cloudevent;
pub mod decode;
pub mod item;
pub mod json;
mod plain;
mod privacy;
pub mod protobuf;

pub use action::{ActionClass, ActionTable};
pub use bad_reason::BadReason;
pub use decode::{EventDecoder, FieldError};
pub use item::{Item, ItemState};
pub use privacy::{OPT_OUT_ATTRIBUTE, is_opted_out};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest `user_id` or `item_id`, in bytes (DESIGN 5.1).
pub const MAX_ID_BYTES: usize = 128;
/// Events before this instant are refused (2000-01-01, unix ms).
pub const MIN_TS_MS: i64 = 946_684_800_000;
/// How far in the future an event's timestamp may lie, in ms (one day).
pub const MAX_FUTURE_MS: i64 = 86_400_000;

/// Longest search query and longest profile value (as JSON), in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;
/// Most attributes of one profile event.
pub const MAX_ATTRIBUTES: usize = 64;

/// Where the user met the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Domain {
    App,
    Search,
    Video,
    Live,
    Shop,
    Ad,
}

impl Domain {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Domain::App => "app",
            Domain::Search => "search",
            Domain::Video => "video",
            Domain::Live => "live",
            Domain::Shop => "shop",
            Domain::Ad => "ad",
        }
    }

    /// The domain of that name, or `None`.
    pub fn parse(name: &str) -> Option<Domain> {
        Some(match name {
            "app" => Domain::App,
            "search" => Domain::Search,
            "video" => Domain::Video,
            "live" => Domain::Live,
            "shop" => Domain::Shop,
            "ad" => Domain::Ad,
            _ => return None,
        })
    }
}

/// One thing a user did. Serialises to the JSON of DESIGN 5.1 (absent fields are left out).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Event {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event_id: String,
    pub user_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    pub action: String,
    pub ts_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<Domain>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// `search` carries `query`; `profile` carries attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, serde_json::Value>,
}
