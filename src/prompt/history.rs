//! A history as text without the LLM: what the fast path embeds (DESIGN 7).
//!
//! In: [`PromptInput`]. Out: searches, then items as an answer names them (`L1 > L2 > L3: title`), newest first, one a line.
//! Its vector is compared with those of answers, so it has their shape, without actions, prices and profile. Caller:
//! `refresh`. It is no part of the prompt, so it changes neither `SERIALIZER_VERSION` nor a bundle.

use super::answer::describe;
use super::render::MAX_QUERY_CHARS;
use super::sanitise::sanitise_field;
use super::{PromptInput, PromptSchema};

/// What a user searched for and engaged with; empty when nothing of it has words. As many lines as the prompt would have;
/// the encoder's own limit cuts the oldest.
pub fn history_text(schema: &PromptSchema, input: &PromptInput) -> String {
    let queries = input
        .queries
        .iter()
        .map(|query| sanitise_field(query, MAX_QUERY_CHARS, &[';']))
        .filter(|query| !query.is_empty())
        .take(schema.max_queries);
    let items = input
        .engagements
        .iter()
        .filter_map(|item| describe(&item.categories, &item.title, schema.max_title_chars))
        .take(schema.max_engagements);
    queries.chain(items).collect::<Vec<String>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::PromptItem;

    fn item(title: &str, categories: &[&str]) -> PromptItem {
        let categories = categories.iter().map(|level| level.to_string()).collect();
        PromptItem { title: title.into(), categories, price: Some(9.0), action: "purchase".into(), domain: None }
    }

    #[test]
    fn searches_then_items_as_answers_name_them() {
        let input = PromptInput {
            profile: vec![("gender".into(), "f".into())],
            queries: vec!["trail shoes".into(), " ".into()],
            engagements: vec![
                item("Veldt <b>shoe", &["Outdoor", "Running"]),
                item("", &["Outdoor"]),
                item("Tent", &[]),
            ],
        };
        let text = history_text(&PromptSchema::small(), &input);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines[0], lines[2], lines.len()), ("trail shoes", "Tent", 3), "{text}");
        assert!(lines[1].starts_with("Outdoor > Running: Veldt") && !lines[1].contains('<'), "{text}");
        assert!(!text.contains("gender") && !text.contains("purchase"), "{text}");
    }

    #[test]
    fn as_many_lines_as_a_prompt_and_none_without_words() {
        let schema = PromptSchema { max_engagements: 2, max_queries: 1, ..PromptSchema::small() };
        let engagements = (0..5).map(|number| item(&format!("t{number}"), &[])).collect();
        let input = PromptInput { queries: vec!["q0".into(), "q1".into()], engagements, ..PromptInput::default() };
        assert_eq!(history_text(&schema, &input), "q0\nt0\nt1");
        assert_eq!(history_text(&schema, &PromptInput::default()), "");
    }
}
