//! What the LLM writes after the prompt: making it for training, and taking it apart when serving.
//!
//! `reasoning</think><answer>L1 > L2 > L3: title</answer>`, or the answer alone where the prompt asks for no reasoning.
//!
//! Callers: `train` ([`completion`], [`answer_text`]), `refresh` and `taiji_trainer::evaluate` ([`parse`], [`split_answer`]).

use super::render::{MAX_CATEGORY_CHARS, MAX_LEVELS};
use super::sanitise::{sanitise, sanitise_field};
use super::{ANSWER_CLOSE, ANSWER_OPEN, ParsedAnswer, PromptMode, THINK_CLOSE, THINK_OPEN};

const TAGS: [&str; 4] = [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE];

/// An item as the answer names it, `L1 > L2 > L3: title`; the title alone where no category is known.
pub fn answer_text(categories: &[String], title: &str, max_title_chars: usize) -> String {
    describe(categories, title, max_title_chars).unwrap_or_default()
}

/// The same for history lines; `None` without a title.
pub(super) fn describe(categories: &[String], title: &str, max_title_chars: usize) -> Option<String> {
    let title = sanitise(title, max_title_chars);
    if title.is_empty() {
        return None;
    }
    let levels: Vec<String> = categories
        .iter()
        .map(|level| sanitise_field(level, MAX_CATEGORY_CHARS, &[':']))
        .filter(|level| !level.is_empty())
        .take(MAX_LEVELS)
        .collect();
    match levels.is_empty() {
        true => Some(title),
        false => Some(format!("{}: {title}", levels.join(" > "))),
    }
}

/// Takes an answer apart into categories (broadest first) and title: `L1 > L2 > L3: title`, one level and a title, levels
/// alone, or a title alone. A title that holds a colon and comes without categories cannot be told from one level and a title;
/// who knows the categories can.
pub fn split_answer(answer: &str) -> (Vec<String>, String) {
    let path = |levels: &str| levels.split('>').map(|level| level.trim().to_string()).collect();
    match answer.split_once(": ") {
        Some((levels, title)) => (path(levels), title.trim().to_string()),
        None if answer.contains(" > ") => (path(answer), String::new()),
        None => (Vec::new(), answer.trim().to_string()),
    }
}

/// The text a model is trained to write after the prompt; the reasoning only where the mode has one. Tags inside the parts are
/// removed, so it always parses.
pub fn completion(reasoning: &str, answer: &str, mode: PromptMode) -> String {
    let answer = format!("{ANSWER_OPEN}{}{ANSWER_CLOSE}", without_tags(answer));
    match mode {
        PromptMode::Think => format!("{}{THINK_CLOSE}{answer}", without_tags(reasoning)),
        PromptMode::NoThink => answer,
    }
}

/// Takes apart what was generated after a prompt of this mode. Never fails: broken text yields what could be found and
/// `format_ok` = false.
pub fn parse(generated: &str, mode: PromptMode) -> ParsedAnswer {
    let text = strip_end_tokens(generated.trim());
    let text = text.strip_prefix(THINK_OPEN).unwrap_or(text);
    if let Some(parsed) = parse_strict(text, mode) {
        return parsed;
    }
    let reasoning_end = [THINK_CLOSE, ANSWER_OPEN].iter().filter_map(|tag| text.find(tag)).min().unwrap_or(text.len());
    let answer = match text.find(ANSWER_OPEN) {
        Some(start) => {
            let tail = &text[start + ANSWER_OPEN.len()..];
            &tail[..tail.find(ANSWER_CLOSE).unwrap_or(tail.len())]
        }
        None => text.find(THINK_CLOSE).map(|end| &text[end + THINK_CLOSE.len()..]).unwrap_or(""),
    };
    ParsedAnswer { reasoning: without_tags(&text[..reasoning_end]), answer: without_tags(answer), format_ok: false }
}

/// The contract to the letter; white space around the parts is allowed.
fn parse_strict(text: &str, mode: PromptMode) -> Option<ParsedAnswer> {
    let (reasoning, rest) = match mode {
        PromptMode::Think => text.split_once(THINK_CLOSE)?,
        PromptMode::NoThink => ("", text.strip_prefix(THINK_CLOSE).unwrap_or(text)),
    };
    let answer = rest.trim_start().strip_prefix(ANSWER_OPEN)?.strip_suffix(ANSWER_CLOSE)?;
    let (reasoning, answer) = (reasoning.trim(), answer.trim());
    let clean = |part: &str| !TAGS.iter().any(|tag| part.contains(tag));
    let whole = !answer.is_empty() && reasoning.is_empty() == (mode == PromptMode::NoThink);
    (whole && clean(reasoning) && clean(answer)).then(|| ParsedAnswer {
        reasoning: reasoning.to_string(),
        answer: answer.to_string(),
        format_ok: true,
    })
}

/// Cuts end-of-text tokens (`<|…|>`, `</s>`, DeepSeek's `<｜…｜>`) off the end; a model may emit one or several.
fn strip_end_tokens(text: &str) -> &str {
    let of_bars = |rest: &'_ str, open: &str, close: &str| {
        let inside = rest.strip_suffix(close)?;
        let start = inside.rfind(open)?;
        let is_name = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '▁';
        inside[start + open.len()..].chars().all(is_name).then_some(start)
    };
    let mut rest = text;
    loop {
        let shorter = rest.strip_suffix("</s>").or_else(|| {
            let start = of_bars(rest, "<|", "|>").or_else(|| of_bars(rest, "<｜", "｜>"))?;
            Some(&rest[..start])
        });
        match shorter {
            Some(shorter) => rest = shorter.trim_end(),
            None => return rest,
        }
    }
}

/// Removes the four tags until none is left (removing one may put another together).
fn without_tags(text: &str) -> String {
    let mut clean = text.to_string();
    while TAGS.iter().any(|tag| clean.contains(tag)) {
        for tag in TAGS {
            clean = clean.replace(tag, "");
        }
    }
    clean.trim().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn good_text_is_taken_apart() {
        for text in [
            "because</think><answer>A > B: t</answer>",
            "<think> because\n</think>\n<answer> A > B: t </answer>\n",
            "because</think><answer>A > B: t</answer><|endoftext|>",
            "because</think><answer>A > B: t</answer></s><|im_end|>",
            "because</think><answer>A > B: t</answer><｜end▁of▁sentence｜>",
        ] {
            let parsed = parse(text, PromptMode::Think);
            assert!(parsed.format_ok, "{text}");
            assert_eq!((parsed.reasoning.as_str(), parsed.answer.as_str()), ("because", "A > B: t"));
            assert!(!parse(text, PromptMode::NoThink).format_ok, "{text}");
        }
        for text in ["<answer>A > B: t</answer>", "<think></think>\n<answer>A > B: t</answer><|endoftext|>"] {
            let parsed = parse(text, PromptMode::NoThink);
            assert!(parsed.format_ok, "{text}");
            assert_eq!((parsed.reasoning.as_str(), parsed.answer.as_str()), ("", "A > B: t"));
            assert!(!parse(text, PromptMode::Think).format_ok, "{text}");
        }
        assert_eq!(split_answer("A > B: t: x"), (vec!["A".to_string(), "B".to_string()], "t: x".to_string()));
        assert_eq!(split_answer("A: t"), (vec!["A".to_string()], "t".to_string()));
        assert_eq!(split_answer("A > B"), (vec!["A".to_string(), "B".to_string()], String::new()));
        assert_eq!(split_answer("just a title"), (vec![], "just a title".to_string()));
    }

    #[test]
    fn broken_text_yields_what_is_there() {
        for (text, reasoning, answer) in [
            ("", "", ""),
            ("cut off", "cut off", ""),
            ("r</think>no tag", "r", "no tag"),
            ("r</think><answer>cut", "r", "cut"),
            ("r<answer>a</answer>", "r", "a"),
            ("r</think><answer></answer>", "r", ""),
            ("</think><answer>a</answer>", "", "a"),
            ("r</think><answer>a</answer> and more", "r", "a"),
            ("r</think>x<answer>a</answer>", "r", "a"),
            ("r</think></think><answer>a</answer>", "r", "a"),
        ] {
            let parsed = parse(text, PromptMode::Think);
            assert!(!parsed.format_ok, "{text}");
            assert_eq!((parsed.reasoning.as_str(), parsed.answer.as_str()), (reasoning, answer), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_for_training_parses_back(
            reasoning in "[a-z .,<>/]{0,10}(</think>|<answer>)?[a-z .]{1,30}", title in "\\PC{0,40}",
        ) {
            prop_assume!(!without_tags(&reasoning).is_empty());
            let answer = answer_text(&["Outdoor".to_string(), "Tents".to_string()], &format!("T {title}"), 40);
            for (mode, reason) in [(PromptMode::Think, without_tags(&reasoning)), (PromptMode::NoThink, String::new())] {
                let parsed = parse(&completion(&reasoning, &answer, mode), mode);
                prop_assert!(parsed.format_ok);
                prop_assert_eq!(parsed.reasoning, reason);
                prop_assert_eq!(&parsed.answer, &answer);
            }
            prop_assert_eq!(&split_answer(&answer).0, &["Outdoor".to_string(), "Tents".to_string()]);
        }

        #[test]
        fn no_text_breaks_the_parser(text in "(\\PC|<think>|</think>|<answer>|</answer>|<\\|eot\\|>){0,20}") {
            for mode in [PromptMode::Think, PromptMode::NoThink] {
                let parsed = parse(&text, mode);
                if parsed.format_ok {
                    let again = parse(&completion(&parsed.reasoning, &parsed.answer, mode), mode);
                    prop_assert_eq!(again, parsed);
                }
            }
        }
    }
}
