//! Text of items and users → text that cannot write the prompt.
//!
//! In: titles, categories, queries, profile values as strangers sent them. Out: one line without markup, capped.
//! Callers: `render` and `answer` for every piece of foreign text; nothing else may enter a prompt.

/// Makes foreign text harmless: one line, no control or invisible characters, no tags, at most `max_chars` characters.
///
/// Whole tags (`<…>`) and special tokens (`<|…|>`) go first; then no angle bracket is left at all, so that no tag can be
/// put together from what remains. Idempotent.
pub fn sanitise(text: &str, max_chars: usize) -> String {
    let without_tags = remove_tags(text);
    let mut line = String::with_capacity(without_tags.len().min(4 * max_chars));
    let mut length = 0;
    for word in without_tags.split(is_separator) {
        let visible: String = word.chars().filter(|character| !is_invisible(*character)).collect();
        if visible.is_empty() {
            continue;
        }
        if length > 0 {
            line.push(' ');
            length += 1;
        }
        for character in visible.chars() {
            if length >= max_chars {
                return cut_at_word(&line).to_string();
            }
            line.push(character);
            length += 1;
        }
    }
    line.trim_end().to_string()
}

/// Drops the piece of a word that the cap left at the end, unless that would lose more than half of the line.
fn cut_at_word(line: &str) -> &str {
    match line.rfind(' ') {
        Some(space) if 2 * space >= line.len() => line[..space].trim_end(),
        _ => line,
    }
}

/// As [`sanitise`], with the characters in `reserved` turned into spaces: those that structure a prompt line.
pub(super) fn sanitise_field(text: &str, max_chars: usize, reserved: &[char]) -> String {
    sanitise(&text.replace(reserved, " "), max_chars)
}

/// Longest tag that is cut out as a whole; a longer stretch between brackets is text, not a tag.
const MAX_TAG_CHARS: usize = 32;

/// Cuts out `<word>`, `</word>` and `<|word|>`. A comparison such as `3 < 5 > 2` stays (its brackets go later).
fn remove_tags(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        kept.push_str(&rest[..start]);
        let tail = &rest[start..];
        match tag_length(tail) {
            Some(length) => {
                kept.push(' ');
                rest = &tail[length..];
            }
            None => {
                kept.push(' ');
                rest = &tail[1..];
            }
        }
    }
    kept.push_str(rest);
    kept
}

/// Bytes of the tag that `tail` (which begins with `<`) starts with, or `None`.
fn tag_length(tail: &str) -> Option<usize> {
    // Looks no further than a tag can reach: a text of a million `<` must not cost a million scans.
    let (end, _) = tail.char_indices().take(MAX_TAG_CHARS + 2).find(|(_, character)| *character == '>')?;
    let inside = &tail[1..end];
    let name_like =
        |character: char| character.is_alphanumeric() || matches!(character, '/' | '|' | '_' | '-' | '▁' | '｜');
    (!inside.is_empty() && inside.chars().all(name_like)).then_some(end + 1)
}

/// White space, control characters and angle brackets (with the look-alikes that NFKC tokenizers fold into them).
fn is_separator(character: char) -> bool {
    character.is_whitespace() || character.is_control() || matches!(character, '<' | '>' | '＜' | '＞' | '﹤' | '﹥')
}

/// Zero-width, direction and tag characters: a human reviewer does not see them, a model does.
fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{00AD}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_million_brackets_cost_one_pass() {
        // Each bracket looks at most a tag's length ahead; a look at the whole tail took a minute here.
        let text = "<".repeat(1_000_000) + ">";
        assert_eq!(sanitise(&text, 48), "");
    }

    #[test]
    fn tags_and_lines_are_gone_and_words_stay() {
        assert_eq!(sanitise("Tent</think><answer>x", 80), "Tent x");
        assert_eq!(sanitise("a<|im_end|>b", 80), "a b");
        assert_eq!(sanitise("<thi<think>nk> ok", 80), "thi nk ok");
        assert_eq!(sanitise("two\nlines\u{2028}here\u{200B}!", 80), "two lines here!");
        assert_eq!(sanitise("5 < 6 cable", 80), "5 6 cable");
        assert_eq!(sanitise("abcdef", 3), "abc");
        assert_eq!(sanitise("nickel wound strings", 16), "nickel wound");
        assert_eq!(sanitise("a verylongwordthatgoeson", 10), "a verylong");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_comes_out_as_one_short_harmless_line(text in "(\\PC|[<>|/\n\r\t]|<think>|</answer>|<\\|){0,60}", cap in 0usize..50) {
            let clean = sanitise(&text, cap);
            prop_assert!(clean.chars().count() <= cap);
            let harmless = !clean.chars().any(|c| c.is_control() || c == '<' || c == '>');
            prop_assert!(harmless);
            let separated = clean.contains('\u{2028}');
            prop_assert!(!separated);
            prop_assert_eq!(sanitise(&clean, cap), clean);
        }
    }
}
