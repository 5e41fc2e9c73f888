//! A history → what the prompt serializer takes, with titles out of the catalogue. One way for stored histories and for data sets.

use crate::catalogue::Catalogue;
use crate::event::Item;
use crate::prompt::{PromptInput, PromptItem};
use crate::store::UserHistory;
use serde_json::Value;
use std::borrow::Borrow;

/// An engagement as whoever keeps histories has it.
pub struct Engagement<'a, I> {
    /// What the user met; `None` = nothing is known of it.
    pub item: Option<I>,
    /// Configured action name.
    pub action: &'a str,
    /// Where; empty where that is not known.
    pub domain: &'a str,
}

/// Engagements and queries come newest first, attributes sorted by name. Engagements without a known item are left out (they
/// could tell the model nothing).
pub fn prompt_input<'a, I: Borrow<Item>>(
    profile: impl IntoIterator<Item = (String, String)>,
    engagements: impl IntoIterator<Item = Engagement<'a, I>>,
    queries: impl IntoIterator<Item = &'a str>,
) -> PromptInput {
    PromptInput {
        profile: profile.into_iter().collect(),
        engagements: engagements.into_iter().filter_map(prompt_item).collect(),
        queries: queries.into_iter().map(str::to_string).collect(),
    }
}

/// The same of a stored history.
pub fn history_input(history: &UserHistory, catalogue: &Catalogue) -> PromptInput {
    prompt_input(
        history.profile.iter().map(|(name, (_, value))| (name.clone(), plain(value))),
        history.engagements.iter().map(|behaviour| Engagement {
            item: catalogue.get(&behaviour.item_id),
            action: &behaviour.action,
            domain: &behaviour.domain,
        }),
        history.queries.iter().map(|(_, query)| query.as_str()),
    )
}

fn prompt_item<I: Borrow<Item>>(engagement: Engagement<'_, I>) -> Option<PromptItem> {
    let Engagement { item, action, domain } = engagement;
    let item = item?;
    let item: &Item = item.borrow();
    Some(PromptItem {
        title: item.title.clone(),
        categories: item.categories.clone(),
        price: item.price,
        action: action.to_string(),
        domain: (!domain.is_empty()).then(|| domain.to_string()),
    })
}

/// A JSON attribute as plain text: strings without quotes, the rest as JSON.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
