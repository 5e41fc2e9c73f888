//! `users.jsonl`: a user's profile and, in a generated world, the truth behind the behaviour.

use crate::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line of `users.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserRecord {
    /// As in the events.
    pub user_id: String,
    /// Attributes; profile events of the same name win.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub profile: BTreeMap<String, String>,
    /// Only in generated worlds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<Latent>,
}

/// What the world knows and no service sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latent {
    /// At the end of the user's events, strongest first.
    pub interests: Vec<Interest>,
    /// Brands the user prefers.
    pub brands: Vec<String>,
    /// 0 = buys the cheapest, 1 = the dearest.
    pub price_level: f64,
    /// Event id of each purchase → why it happened.
    pub purchases: BTreeMap<String, Vec<Reason>>,
    /// The purchase after the last event; the test target.
    pub next_purchase: Option<NextPurchase>,
}

/// A latent interest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interest {
    /// Broadest first.
    pub categories: Vec<String>,
    /// Sums to 1 over a user's interests.
    pub weight: f64,
}

/// What the user buys after the last event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NextPurchase {
    /// In `items.jsonl`.
    pub item_id: String,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// One line of `labels.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// As in the events.
    pub user_id: String,
    /// As in the events.
    pub item_id: String,
    /// Of the impression.
    pub ts_ms: i64,
    /// The impressions of one session share it.
    pub request_id: String,
    /// A click came of it.
    pub clicked: bool,
    /// The click converted.
    pub converted: bool,
}
