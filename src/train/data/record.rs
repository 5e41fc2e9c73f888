//! `users.jsonl`: a user's profile and, in a generated world, the truth behind the behaviour.

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

/// Why a user bought something, as structured data; `synth::wording` turns it into language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// The interest shows in the latest engagements.
    Repeated {
        /// Broadest first, as deep as the interest goes.
        categories: Vec<String>,
        /// Latest engagements in it.
        count: usize,
        /// Latest engagements looked at.
        of: usize,
    },
    /// A search was made just before.
    Search {
        /// As typed.
        query: String,
    },
    /// Goes with something bought recently.
    Complement {
        /// Lowest category of what was bought.
        bought: String,
    },
    /// The time of the year.
    Season {
        /// For example "gift season".
        season: String,
    },
    /// The user's stage of life.
    LifeStage {
        /// For example "new parent".
        stage: String,
    },
    /// A brand bought or clicked before.
    Brand {
        /// Its name.
        brand: String,
    },
    /// Chooses by price.
    Price {
        /// Towards the cheap end of the shelf, or else the dear one.
        low: bool,
    },
    /// Put in the cart or clicked, and not bought yet.
    Unfinished {
        /// Lowest category of the item.
        category: String,
    },
    /// Words that the target's title shares with earlier titles (data without known reasons).
    SharedWords {
        /// Most telling first.
        words: Vec<String>,
        /// Earlier items that have at least one of them.
        count: usize,
    },
    /// What was engaged with last (data without known reasons): who the user is, before why the target follows.
    Lately {
        /// First words of the newest titles, newest first.
        titles: Vec<String>,
    },
    /// Nothing before points there.
    New,
}
