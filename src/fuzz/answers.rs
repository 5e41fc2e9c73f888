//! What the LLM wrote: any text is taken apart, no tag of ours is left in the parts, and a well-formed answer parses back.

use crate::prompt::{completion, parse, split_answer};

const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// The text after the prompt.
pub(super) fn answer(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let parsed = parse(&text);
    assert!(parsed.reasoning.len() + parsed.answer.len() <= text.len());
    for part in [&parsed.reasoning, &parsed.answer] {
        assert!(!TAGS.iter().any(|tag| part.contains(tag)), "{part:?}");
        assert_eq!(part.trim(), part);
    }
    let (levels, title) = split_answer(&parsed.answer);
    assert!(title.len() + levels.iter().map(String::len).sum::<usize>() <= parsed.answer.len());
    if parsed.format_ok {
        assert!(!parsed.reasoning.is_empty() && !parsed.answer.is_empty());
        assert_eq!(parse(&completion(&parsed.reasoning, &parsed.answer)), parsed);
    }
    parsed.format_ok
}
