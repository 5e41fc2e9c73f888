//! A stored history → what the prompt serializer takes, with titles out of the catalogue.

use crate::catalogue::Catalogue;
use crate::prompt::{PromptInput, PromptItem};
use crate::store::UserHistory;

/// Looks the history's items up; items without a title are left out (they could tell the model nothing).
pub fn prompt_input(history: &UserHistory, catalogue: &Catalogue) -> PromptInput {
    let engagements = history.engagements.iter().filter_map(|behaviour| {
        let item = catalogue.get(&behaviour.item_id)?;
        Some(PromptItem {
            title: item.title.clone(),
            categories: item.categories.clone(),
            price: item.price,
            action: behaviour.action.clone(),
            domain: (!behaviour.domain.is_empty()).then(|| behaviour.domain.clone()),
        })
    });
    PromptInput {
        profile: history.profile.iter().map(|(name, (_, value))| (name.clone(), plain(value))).collect(),
        engagements: engagements.collect(),
        queries: history.queries.iter().map(|(_, query)| query.clone()).collect(),
    }
}

/// A JSON attribute as plain text: strings without quotes, the rest as JSON.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
