//! Reasons → language: the same reason in many words, evidence in any order, then the conclusion.
//!
//! In: [`Reason`]s and the target's categories (never its title: the reasoning must not give the answer away).
//! Out: two to four short sentences, at most about [`MAX_WORDS`] words. Callers: `data::examples`, so the wording
//! of generated worlds and of real data is one.

use super::{Reason, true_reason};
use crate::draw;
use rand::Rng;
use taiji::prompt::sanitise;

/// Words of a reasoning, about; some 45 tokens with a vocabulary trained on this text.
pub const MAX_WORDS: usize = 34;
/// Pieces of evidence in one reasoning.
const MAX_EVIDENCE: usize = 3;
/// Longest piece of foreign text (query, brand, category) inside a sentence.
const MAX_PIECE_CHARS: usize = 40;

/// One of the many ways to say it. The first reason is always told; the others as long as there is room.
///
/// Where one cause decides there is one wording, which can be checked: that of the first reason; the target adds nothing.
pub fn reasoning(reasons: &[Reason], categories: &[String], random: &mut impl Rng) -> String {
    if let Some(text) = true_reason(reasons) {
        return text;
    }
    let close = match (categories, reasons) {
        ([], reasons) if reasons.iter().all(|reason| matches!(reason, Reason::New | Reason::Lately { .. })) => {
            "So something different is next.".to_string()
        }
        _ => conclusion(categories, random),
    };
    let mut room = MAX_WORDS.saturating_sub(words(&close));
    let mut evidence = Vec::new();
    for reason in reasons.iter().take(MAX_EVIDENCE) {
        let sentence = sentence(reason, random);
        let length = words(&sentence);
        if evidence.is_empty() || length <= room {
            room = room.saturating_sub(length);
            evidence.push(capital(&sentence) + ".");
        }
    }
    draw::shuffle(&mut evidence, random);
    evidence.push(close);
    evidence.join(" ")
}

/// What follows from the evidence, with the categories by name.
fn conclusion(categories: &[String], random: &mut impl Rng) -> String {
    let names: Vec<String> = categories.iter().map(|name| piece(name)).filter(|name| !name.is_empty()).collect();
    let Some((top, deeper)) = names.split_first() else {
        return pick(
            random,
            &["So one more of these fits.", "Another one like this is next.", "More of the same kind follows."],
        )
        .to_string();
    };
    let path = names.join(" > ");
    let Some(lowest) = deeper.last() else {
        let start = pick(random, &["So the next purchase is in", "This points to", "Expect something from"]);
        return format!("{start} {top}.");
    };
    match random.random_range(0..5) {
        0 => format!("So next comes {lowest} in {top}."),
        1 => format!("This points to {path}."),
        2 => format!("Most likely next: {path}."),
        3 => format!("The next purchase should be {lowest}, {top}."),
        _ => format!("That makes {path} the best guess."),
    }
}

/// One reason as a sentence without its full stop.
fn sentence(reason: &Reason, random: &mut impl Rng) -> String {
    match reason {
        Reason::Repeated { categories, count, of } => repeated(categories, *count, *of, random),
        Reason::Search { query } => {
            let query = piece(query);
            match random.random_range(0..4) {
                0 => format!("they just searched for {query}"),
                1 => format!("a fresh search for {query} shows the need"),
                2 => format!("the latest query is {query}"),
                _ => format!("looking for {query} right now"),
            }
        }
        Reason::Complement { bought } => {
            let bought = piece(bought);
            match random.random_range(0..4) {
                0 => format!("it goes with the {bought} bought lately"),
                1 => format!("after buying {bought}, something to go with it is missing"),
                2 => format!("the recent {bought} purchase wants a companion"),
                _ => format!("having bought {bought}, the matching piece comes next"),
            }
        }
        Reason::Season { season } => {
            let season = piece(season);
            match random.random_range(0..3) {
                0 => format!("it is {season}"),
                1 => format!("shopping for {season} has begun"),
                _ => format!("the latest clicks fit {season}"),
            }
        }
        Reason::LifeStage { stage } => {
            let stage = piece(stage);
            match random.random_range(0..3) {
                0 => format!("at the {stage} stage this is needed"),
                1 => format!("the life stage {stage} calls for it"),
                _ => format!("the profile says {stage}"),
            }
        }
        Reason::Brand { brand } => {
            let brand = piece(brand);
            match random.random_range(0..4) {
                0 => format!("they like {brand}"),
                1 => format!("{brand} is a trusted brand here"),
                2 => format!("{brand} comes up again"),
                _ => format!("loyal to {brand}"),
            }
        }
        Reason::Price { low: true } => {
            pick(random, &["they buy at the low end", "price matters to them", "cheaper options are preferred"]).into()
        }
        Reason::Price { low: false } => {
            pick(random, &["they pay for quality", "dearer options are preferred", "they buy at the high end"]).into()
        }
        Reason::Unfinished { category } => {
            let category = piece(category);
            match random.random_range(0..3) {
                0 => format!("the {category} they just looked at are not bought yet"),
                1 => format!("one of the {category} seen last is still open"),
                _ => format!("they opened {category} and have not decided"),
            }
        }
        Reason::SharedWords { words, count } => shared_words(words, *count, random),
        Reason::Lately { titles } => lately(titles, random),
        Reason::Decides { cause, domain, .. } => cause.evidence(domain).trim_end_matches(" .").to_string(),
        Reason::New => {
            pick(random, &["nothing before points there", "the history is mixed", "this is a step into something new"])
                .into()
        }
    }
}

/// An interest that the history shows.
fn repeated(categories: &[String], count: usize, of: usize, random: &mut impl Rng) -> String {
    let path = categories.iter().map(|name| piece(name)).collect::<Vec<_>>().join(" > ");
    let lowest = categories.last().map(|name| piece(name)).unwrap_or_default();
    let amount = if 2 * count > of {
        "most"
    } else if count > 1 {
        "several"
    } else {
        "one"
    };
    match random.random_range(0..6) {
        0 => format!("{amount} of the last {of} actions {} in {path}", if count > 1 { "are" } else { "is" }),
        1 => format!("{count} of {of} recent items are {path}"),
        2 if count > 1 => format!("they keep coming back to {path}"),
        3 if 2 * count > of => format!("the main interest now is {path}"),
        4 if categories.len() > 1 => format!("interest in {lowest} shows under {}", piece(&categories[0])),
        _ => format!("{path} shows up in the history"),
    }
}

/// What came last.
fn lately(titles: &[String], random: &mut impl Rng) -> String {
    let named: Vec<String> = titles.iter().map(|title| piece(title)).collect();
    let (newest, before) = match named.as_slice() {
        [] => return "the history is short".to_string(),
        [newest] => return format!("{} {newest}", pick(random, &["the latest is", "they just took", "last came"])),
        [newest, before, ..] => (newest, before),
    };
    match random.random_range(0..4) {
        0 => format!("the latest are {newest} and {before}"),
        1 => format!("they just took {newest}, before that {before}"),
        2 => format!("last came {newest} after {before}"),
        _ => format!("{newest} and {before} came last"),
    }
}

/// What titles have in common.
fn shared_words(shared: &[String], count: usize, random: &mut impl Rng) -> String {
    let named = shared.iter().map(|word| piece(word)).collect::<Vec<_>>();
    let named = match named.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => named.join(""),
    };
    let times = match count {
        1 => "one earlier item".to_string(),
        2 => "two earlier items".to_string(),
        more => format!("{more} earlier items"),
    };
    match random.random_range(0..5) {
        0 => format!("bought {named} before ({times})"),
        1 => format!("{times} speak of {named}"),
        2 => format!("it goes with the {named} in the history"),
        3 => format!("they keep buying around {named}"),
        _ => format!("{times} share {named} with what comes next"),
    }
}

/// Foreign text inside a sentence. Full stops go, so that it stays one sentence.
fn piece(text: &str) -> String {
    sanitise(&text.replace('.', " "), MAX_PIECE_CHARS)
}

fn pick<'a>(random: &mut impl Rng, list: &[&'a str]) -> &'a str {
    draw::choice(list, random).copied().unwrap_or("")
}

fn capital(sentence: &str) -> String {
    let mut characters = sentence.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters).collect(),
        None => String::new(),
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().filter(|word| *word != ">").count()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use std::collections::BTreeSet;

    #[test]
    fn one_set_of_reasons_has_many_wordings_and_all_name_the_category() {
        let path: Vec<String> = ["Outdoor", "Running", "Trail shoes"].map(str::to_string).to_vec();
        let reasons = [
            Reason::Repeated { categories: path[..2].to_vec(), count: 3, of: 5 },
            Reason::Search { query: "light </think> shoe".into() },
            Reason::Brand { brand: "Veldt".into() },
        ];
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let texts: BTreeSet<String> = (0..300).map(|_| reasoning(&reasons, &path, &mut random)).collect();
        assert!(texts.len() > 200, "{}", texts.len());
        for text in &texts {
            assert!(text.contains("Outdoor") && text.contains("Trail shoes"), "{text}");
            assert!(!text.contains("</think>") && words(text) <= MAX_WORDS + 4, "{text}");
        }
    }

    #[test]
    fn nothing_known_still_gives_a_sentence() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        assert!(!reasoning(&[Reason::New], &[], &mut random).is_empty());
        assert!(!reasoning(&[], &[], &mut random).is_empty());
    }
}
