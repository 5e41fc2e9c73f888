//! Putting a bundle together: files, parity probe, report, and the manifest last.

use super::judge::Judged;
use super::{PipelineError, Recipe};
use crate::models::{ModelFolders, ServedModels};
use crate::sft::{SftExample, TextTokenizer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use taiji::bundle::{
    CODEBOOK_FILE, ENCODER_FOLDER, LLM_FOLDER, Lineage, Manifest, Models, PROBE, ParityProbe, ProbeText, TokenProbe,
    all_files, generation_dir, sha256_file, space_id,
};
use taiji::onnx::GRAPH_FILE;
use taiji::prompt::parse;

/// Probes stored with a bundle.
pub(super) const PROBES: usize = 4;
/// Continuation tokens of a probe.
const PROBE_TOKENS: usize = 24;
/// f32 on another CPU: matrix kernels add in another order.
const MAX_LOGPROB_DIFFERENCE: f32 = 2e-3;
const MIN_COSINE: f32 = 0.999;
/// The first generation of a new bundle.
const GENERATION: u64 = 1;

/// What is published.
pub(super) struct PublishInput<'a> {
    pub recipe: &'a Recipe,
    pub data_hash: &'a str,
    pub folders: &'a ModelFolders,
    pub trained: &'a Path,
    pub codebook: &'a Path,
    pub generation: &'a Path,
    pub probes: Vec<&'a SftExample>,
    pub judged: Judged,
}

/// Writes `<out>/<name>/<epoch>`; an older bundle in that place is replaced only when the new one is whole.
pub(super) fn publish(input: &PublishInput, models: &ServedModels, out: &Path) -> Result<PathBuf, PipelineError> {
    let recipe = input.recipe;
    let parent = out.join(&recipe.name);
    let target = parent.join(recipe.epoch.to_string());
    let fresh = parent.join(format!(".{}.new", recipe.epoch));
    let old = parent.join(format!(".{}.old", recipe.epoch));
    for leftover in [&fresh, &old] {
        remove(leftover)?;
    }
    write_files(input, models, &fresh)?;
    write_manifest(input, models, &fresh)?;
    if target.exists() {
        std::fs::rename(&target, &old).map_err(PipelineError::io(&target))?;
    }
    std::fs::rename(&fresh, &target).map_err(PipelineError::io(&target))?;
    remove(&old)?;
    Ok(target)
}

fn remove(folder: &Path) -> Result<(), PipelineError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PipelineError::io(folder)(error)),
        _ => Ok(()),
    }
}

fn write_files(input: &PublishInput, models: &ServedModels, bundle: &Path) -> Result<(), PipelineError> {
    copy_folder(&input.folders.llm, &bundle.join(LLM_FOLDER))?;
    copy_folder(&input.folders.encoder, &bundle.join(ENCODER_FOLDER))?;
    copy_file(&input.folders.codebook, &bundle.join(CODEBOOK_FILE))?;
    copy_folder(input.generation, &generation_dir(bundle, GENERATION))?;
    models.schema.save(&bundle.join("prompt.toml"))?;
    write_json(&bundle.join(PROBE), &probe(input, models)?)?;
    let read = |path: PathBuf| -> Result<serde_json::Value, PipelineError> {
        Ok(serde_json::from_str(&std::fs::read_to_string(&path).map_err(PipelineError::io(&path))?)?)
    };
    let mut sft = read(input.trained.join("sft_report.json"))?;
    // The same recipe makes the same bytes; how long it took is not part of the bundle.
    without_time(&mut sft);
    let report = serde_json::json!({
        "held_out": input.judged,
        "sft": sft,
        "codebook": read(input.codebook.join("health.json"))?,
    });
    write_json(&bundle.join("report.json"), &report)
}

/// Takes how long things took out of a report, the entries of its curve included.
fn without_time(report: &mut serde_json::Value) {
    match report {
        serde_json::Value::Object(fields) => {
            fields.retain(|name, _| name != "seconds" && name != "tokens_per_s");
            fields.values_mut().for_each(without_time);
        }
        serde_json::Value::Array(entries) => entries.iter_mut().for_each(without_time),
        _ => {}
    }
}

/// What the models answer now, for the gate to compare at every load.
fn probe(input: &PublishInput, models: &ServedModels) -> Result<ParityProbe, PipelineError> {
    let tokenizer = TextTokenizer::load(&input.folders.llm.join("tokenizer.json"))?;
    let mut llm = Vec::new();
    let mut encoder = Vec::new();
    for example in &input.probes {
        let prompt = tokenizer.encode(&example.prompt)?;
        let mut continuation = tokenizer.encode(&example.completion)?;
        continuation.truncate(PROBE_TOKENS);
        let logprobs = models.llm.score_all(&[(&prompt, &continuation)]).remove(0)?;
        llm.push(TokenProbe { prompt, continuation, logprobs: logprobs.iter().map(|value| *value as f32).collect() });
        let text = parse(&example.completion).embedding_text();
        let vector = models.encoder.encode(&[&text])?.pop().unwrap_or_default();
        encoder.push(ProbeText { text, vector });
    }
    Ok(ParityProbe { max_logprob_difference: MAX_LOGPROB_DIFFERENCE, min_cosine: MIN_COSINE, llm, encoder })
}

fn write_manifest(input: &PublishInput, models: &ServedModels, bundle: &Path) -> Result<(), PipelineError> {
    let recipe = input.recipe;
    let codebook = models.codebook.content_hash();
    let identities = Models {
        llm: format!("{}-{}@{}", recipe.name, recipe.epoch, graph_hash(&bundle.join(LLM_FOLDER))?),
        encoder: format!("{}@{}", recipe.encoder.package, graph_hash(&bundle.join(ENCODER_FOLDER))?),
        codebook: codebook.clone(),
        prompt_schema: format!("{}@{}", models.schema.id, models.schema.hash()),
    };
    let manifest = Manifest {
        format_version: Manifest::current_format(),
        name: recipe.name.clone(),
        epoch: recipe.epoch,
        space: space_id(&identities.encoder, &codebook),
        generation: GENERATION,
        models: identities,
        lineage: Lineage {
            recipe: recipe.hash()?,
            data: input.data_hash.to_string(),
            parents: Vec::new(),
            licences: recipe.licences.clone(),
        },
        external: BTreeMap::from([("encoder".to_string(), recipe.encoder.clone())]),
        files: BTreeMap::new(),
    };
    let external = |file: &str| file.starts_with(&format!("{ENCODER_FOLDER}/")).then(|| "encoder".to_string());
    manifest.write_all(bundle, external).map(|_| ()).map_err(PipelineError::io(bundle))
}

/// First 12 hex digits of a graph's sha256; the graph holds the sha256 of its weights, so this names the whole model.
fn graph_hash(folder: &Path) -> Result<String, PipelineError> {
    let path = folder.join(GRAPH_FILE);
    let mut hash = sha256_file(&path).map_err(PipelineError::io(&path))?;
    hash.truncate(12);
    Ok(hash)
}

/// Copies the files of a stage's folder, without the marker of the stage.
fn copy_folder(from: &Path, to: &Path) -> Result<(), PipelineError> {
    for file in all_files(from).map_err(PipelineError::io(from))? {
        if file != "done" {
            copy_file(&from.join(&file), &to.join(&file))?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), PipelineError> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(PipelineError::io(parent))?;
    }
    std::fs::copy(from, to).map(|_| ()).map_err(PipelineError::io(from))
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), PipelineError> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).map_err(PipelineError::io(path))
}
