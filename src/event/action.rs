//! The configured actions: what class each belongs to and how much refresh weight it adds.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which history an action enters (DESIGN 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionClass {
    /// Kept among the latest 100 engagements; reaches the prompt.
    Engagement,
    /// Kept among the latest 100 impressions.
    Impression,
    /// Never enters the history (`search`, `profile`).
    None,
}

/// One action's settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRule {
    /// The history it enters.
    pub class: ActionClass,
    /// Added to the user's refresh weight by each new event (DESIGN 7).
    pub weight: f64,
}

/// All configured actions by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ActionTable(pub BTreeMap<String, ActionRule>);

impl ActionTable {
    /// The rule of an action, or `None` when it is not configured.
    pub fn get(&self, action: &str) -> Option<ActionRule> {
        self.0.get(action).copied()
    }

    /// The names, sorted, for messages.
    pub fn names(&self) -> String {
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

impl Default for ActionTable {
    /// The actions of DESIGN 5.1; the compiled-in `default.toml` states the same (a test compares them).
    fn default() -> Self {
        use ActionClass::{Engagement, Impression, None};
        let rules = [
            ("impression", Impression, 0.0),
            ("click", Engagement, 1.0),
            ("like", Engagement, 2.0),
            ("follow", Engagement, 2.0),
            ("comment", Engagement, 2.0),
            ("share", Engagement, 2.0),
            ("long_view", Engagement, 1.5),
            ("add_to_cart", Engagement, 3.0),
            ("purchase", Engagement, 5.0),
            ("dislike", Engagement, 1.0),
            ("hide", Engagement, 1.0),
            ("search", None, 2.0),
            ("profile", None, 1.0),
        ];
        ActionTable(
            rules.into_iter().map(|(name, class, weight)| (name.to_string(), ActionRule { class, weight })).collect(),
        )
    }
}
