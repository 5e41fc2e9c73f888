//! What stands beside a graph: the tokenizer, the stop tokens, and the name for provenance.
//!
//! In: a model folder. Out: loaded parts, or a message that names the file. Called by `llm::onnx` and `encode::bert`.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// File name of a graph; its weights stand beside it.
pub const GRAPH_FILE: &str = "graph.onnx";
/// File name of the generation settings.
pub const GENERATION_FILE: &str = "generation.json";

/// `generation.json`; fields of other tools are ignored.
#[derive(Debug, Clone, Deserialize)]
struct GenerationSettings {
    /// Tokens that end a text, spelled out; each must be one token.
    stop: Vec<String>,
}

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

/// Ids of the stop tokens.
pub fn load_stop_tokens(folder: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, String> {
    let path = folder.join(GENERATION_FILE);
    let text = std::fs::read(&path).map_err(|error| {
        format!("{}: {error}; it names the stop tokens, e.g. {{\"stop\": [\"</answer>\"]}}", path.display())
    })?;
    let settings: GenerationSettings =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let id = |token: &String| {
        tokenizer.token_to_id(token).ok_or_else(|| {
            format!("{}: stop '{token}' is not one token of tokenizer.json: add it as a special token", path.display())
        })
    };
    settings.stop.iter().map(id).collect()
}

/// Folder name and the first 12 digits of the graph's SHA-256. The graph holds the hash of its weights.
pub fn model_id(folder: &Path) -> Result<String, String> {
    let path = folder.join(GRAPH_FILE);
    let graph = std::fs::read(&path)
        .map_err(|error| format!("{}: {error}; write it with 'taiji-trainer export'", path.display()))?;
    let digest: String = Sha256::digest(&graph).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let resolved = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = resolved.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(format!("{name}-{digest}"))
}
