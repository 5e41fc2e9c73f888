//! What the LLM wrote: any text is taken apart, no tag of ours is left in the parts, and a well-formed answer parses back.

use crate::prompt::{PromptMode, completion, parse, split_answer};

const TAGS: [&str; 4] = ["<think>", "</think>", "<answer>", "</answer>"];

/// The text after the prompt, in either mode.
pub(super) fn answer(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    [PromptMode::Think, PromptMode::NoThink].map(|mode| taken_apart(&text, mode)).contains(&true)
}

fn taken_apart(text: &str, mode: PromptMode) -> bool {
    let parsed = parse(text, mode);
    assert!(parsed.reasoning.len() + parsed.answer.len() <= text.len());
    for part in [&parsed.reasoning, &parsed.answer] {
        assert!(!TAGS.iter().any(|tag| part.contains(tag)), "{part:?}");
        assert_eq!(part.trim(), part);
    }
    let (levels, title) = split_answer(&parsed.answer);
    assert!(title.len() + levels.iter().map(String::len).sum::<usize>() <= parsed.answer.len());
    if parsed.format_ok {
        assert!(parsed.reasoning.is_empty() == (mode == PromptMode::NoThink) && !parsed.answer.is_empty());
        assert_eq!(parse(&completion(&parsed.reasoning, &parsed.answer, mode), mode), parsed);
    }
    parsed.format_ok
}
