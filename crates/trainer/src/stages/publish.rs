//! `publish`: a bundle: files, parity probe, report, and the manifest last.

use super::codebook::HEALTH;
use super::encoder::EXTERNAL_FILE;
use super::examples::{read_examples, tokenizer};
use super::judge::JUDGED_FILE;
use super::served::{folders, open};
use super::settings::{Context, KeyError, take, value};
use crate::judge::MOST_RATIO;
use crate::models::ServedModels;
use crate::sft::training::REPORT_FILE;
use crate::stage::{
    Artefact, Input, Inputs, Stage, StageError, copy_file, copy_folder, hash_of, read_json, write_json,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use taiji::bundle::{
    CODEBOOK_FILE, ENCODER_FOLDER, External, LLM_FOLDER, Licence, Lineage, Manifest, Models, PROBE, ParityProbe,
    ProbeText, SFT_CHECKPOINT, TokenProbe, generation_dir, sha256_file, space_id,
};
use taiji::onnx::GRAPH_FILE;
use taiji_export::{Precision, precision_of, save_f16};

/// Probes stored with a bundle.
const PROBES: usize = 4;
/// Continuation tokens of a probe.
const PROBE_TOKENS: usize = 24;
/// f32 on another CPU: matrix kernels add in another order.
const MAX_LOGPROB_DIFFERENCE: f32 = 2e-3;
/// Weights of few bits meet activations that are rounded to 8 bits, and another CPU's kernels round them in another way.
const MAX_ROUNDED_LOGPROB_DIFFERENCE: f32 = 0.25;
const MIN_COSINE: f32 = 0.999;
/// The first generation of a new bundle.
const GENERATION: u64 = 1;

struct Publish {
    name: String,
    epoch: u64,
    licences: Vec<Licence>,
    value: Value,
}

pub(super) fn make(mut table: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let licences: Option<Vec<Licence>> = take(&mut table, "licences")?;
    let licences = licences.ok_or_else(|| KeyError::new("licences", "is missing: what is inside, and its licence"))?;
    if let Some(key) = table.keys().next() {
        return Err(KeyError::new(key, "is unknown; a stage of this kind has licences only"));
    }
    let (name, epoch) = (context.name.clone(), context.epoch);
    let value = json!({ "name": name, "epoch": epoch, "licences": value(&licences)? });
    Ok(Arc::new(Publish { name, epoch, licences, value }))
}

impl Stage for Publish {
    fn kind(&self) -> &'static str {
        "publish"
    }

    fn version(&self) -> u32 {
        3
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![
            Input::one(Artefact::Data),
            Input::one(Artefact::Examples),
            Input::optional(Artefact::Checkpoint),
            Input::one(Artefact::Graphs),
            Input::one(Artefact::Encoder),
            Input::one(Artefact::Codebook),
            Input::one(Artefact::Generation),
            Input::one(Artefact::Judgement),
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Bundle
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        // The probes are about texts and vectors; nothing is grounded.
        let models = open(inputs, &[], threads)?;
        write_files(inputs, &models, folder)?;
        self.write_manifest(inputs, &models, folder)
    }
}

fn write_files(inputs: &Inputs, models: &ServedModels, bundle: &Path) -> Result<(), StageError> {
    let folders = folders(inputs)?;
    copy_folder(&folders.llm, &bundle.join(LLM_FOLDER))?;
    copy_folder(&folders.encoder, &bundle.join(ENCODER_FOLDER))?;
    copy_file(&folders.codebook, &bundle.join(CODEBOOK_FILE))?;
    copy_folder(inputs.one(Artefact::Generation)?, &generation_dir(bundle, GENERATION))?;
    models.schema.save(&bundle.join("prompt.toml"))?;
    write_json(&bundle.join(PROBE), &probe(inputs, models)?)?;
    // One from outside is with whoever published it.
    if let Some(trained) = trained(inputs) {
        save_f16(trained, &bundle.join(SFT_CHECKPOINT))?;
    }
    write_json(&bundle.join("report.json"), &report(inputs)?)
}

/// Figures of the bundle and of how it was made.
fn report(inputs: &Inputs) -> Result<Value, StageError> {
    let judged: Value = read_json(&inputs.one(Artefact::Judgement)?.join(JUDGED_FILE))?;
    let mut report = json!({ "held_out": judged });
    if let Some(trained) = trained(inputs) {
        let mut sft: Value = read_json(&trained.join(REPORT_FILE))?;
        // The same recipe makes the same bytes; how long it took is not part of the bundle.
        without_time(&mut sft);
        report["sft"] = sft;
    }
    report["codebook"] = read_json::<Value>(&inputs.one(Artefact::Codebook)?.join(HEALTH))?;
    Ok(report)
}

/// The checkpoint, if a stage of the recipe trained it; one from outside tells nothing of its training.
fn trained(inputs: &Inputs) -> Option<&Path> {
    inputs.optional(Artefact::Checkpoint).filter(|folder| folder.join(REPORT_FILE).is_file())
}

/// Takes how long things took out of a report, the entries of its curve included.
fn without_time(report: &mut Value) {
    match report {
        Value::Object(fields) => {
            fields.retain(|name, _| name != "seconds" && name != "tokens_per_s");
            fields.values_mut().for_each(without_time);
        }
        Value::Array(entries) => entries.iter_mut().for_each(without_time),
        _ => {}
    }
}

/// What the models answer now, for the gate to compare at every load.
fn probe(inputs: &Inputs, models: &ServedModels) -> Result<ParityProbe, StageError> {
    let tokenizer = tokenizer(inputs.one(Artefact::Graphs)?)?;
    let examples = read_examples(&inputs.one(Artefact::Examples)?.join("train.jsonl"))?;
    let mut llm = Vec::new();
    let mut encoder = Vec::new();
    for example in examples.iter().take(PROBES) {
        let prompt = tokenizer.encode(&example.prompt)?;
        let mut continuation = tokenizer.encode(&example.completion)?;
        continuation.truncate(PROBE_TOKENS);
        let logprobs = models.llm.score_all(&[(&prompt, &continuation)]).remove(0)?;
        llm.push(TokenProbe { prompt, continuation, logprobs: logprobs.iter().map(|value| *value as f32).collect() });
        let text = example.embedding_text();
        let vector = models.encoder.encode(&[&text])?.pop().unwrap_or_default();
        encoder.push(ProbeText { text, vector });
    }
    let (max_logprob_difference, max_perplexity_ratio) = match precision_of(inputs.one(Artefact::Graphs)?)? {
        Precision::Int8 | Precision::Int4 => (MAX_ROUNDED_LOGPROB_DIFFERENCE, Some(MOST_RATIO)),
        Precision::F32 | Precision::F16 | Precision::Bf16 => (MAX_LOGPROB_DIFFERENCE, None),
    };
    Ok(ParityProbe { max_logprob_difference, max_perplexity_ratio, min_cosine: MIN_COSINE, llm, encoder })
}

impl Publish {
    fn write_manifest(&self, inputs: &Inputs, models: &ServedModels, bundle: &Path) -> Result<(), StageError> {
        let external: External = read_json(&inputs.one(Artefact::Encoder)?.join(EXTERNAL_FILE))?;
        let codebook = models.codebook.content_hash();
        let identities = Models {
            llm: format!("{}-{}@{}", self.name, self.epoch, graph_hash(&bundle.join(LLM_FOLDER))?),
            encoder: format!("{}@{}", external.package, graph_hash(&bundle.join(ENCODER_FOLDER))?),
            codebook: codebook.clone(),
            prompt_schema: format!("{}@{}", models.schema.id, models.schema.hash()),
        };
        let manifest = Manifest {
            format_version: Manifest::current_format(),
            name: self.name.clone(),
            epoch: self.epoch,
            space: space_id(&identities.encoder, &codebook),
            generation: GENERATION,
            models: identities,
            lineage: Lineage {
                recipe: self.recipe_hash(inputs)?,
                data: inputs.hash(Artefact::Data)?.to_string(),
                parents: Vec::new(),
                licences: self.licences.clone(),
            },
            external: BTreeMap::from([("encoder".to_string(), external)]),
            files: BTreeMap::new(),
        };
        let is_external = |file: &str| file.starts_with(&format!("{ENCODER_FOLDER}/")).then(|| "encoder".to_string());
        manifest.write_all(bundle, is_external).map(|_| ()).map_err(StageError::io(bundle))
    }

    /// Of everything that decides the bundle: its settings and what it is made from.
    fn recipe_hash(&self, inputs: &Inputs) -> Result<String, StageError> {
        let settings = self.value.to_string();
        let mut parts = vec![settings.as_str()];
        for input in self.inputs() {
            if inputs.optional(input.artefact).is_some() {
                parts.push(inputs.hash(input.artefact)?);
            }
        }
        Ok(hash_of(&parts))
    }
}

/// First 12 hex digits of a graph's sha256; the graph holds the sha256 of its weights, so this names the whole model.
fn graph_hash(folder: &Path) -> Result<String, StageError> {
    let path = folder.join(GRAPH_FILE);
    let mut hash = sha256_file(&path).map_err(StageError::io(&path))?;
    hash.truncate(12);
    Ok(hash)
}
