//! What a run begins with: random weights or a checkpoint, adapters or the whole model, and who it is.
//!
//! Called by `training`.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::packing::{TokenExample, hash_examples};
use super::tokenizer::TextTokenizer;
use super::{SftError, SftSettings};
use crate::model::{Decoder, load_checkpoint};
use crate::nn::tensor_file::write_atomically;
use crate::nn::{FileError, Module, with_values};
use taiji::prompt::ANSWER_CLOSE;

/// The decoder before its first step.
pub(super) fn decoder(settings: &SftSettings, tokenizer: &TextTokenizer) -> Result<Decoder, SftError> {
    let Some(folder) = &settings.checkpoint else {
        let config = settings.decoder_config(tokenizer.vocab_size(), tokenizer.token_id(ANSWER_CLOSE));
        return Ok(Decoder::random(&config, settings.seed)?);
    };
    let mut decoder = load_checkpoint(folder)?;
    let config = decoder.config();
    let fail = |field, message| Err(SftError::Settings { field, message });
    if tokenizer.vocab_size() > config.vocab_size {
        let (tokens, vocab) = (tokenizer.vocab_size(), config.vocab_size);
        return fail("checkpoint", format!("has {vocab} tokens, the tokenizer {tokens}: use the checkpoint's own"));
    }
    if settings.max_len > config.max_position_embeddings {
        return fail("max_len", format!("must be at most the checkpoint's {} tokens", config.max_position_embeddings));
    }
    if let Some(lora) = &settings.lora {
        decoder.add_adapters(lora, settings.seed)?;
    }
    Ok(decoder)
}

/// What a checkpoint says of its texts beside the tokenizer; it stays with the model.
const COMPANIONS: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// Copies what the checkpoint says of its texts.
pub(crate) fn keep_companions(checkpoint: &Path, out: &Path) -> Result<(), FileError> {
    for name in COMPANIONS {
        let from = checkpoint.join(name);
        if from.is_file() {
            write_atomically(&out.join(name), &std::fs::read(&from).map_err(FileError::io(&from))?)?;
        }
    }
    Ok(())
}

/// Hash of everything that decides the result, so that a state is only continued by the run that made it.
pub(super) fn run_id(
    settings: &SftSettings,
    decoder: &Decoder,
    vocab: usize,
    examples: &[TokenExample],
    validation: &[TokenExample],
) -> Result<String, SftError> {
    // The number of threads, how often states are written, and how long a bad run is borne do not change the result; of a
    // checkpoint its values count, not its place.
    let decisive =
        SftSettings { threads: 0, checkpoint_every: 0, max_skipped: 0, checkpoint: None, ..settings.clone() };
    let text = serde_json::to_string(&decisive)
        .map_err(|error| SftError::Settings { field: "settings", message: error.to_string() })?;
    let mut hash = Sha256::new();
    hash.update(text.as_bytes());
    hash.update((vocab as u64).to_le_bytes());
    hash_examples(&mut hash, examples.iter().chain(validation));
    if settings.checkpoint.is_some() {
        for parameter in decoder.parameters() {
            hash.update(parameter.name.as_bytes());
            with_values(&parameter.var, |values| {
                let mut bytes = Vec::with_capacity(size_of_val(values));
                values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
                hash.update(&bytes);
            })?;
        }
    }
    Ok(hex::encode(hash.finalize()))
}
