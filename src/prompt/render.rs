//! [`PromptInput`] → prompt text that fits.
//!
//! ```text
//! <instruction, if any>
//! user: age_band 25-34, life_stage student
//! searches: trail shoes; headlamp
//! history:
//! click Outdoor > Running > Trail shoes: Veldt light trail shoe $45 video
//! …                                                                        newest first
//! <think>                                                                  or, in the mode no_think, <think></think>
//! ```
//!
//! Categories are spelled as in the answer (`L1 > L2 > L3: title`), so that a small model can copy them token by token.

use super::sanitise::sanitise_field;
use super::{PromptInput, PromptItem, PromptMode, PromptSchema, RenderedPrompt};
use crate::event::OPT_OUT_ATTRIBUTE;
use std::fmt::Write as _;
use xxhash_rust::xxh3::Xxh3;

/// Most profile attributes shown; with the caps below the profile line stays bounded.
const MAX_PROFILE_ATTRIBUTES: usize = 12;
const MAX_NAME_CHARS: usize = 24;
const MAX_VALUE_CHARS: usize = 32;
pub(super) const MAX_QUERY_CHARS: usize = 48;
/// Longest category level shown.
pub(super) const MAX_CATEGORY_CHARS: usize = 40;
/// Category levels shown.
pub(super) const MAX_LEVELS: usize = 3;

/// Renders the prompt; leaves out the oldest history first, then the oldest queries, until `count_tokens` fits.
///
/// The instruction always stays, and of the profile what fits beside it: a schema whose instruction alone is too long
/// yields a prompt over the limit, which the LLM engine refuses. `count_tokens` is called a handful of times (the cut is found by bisection).
pub fn render(
    schema: &PromptSchema,
    input: &PromptInput,
    mode: PromptMode,
    count_tokens: &dyn Fn(&str) -> usize,
) -> RenderedPrompt {
    let end = mode.prompt_end();
    let attributes = attributes(schema, input);
    let fits = |text: &str| count_tokens(text) <= schema.max_prompt_tokens;
    // A profile so long that nothing fits beside the instruction loses its last attributes, or no prompt could be made.
    let bare_fits = |count: usize| fits(&assemble(&head(schema, &attributes[..count]), &[], &[], &end));
    let attribute_count = largest_fitting(attributes.len(), bare_fits).unwrap_or(0);
    let head = head(schema, &attributes[..attribute_count]);
    let queries: Vec<String> = input
        .queries
        .iter()
        .map(|query| sanitise_field(query, MAX_QUERY_CHARS, &[';']))
        .filter(|query| !query.is_empty())
        .take(schema.max_queries)
        .collect();
    let lines: Vec<String> = input
        .engagements
        .iter()
        .filter_map(|item| engagement_line(item, schema.max_title_chars))
        .take(schema.max_engagements)
        .collect();
    let assemble =
        |query_count: usize, line_count: usize| assemble(&head, &queries[..query_count], &lines[..line_count], &end);
    let line_count = largest_fitting(lines.len(), |count| fits(&assemble(queries.len(), count)));
    let query_count = match line_count {
        Some(_) => queries.len(),
        None => largest_fitting(queries.len(), |count| fits(&assemble(count, 0))).unwrap_or(0),
    };
    let engagements_used = line_count.unwrap_or(0);
    RenderedPrompt {
        text: assemble(query_count, engagements_used),
        truncated: engagements_used < lines.len() || query_count < queries.len() || attribute_count < attributes.len(),
        engagements_used,
    }
}

/// Names a prompt within an epoch: a refresh with the same hash has nothing new to say (DESIGN 5.2).
pub fn prompt_hash(text: &str, epoch: u64) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&epoch.to_le_bytes());
    hasher.update(text.as_bytes());
    hasher.digest()
}

/// Largest count in 0..=`most` that fits, or `None` if not even 0 does.
///
/// Bisects, since more text never has fewer tokens with any sane tokenizer; the last loop mends it for the others.
fn largest_fitting(most: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if fits(most) {
        return Some(most);
    }
    let (mut low, mut high) = (0, most);
    while low + 1 < high {
        let middle = (low + high) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    (0..=low).rev().find(|count| fits(*count))
}

/// The profile's attributes as they may be shown, `name value`.
fn attributes(schema: &PromptSchema, input: &PromptInput) -> Vec<String> {
    input
        .profile
        .iter()
        .filter(|(name, _)| name != OPT_OUT_ATTRIBUTE)
        .filter(|(name, _)| !schema.sensitive_attributes.iter().any(|hidden| hidden.eq_ignore_ascii_case(name)))
        .filter_map(|(name, value)| {
            let name = sanitise_field(name, MAX_NAME_CHARS, &[',', ':']);
            let value = sanitise_field(value, MAX_VALUE_CHARS, &[',', ':']);
            (!name.is_empty() && !value.is_empty()).then(|| format!("{name} {value}"))
        })
        .take(MAX_PROFILE_ATTRIBUTES)
        .collect()
}

/// What every prompt of a schema begins with.
pub(super) fn instruction_line(schema: &PromptSchema) -> String {
    match schema.instruction.trim() {
        "" => String::new(),
        instruction => format!("{instruction}\n"),
    }
}

/// Instruction and profile line.
fn head(schema: &PromptSchema, attributes: &[String]) -> String {
    let mut head = instruction_line(schema);
    if !attributes.is_empty() {
        let _ = writeln!(head, "user: {}", attributes.join(", "));
    }
    head
}

/// `click L1 > L2 > L3: title $12 video`; `None` for an item without a title, which says nothing.
fn engagement_line(item: &PromptItem, max_title_chars: usize) -> Option<String> {
    let described = super::answer::describe(&item.categories, &item.title, max_title_chars)?;
    let mut line = sanitise_field(&item.action, MAX_NAME_CHARS, &[':', ' ']);
    line.push(' ');
    line.push_str(&described);
    match item.price {
        Some(price) if price.is_finite() && price >= 10.0 => {
            let _ = write!(line, " ${price:.0}");
        }
        Some(price) if price.is_finite() && price >= 0.0 => {
            let _ = write!(line, " ${price:.1}");
        }
        _ => {}
    }
    if let Some(domain) = &item.domain {
        line.push(' ');
        line.push_str(&sanitise_field(domain, MAX_NAME_CHARS, &[' ']));
    }
    Some(line)
}

fn assemble(head: &str, queries: &[String], lines: &[String], end: &str) -> String {
    let mut text = head.to_string();
    if !queries.is_empty() {
        let _ = writeln!(text, "searches: {}", queries.join("; "));
    }
    if !lines.is_empty() {
        text.push_str("history:\n");
    }
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str(end);
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    fn words(text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn item(title: &str) -> PromptItem {
        PromptItem {
            title: title.to_string(),
            categories: vec!["Outdoor".into(), "Running".into(), "Trail shoes".into()],
            price: Some(45.2),
            action: "click".into(),
            domain: Some("video".into()),
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let input = PromptInput {
            profile: vec![
                ("age_band".into(), "25-34".into()),
                ("gender".into(), "f".into()),
                ("life_stage".into(), "student".into()),
            ],
            queries: vec!["trail shoes".into(), "head;lamp".into()],
            engagements: vec![item("Veldt light trail shoe"), PromptItem::default()],
        };
        let prompt = render(&PromptSchema::small(), &input, PromptMode::Think, &words);
        assert_eq!(
            prompt.text,
            "user: age_band 25-34, life_stage student\nsearches: trail shoes; head lamp\nhistory:\n\
             click Outdoor > Running > Trail shoes: Veldt light trail shoe $45 video\n<think>"
        );
        assert!(!prompt.truncated);
        assert_eq!(prompt.engagements_used, 1);
    }

    #[test]
    fn an_empty_user_gets_a_prompt_and_hashes_cover_the_epoch() {
        let [prompt, answered] = [PromptMode::Think, PromptMode::NoThink]
            .map(|mode| render(&PromptSchema::small(), &PromptInput::default(), mode, &words));
        assert_eq!((prompt.text.as_str(), answered.text.as_str()), ("<think>", "<think></think>"));
        assert_ne!(prompt_hash(&prompt.text, 1), prompt_hash(&answered.text, 1));
        assert_ne!(prompt_hash(&prompt.text, 1), prompt_hash(&prompt.text, 2));
        assert_eq!(prompt_hash(&prompt.text, 1), prompt_hash(&prompt.text, 1));
    }

    const HOSTILE: &str =
        "(\\PC|[<>|;:,\n\r\u{2028}\u{85}]|<think>|</think><answer>|<\\|im_end\\|>|\nhistory:\nclick ){0,20}";

    proptest! {
        #[test]
        fn foreign_text_never_adds_a_line_or_a_tag(
            titles in prop::collection::vec(HOSTILE, 0..6),
            query in HOSTILE, value in HOSTILE, category in HOSTILE, action in HOSTILE,
        ) {
            let engagements: Vec<PromptItem> = titles.iter().map(|title| PromptItem {
                title: format!("T{title}"), categories: vec![category.clone()], price: None,
                action: format!("a{action}"), domain: Some(value.clone()) }).collect();
            let input = PromptInput { profile: vec![("p".into(), format!("v{value}"))], queries: vec![format!("q{query}")], engagements };
            let history_lines = if titles.is_empty() { 0 } else { titles.len() + 1 };
            for (mode, end, tags) in [(PromptMode::Think, "\n<think>", 1), (PromptMode::NoThink, "\n<think></think>", 2)] {
                let prompt = render(&PromptSchema::small(), &input, mode, &|_| 0);
                prop_assert_eq!(prompt.text.lines().count(), 2 + history_lines + 1);
                prop_assert_eq!(prompt.text.matches('<').count(), tags);
                prop_assert!(prompt.text.ends_with(end));
                let separated = prompt.text.contains('\u{2028}');
                prop_assert!(!separated);
            }
        }

        #[test]
        fn the_limit_holds_and_the_newest_stay(count in 0usize..60, limit in 40usize..400, thinks: bool) {
            let mode = if thinks { PromptMode::Think } else { PromptMode::NoThink };
            let schema = PromptSchema { max_engagements: 50, max_prompt_tokens: limit, ..PromptSchema::small() };
            let engagements = (0..count).map(|index| item(&format!("number{index}"))).collect();
            let input = PromptInput { profile: vec![("region".into(), "north".into())], queries: vec!["tent".into()], engagements };
            let prompt = render(&schema, &input, mode, &words);
            prop_assert!(words(&prompt.text) <= limit);
            for index in 0..count {
                let shown = prompt.text.contains(&format!("number{index} "));
                prop_assert_eq!(shown, index < prompt.engagements_used);
            }
            prop_assert_eq!(prompt.truncated, prompt.engagements_used < count.min(50));
            prop_assert!(prompt.text.contains("region north") && prompt.text.contains("tent"));
            prop_assert_eq!(&render(&schema, &input, mode, &words), &prompt);
        }
    }
}
