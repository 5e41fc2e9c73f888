//! Token ids → readable text as they come, and stop strings that end it.
//!
//! In: one token at a time. Out: text that is safe to show: never half a character, never the start of what may become a
//! stop string. Owned by the `sequence` of a request that streams or has stop strings; the others are decoded at the end.

use std::sync::Arc;

use tokenizers::Tokenizer;

/// Stands for bytes that are no character (yet).
const UNFINISHED: char = '\u{FFFD}';
/// A character takes at most four bytes, so that many byte tokens; more unfinished ones are really broken.
const MOST_UNFINISHED: usize = 4;

/// The text of one growing answer.
pub struct TextTail {
    tokenizer: Arc<Tokenizer>,
    stops: Vec<String>,
    tokens: Vec<u32>,
    /// Tokens from here on are decoded together: some tokenizers put a space between tokens.
    start: usize,
    /// Tokens up to here are in `pending` or were shown.
    read: usize,
    /// Readable, but it may begin a stop string.
    pending: String,
    /// Everything shown.
    shown: String,
}

/// What one token did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grown {
    /// New text to show.
    pub text: String,
    /// A stop string was completed; it and what follows are cut off.
    pub stopped: bool,
}

impl TextTail {
    /// No text yet.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { tokenizer, stops, tokens: Vec::new(), start: 0, read: 0, pending: String::new(), shown: String::new() }
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) -> Result<Grown, String> {
        self.tokens.push(token);
        let before = self.decode(self.start, self.read)?;
        let now = self.decode(self.start, self.tokens.len())?;
        let unfinished = now.ends_with(UNFINISHED) && self.tokens.len() - self.read < MOST_UNFINISHED;
        if unfinished || now.len() <= before.len() {
            return Ok(Grown::default());
        }
        // A tokenizer may change what stood before (joining accents): then all of it counts as new from where they differ.
        let new = now.strip_prefix(before.as_str()).unwrap_or_else(|| tail(&now, before.len()));
        self.pending.push_str(new);
        (self.start, self.read) = (self.read, self.tokens.len());
        Ok(self.release())
    }

    /// The end: what was held back is shown.
    pub fn finish(&mut self) -> Result<String, String> {
        let before = self.decode(self.start, self.read)?;
        let now = self.decode(self.start, self.tokens.len())?;
        self.pending.push_str(now.strip_prefix(before.as_str()).unwrap_or_default());
        self.read = self.tokens.len();
        let rest = std::mem::take(&mut self.pending);
        self.shown.push_str(&rest);
        Ok(rest)
    }

    /// Everything shown so far.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    fn release(&mut self) -> Grown {
        let found = self.stops.iter().filter_map(|stop| self.pending.find(stop.as_str())).min();
        if let Some(place) = found {
            let text = self.pending[..place].to_owned();
            self.pending.clear();
            self.shown.push_str(&text);
            return Grown { text, stopped: true };
        }
        let held = self.stops.iter().map(|stop| overlap(&self.pending, stop)).max().unwrap_or(0);
        let text: String = self.pending.drain(..self.pending.len() - held).collect();
        self.shown.push_str(&text);
        Grown { text, stopped: false }
    }

    fn decode(&self, from: usize, to: usize) -> Result<String, String> {
        self.tokenizer.decode(&self.tokens[from..to], false).map_err(|error| error.to_string())
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest).rev().find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length])).unwrap_or(0)
}

/// The text from the first character boundary at or behind `place`.
fn tail(text: &str, place: usize) -> &str {
    (place..text.len()).find(|&start| text.is_char_boundary(start)).map_or("", |start| &text[start..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;
    use tokenizers::decoders::byte_level::ByteLevel;
    use tokenizers::models::bpe::BPE;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel as PreByteLevel;

    use super::*;

    /// One token per byte: characters outside ASCII come in pieces.
    fn byte_tokenizer() -> Arc<Tokenizer> {
        let mut letters: Vec<char> = PreByteLevel::alphabet().into_iter().collect();
        letters.sort_unstable();
        let vocabulary: Vec<(String, u32)> =
            letters.iter().enumerate().map(|(id, letter)| (letter.to_string(), id as u32)).collect();
        let vocabulary: [(String, u32); 256] = vocabulary.try_into().unwrap();
        let model = BPE::builder().vocab_and_merges(vocabulary, Vec::new()).build().unwrap();
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(PreByteLevel::new(false, true, false)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Arc::new(tokenizer)
    }

    /// Feeds a text byte by byte; what was shown, and whether a stop string ended it.
    fn feed(tokenizer: &Arc<Tokenizer>, text: &str, stops: &[&str]) -> (String, bool) {
        let mut tail = TextTail::new(tokenizer.clone(), stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut shown = String::new();
        for &token in tokenizer.encode(text, false).unwrap().get_ids() {
            let grown = tail.push(token).unwrap();
            assert!(!grown.text.contains(UNFINISHED), "half a character was shown");
            shown.push_str(&grown.text);
            if grown.stopped {
                assert_eq!(shown, tail.shown());
                return (shown, true);
            }
        }
        shown.push_str(&tail.finish().unwrap());
        assert_eq!(shown, tail.shown());
        (shown, false)
    }

    #[test]
    fn characters_come_whole_and_stops_are_cut() {
        let tokenizer = byte_tokenizer();
        assert_eq!(feed(&tokenizer, "naïve 日本 🎉", &[]), ("naïve 日本 🎉".to_owned(), false));
        assert_eq!(feed(&tokenizer, "one END two", &["END"]), ("one ".to_owned(), true));
        assert_eq!(feed(&tokenizer, "a EN b END", &["END", "日"]), ("a EN b ".to_owned(), true));
        assert_eq!(feed(&tokenizer, "ends with EN", &["END"]), ("ends with EN".to_owned(), false));
    }

    proptest! {
        #[test]
        fn shows_the_text_up_to_the_first_stop(text in "[ab€ x]{0,24}", stop in "[ab€x]{1,3}") {
            let tokenizer = byte_tokenizer();
            let wanted = match text.find(&stop) {
                Some(place) => (text[..place].to_owned(), true),
                None => (text.clone(), false),
            };
            prop_assert_eq!(feed(&tokenizer, &text, &[&stop]), wanted);
        }
    }
}
