//! What stands beside a graph: the tokenizer, and the name for provenance.
//!
//! In: a model folder. Out: loaded parts, or a message that names the file. Called by `llm`, `encode` and `openai`.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::GRAPH_FILE;

/// The tokenizer, with padding and truncation left to us.
pub fn load_tokenizer(folder: &Path) -> Result<Tokenizer, String> {
    let path = folder.join("tokenizer.json");
    let mut tokenizer = Tokenizer::from_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}

/// Number of ids the tokenizer may give: the highest, plus 1.
pub fn tokenizer_vocabulary(tokenizer: &Tokenizer) -> usize {
    tokenizer.get_vocab(true).into_values().max().map_or(0, |highest| highest as usize + 1)
}

/// Folder name and the first 12 digits of the graph's SHA-256. The graph holds the hash of its weights.
pub fn model_id(folder: &Path) -> Result<String, String> {
    let path = folder.join(GRAPH_FILE);
    let graph = std::fs::read(&path)
        .map_err(|error| format!("{}: {error}; write it with 'taiji-trainer export'", path.display()))?;
    let digest = hex::encode(&Sha256::digest(&graph)[..6]);
    let resolved = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = resolved.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("{name}-{digest}"))
}
