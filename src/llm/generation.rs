//! How a model generates unless a request says otherwise: stops and sampling, read from the file beside its graph.
//!
//! In: a model folder and its tokenizer. Out: [`GenerationDefaults`], or a message that names the file. Called by `onnx` and `chat`.

use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;

use super::Sampling;
use super::sample::Sampler;

/// File name of the generation settings.
pub const GENERATION_FILE: &str = "generation.json";
/// Hugging Face's file of generation settings, read where ours is absent.
const FOREIGN_GENERATION_FILE: &str = "generation_config.json";

/// `generation.json`; fields of other tools are ignored.
#[derive(Debug, Clone, Deserialize)]
struct GenerationFile {
    /// Tokens that end a text, spelled out; each must be one token.
    #[serde(default)]
    stop: Vec<String>,
    /// Strings that end a text and are cut off.
    #[serde(default)]
    stop_strings: Vec<String>,
    /// Tokens that end a text, by id.
    #[serde(default)]
    stop_token_ids: Vec<u32>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// `generation_config.json` as transformers writes it.
#[derive(Debug, Clone, Deserialize)]
struct ForeignGenerationFile {
    eos_token_id: Option<OneOrMany>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

/// The fields both files share, by transformers' names.
#[derive(Debug, Clone, Deserialize)]
struct SamplingFields {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    repetition_penalty: Option<f32>,
    seed: Option<u64>,
}

/// How a model generates unless a request says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a text.
    pub stop_tokens: Vec<u32>,
    /// Strings that end a text.
    pub stop_strings: Vec<String>,
    /// How the next token is chosen.
    pub sampling: Sampling,
}

/// Reads `generation.json`, or, where a checkpoint of other tools has none, `generation_config.json`.
pub fn load_generation(folder: &Path, tokenizer: &Tokenizer) -> Result<GenerationDefaults, String> {
    let (own, foreign) = (folder.join(GENERATION_FILE), folder.join(FOREIGN_GENERATION_FILE));
    let (path, defaults) = match own.exists() || !foreign.exists() {
        true => {
            let defaults = own_generation(&own, tokenizer)?;
            (own, defaults)
        }
        false => {
            let file: ForeignGenerationFile = read(&foreign)?;
            let stop_tokens = match file.eos_token_id {
                None => Vec::new(),
                Some(OneOrMany::One(token)) => vec![token],
                Some(OneOrMany::Many(tokens)) => tokens,
            };
            // Transformers samples only where it is told to.
            let samples = file.sampling.do_sample.unwrap_or(false);
            let sampling = file.sampling.resolve(samples);
            (foreign, GenerationDefaults { stop_tokens, stop_strings: Vec::new(), sampling })
        }
    };
    Sampler::new(defaults.sampling, &[]).map_err(|message| format!("{}: {message}", path.display()))?;
    Ok(defaults)
}

fn own_generation(path: &Path, tokenizer: &Tokenizer) -> Result<GenerationDefaults, String> {
    let file: GenerationFile = read(path)?;
    let id = |token: &String| {
        tokenizer.token_to_id(token).ok_or_else(|| {
            format!(
                "{}: stop '{token}' is not one token of tokenizer.json: add it as a special token, or write it under \
                 stop_strings",
                path.display()
            )
        })
    };
    let mut stop_tokens = file.stop.iter().map(id).collect::<Result<Vec<u32>, String>>()?;
    stop_tokens.extend(file.stop_token_ids);
    let samples = file.sampling.do_sample.unwrap_or(true);
    let sampling = file.sampling.resolve(samples);
    Ok(GenerationDefaults { stop_tokens, stop_strings: file.stop_strings, sampling })
}

impl SamplingFields {
    /// Without a temperature a sampler that samples has 1, ours is greedy: `temperature` must be written to sample.
    fn resolve(&self, samples: bool) -> Sampling {
        let explicit = self.do_sample == Some(true);
        let temperature = self.temperature.unwrap_or(if explicit { 1.0 } else { 0.0 });
        Sampling {
            temperature: if samples { temperature } else { 0.0 },
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            seed: self.seed.unwrap_or(0),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = std::fs::read(path).map_err(|error| {
        format!("{}: {error}; it names the stop tokens, e.g. {{\"stop\": [\"</answer>\"]}}", path.display())
    })?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::onnx::folder::load_tokenizer;

    fn folder(name: &str, text: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
        folder
    }

    fn tokenizer() -> Tokenizer {
        load_tokenizer(&testkit::fixture("qwen2")).unwrap()
    }

    #[test]
    fn our_file_names_stops_and_sampling() {
        let folder = folder(
            GENERATION_FILE,
            r#"{"stop": ["</answer>"], "stop_token_ids": [9], "stop_strings": ["\n\n"], "temperature": 0.6, "top_p": 0.95}"#,
        );
        let found = load_generation(folder.path(), &tokenizer()).unwrap();
        assert_eq!((found.stop_tokens.len(), found.stop_tokens[1]), (2, 9));
        assert_eq!(found.stop_strings, ["\n\n"]);
        assert_eq!(found.sampling, Sampling { temperature: 0.6, top_p: 0.95, ..Sampling::GREEDY });
    }

    #[test]
    fn a_foreign_file_is_read_as_transformers_means_it() {
        let sampled =
            folder(FOREIGN_GENERATION_FILE, r#"{"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6}"#);
        let found = load_generation(sampled.path(), &tokenizer()).unwrap();
        assert_eq!((found.stop_tokens, found.sampling.temperature), (vec![1, 2], 0.6));
        let greedy = folder(FOREIGN_GENERATION_FILE, r#"{"eos_token_id": 3, "temperature": 0.6}"#);
        let found = load_generation(greedy.path(), &tokenizer()).unwrap();
        assert_eq!((found.stop_tokens, found.sampling.temperature), (vec![3], 0.0));
    }

    #[test]
    fn what_cannot_work_is_named_with_the_file() {
        let error = |name: &str, text: &str| load_generation(folder(name, text).path(), &tokenizer()).unwrap_err();
        let message = error(GENERATION_FILE, r#"{"stop": ["</answer>"], "top_p": 3}"#);
        assert!(message.contains("top_p 3") && message.contains(GENERATION_FILE), "{message}");
        assert!(error("other", "{}").contains("names the stop tokens"));
    }
}
