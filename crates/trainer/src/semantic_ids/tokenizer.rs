//! A tokenizer whose words are the codes, so that an exported model is whole: the engine opens no folder without one.

use super::{CodeTable, CodeTableError};
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

const BOS_WORD: &str = "<bos>";
/// No word of the vocabulary: a word that is none is an error.
const UNKNOWN: &str = "<unknown>";

/// `tokenizer.json`: `<bos>` 0, then `<0_0>`, `<0_1>`, … (level, code) in the order of their tokens.
pub fn tokenizer_json(table: &CodeTable) -> Result<String, CodeTableError> {
    let failed = |error: tokenizers::Error| CodeTableError::Tokenizer(error.to_string());
    let codes = (0..table.levels()).flat_map(|level| (0..table.size()).map(move |code| format!("<{level}_{code}>")));
    let words = std::iter::once(BOS_WORD.to_owned()).chain(codes);
    let vocabulary = words.zip(0u32..).collect();
    let model = WordLevel::builder().vocab(vocabulary).unk_token(UNKNOWN.to_owned()).build().map_err(failed)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
    // Words are written in the order of their ids: the same table, the same bytes.
    tokenizer.to_string(false).map_err(failed)
}
