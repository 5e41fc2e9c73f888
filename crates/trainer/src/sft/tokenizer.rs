//! Byte-level BPE trained on the corpus, saved as a Hugging Face `tokenizer.json`.
//!
//! Called by `stages` (training it), `training` (encoding), evaluation. The same corpus gives the same file, byte for byte.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::SftError;
use taiji::prompt::{ANSWER_CLOSE, ANSWER_OPEN, THINK_CLOSE, THINK_OPEN};

/// Ends a text; also the padding token, id 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Name of the file.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A tokenizer whose special tokens are found inside any text.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
}

impl TextTokenizer {
    /// Trains on `texts`. Ids: `<|endoftext|>` 0, think and answer tags 1–4, `extra` tokens, 256 bytes, merges. A small
    /// corpus may give fewer than `vocab` tokens.
    pub fn train<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        vocab: usize,
        extra: &[String],
    ) -> Result<Self, SftError> {
        let special: Vec<AddedToken> = [END_OF_TEXT, THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]
            .into_iter()
            .chain(extra.iter().map(String::as_str))
            .map(|text| AddedToken::from(text, true))
            .collect();
        let least = special.len() + 256;
        if vocab < least {
            let message = format!("must be at least {least} (bytes and special tokens), got {vocab}");
            return Err(SftError::Settings { field: "vocab", message });
        }
        let failed = |error: tokenizers::Error| SftError::Tokenizer {
            path: PathBuf::from("training"),
            message: error.to_string(),
        };
        let mut trainer = BpeTrainerBuilder::new()
            .vocab_size(vocab)
            .min_frequency(2)
            .special_tokens(special)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
            .show_progress(false)
            .build();
        let byte_level = ByteLevel::default().add_prefix_space(false);
        let mut tokenizer =
            TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::default()
                .with_model(BPE::default())
                .with_pre_tokenizer(Some(byte_level))
                .with_decoder(Some(byte_level))
                .build()
                .map_err(failed)?;
        // The trainer splits texts at special tokens only if it is told to: otherwise merges could run across them.
        let pieces = texts.into_iter().flat_map(|text| split_at(text, extra)).collect::<Vec<_>>();
        tokenizer.train(&mut trainer, pieces.into_iter()).map_err(failed)?;
        Ok(Self { inner: tokenizer.into() })
    }

    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, SftError> {
        let inner = Tokenizer::from_file(path)
            .map_err(|error| SftError::Tokenizer { path: path.to_owned(), message: error.to_string() })?;
        Ok(Self { inner })
    }

    /// The file's text.
    pub fn to_json(&self) -> Result<String, SftError> {
        self.inner
            .to_string(false)
            .map_err(|error| SftError::Tokenizer { path: PathBuf::from(TOKENIZER_FILE), message: error.to_string() })
    }

    /// Token ids of a text; special tokens spelled out in it become one id each.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, SftError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| SftError::Tokenizer { path: PathBuf::from("encoding"), message: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens kept.
    pub fn decode(&self, ids: &[u32]) -> Result<String, SftError> {
        self.inner
            .decode(ids, false)
            .map_err(|error| SftError::Tokenizer { path: PathBuf::from("decoding"), message: error.to_string() })
    }

    /// Id of a token.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the answer's closing tag is one token, and so the end of a text; a tokenizer of somebody else has a token of its own for it.
    pub fn ends_by_tag(&self) -> bool {
        self.token_id(ANSWER_CLOSE).is_some()
    }

    /// Number of tokens, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// The parts of a text between special tokens.
fn split_at<'a>(text: &'a str, extra: &[String]) -> Vec<&'a str> {
    let mut parts = vec![text];
    let fixed = [END_OF_TEXT, THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE];
    for token in fixed.into_iter().chain(extra.iter().map(String::as_str)).filter(|token| !token.is_empty()) {
        parts = parts.into_iter().flat_map(|part| part.split(token)).collect();
    }
    parts.retain(|part| !part.is_empty());
    parts
}
