//! Loading: checksums → sessions → parity gate → warm-up.

use super::{
    BundleError, CODEBOOK_FILE, ENCODER_FOLDER, GENERATIONS, LLM_FOLDER, Manifest, PROBE, ParityProbe, files, space_id,
};
use crate::catalogue::Catalogue;
use crate::encode::{BertEncoder, Encoder, EncoderOptions, NullEncoder};
use crate::llm::{GenerateRequest, LlmEngine, LlmOptions, NullLlm, OnnxLlm, ServedModel};
use crate::prompt::{PromptInput, PromptSchema, render};
use crate::quantize::PqCodebook;
use crate::retrieve::{FaissUserIndex, UserIndex, UserSnapshot};
use crate::telemetry::Stall;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where answers and vectors come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// From nowhere: neither models nor the user index are loaded or verified (a process without the role infer).
    Absent,
    /// Canned answers, each of which takes `latency`, and canned vectors.
    Canned {
        /// Of one answer.
        latency: Duration,
        /// Answers after which no further one comes (tests); `None` = all come.
        hangs_after: Option<u64>,
    },
    /// From the bundle's models through ONNX Runtime.
    Onnx,
}

/// How the models are run.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct LoadOptions {
    pub engine: Engine,
    /// libonnxruntime, when not where the program looks by itself.
    pub onnxruntime: Option<PathBuf>,
    /// The LLM's; its row length, prefix and library are set from the bundle and from what stands above.
    pub llm: LlmOptions,
    pub encoder_threads: usize,
    /// Inverted lists visited per search.
    pub nprobe: usize,
    /// A model that has work and makes no step for so long is stalled.
    pub stall: Duration,
    /// Most items of the catalogue's overlay; 0 = no limit.
    pub max_items: usize,
    /// The setting `openai.template`, where that port is on: what it serves is then loaded with the engine.
    pub chat_template: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            engine: Engine::Onnx,
            onnxruntime: None,
            llm: LlmOptions { threads: 2, max_rows: 16, ..LlmOptions::default() },
            encoder_threads: 1,
            nprobe: 16,
            stall: Duration::from_secs(30),
            max_items: 0,
            chat_template: None,
        }
    }
}

/// A loaded bundle. Immutable but for the fresh parts of index and catalogue.
pub struct Bundle {
    /// Epoch, space, provenance.
    pub manifest: Manifest,
    /// What the prompt looks like.
    pub schema: PromptSchema,
    /// Vector → codes.
    pub codebook: PqCodebook,
    /// Items.
    pub catalogue: Arc<Catalogue>,
    /// What refreshes need beyond that; absent in a process that has not the role infer.
    pub inference: Option<Arc<Inference>>,
}

/// The large parts: models and the user index.
pub struct Inference {
    /// Writes reasoning and answer.
    pub llm: Arc<dyn LlmEngine>,
    /// Text → vector.
    pub encoder: Arc<dyn Encoder>,
    /// Users by similarity.
    pub index: Arc<dyn UserIndex>,
    /// Histories of the index's main part.
    pub snapshot: UserSnapshot,
    /// What the OpenAI-compatible port serves of the LLM, where it is on.
    pub served: Option<Arc<ServedModel>>,
    /// Answers are canned (`--engine null`).
    pub canned: bool,
    /// A model that has work and makes no step for so long is stalled.
    pub stall: Duration,
}

impl Inference {
    /// The models that are stalled.
    pub fn stalls(&self) -> Vec<Stall> {
        let parts = [("llm", self.llm.stalled()), ("encoder", self.encoder.stalled())];
        let stall = |(part, time): (&'static str, Option<Duration>)| Some(Stall { part, time: time? });
        parts.into_iter().filter_map(stall).filter(|stall| stall.time >= self.stall).collect()
    }
}

impl Bundle {
    /// The engine in one word: onnx, null (canned), or none.
    pub fn engine(&self) -> &'static str {
        match &self.inference {
            None => "none",
            Some(inference) if inference.canned => "null",
            Some(_) => "onnx",
        }
    }
}

/// `generations/<n>` of a bundle.
pub fn generation_dir(bundle: &Path, generation: u64) -> PathBuf {
    bundle.join(GENERATIONS).join(generation.to_string())
}

/// Loads a bundle, or says which file or part refuses. Blocking; takes a second or two.
pub fn load(folder: &Path, options: &LoadOptions) -> Result<Bundle, BundleError> {
    let manifest = Manifest::read(folder)?;
    verify(&manifest, folder, options.engine)?;
    let invalid = |part: &'static str| invalid(folder, part);
    let schema = PromptSchema::load(&folder.join("prompt.toml")).map_err(|error| invalid("prompt.toml")(&error))?;
    let codebook = PqCodebook::load(&folder.join(CODEBOOK_FILE)).map_err(|error| invalid("codebook")(&error))?;
    let expected = space_id(&manifest.models.encoder, &codebook.content_hash());
    if expected != manifest.space {
        let message = format!("is {}, but encoder and codebook make {expected}", manifest.space);
        return Err(invalid("space")(&message));
    }
    let generation = generation_dir(folder, manifest.generation);
    let catalogue =
        Catalogue::load(&generation.join("catalogue.parquet")).map_err(|error| invalid("catalogue")(&error))?;
    let catalogue = catalogue.limited_to(options.max_items);
    let inference = match options.engine {
        Engine::Absent => None,
        _ => Some(Arc::new(load_inference(folder, &generation, &schema, codebook.dim(), options)?)),
    };
    Ok(Bundle { manifest, schema, codebook, catalogue: Arc::new(catalogue), inference })
}

fn invalid(folder: &Path, part: &'static str) -> impl Fn(&dyn Display) -> BundleError + use<> {
    let bundle = folder.display().to_string();
    move |error| BundleError::Invalid { bundle: bundle.clone(), message: format!("{part}: {error}") }
}

/// The user index and the models; vectors have `dim` dimensions in both.
fn load_inference(
    folder: &Path,
    generation: &Path,
    schema: &PromptSchema,
    dim: usize,
    options: &LoadOptions,
) -> Result<Inference, BundleError> {
    let (users, snapshot) =
        UserSnapshot::read(&generation.join("users.parquet")).map_err(|error| invalid(folder, "users")(&error))?;
    let index = FaissUserIndex::load(&generation.join("users.faiss"), users, dim, options.nprobe)
        .map_err(|error| invalid(folder, "index")(&error))?;
    let (canned, (llm, encoder)) = match options.engine {
        Engine::Canned { latency, hangs_after } => {
            (true, canned_models(dim, latency, hangs_after, options.llm.max_rows))
        }
        _ => (false, real_models(folder, schema, options)?),
    };
    if encoder.dim() != dim {
        let message = format!("vectors have {} dimensions, the codebook {dim}", encoder.dim());
        return Err(invalid(folder, "encoder")(&message));
    }
    let read = |template: &String| ServedModel::load(&folder.join(LLM_FOLDER), template).map(Arc::new);
    let served = options.chat_template.as_ref().map(read).transpose();
    let served = served.map_err(|error| invalid(folder, "openai")(&error))?;
    Ok(Inference { llm, encoder, index: Arc::new(index), snapshot, served, canned, stall: options.stall })
}

/// Checksums of the files that are read: with canned answers all but the external ones (the encoder), without models
/// neither theirs nor the index's (a replica that only answers reads must not read gigabytes first), checkpoints never.
pub(super) fn verify(manifest: &Manifest, folder: &Path, engine: Engine) -> Result<(), BundleError> {
    let mut listed = manifest.listed(folder)?;
    let in_generation = |name: &str| format!("{GENERATIONS}/{}/{name}", manifest.generation);
    let mut opened = vec!["prompt.toml".to_owned(), CODEBOOK_FILE.to_owned(), in_generation("catalogue.parquet")];
    let mut folders = Vec::new();
    if engine != Engine::Absent {
        opened.extend(["users.faiss", "users.parquet"].map(in_generation));
        folders.push(LLM_FOLDER);
    }
    if engine == Engine::Onnx {
        opened.push(PROBE.to_owned());
        folders.push(ENCODER_FOLDER);
    }
    files::refuse_unlisted(folder, &listed, &opened, &folders)?;
    listed.retain(|name, entry| match engine {
        _ if files::is_checkpoint(name) => false,
        Engine::Onnx => true,
        Engine::Canned { .. } => entry.external.is_none(),
        Engine::Absent => !is_for_inference(name),
    });
    files::verify(folder, &listed)
}

fn is_for_inference(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    file.starts_with("llm/") || file.starts_with("encoder/") || matches!(name, "users.faiss" | "users.parquet")
}

type Models = (Arc<dyn LlmEngine>, Arc<dyn Encoder>);

fn canned_models(dim: usize, latency: Duration, hangs_after: Option<u64>, rows: usize) -> Models {
    let llm = NullLlm::new(latency, rows);
    let llm = match hangs_after {
        Some(answers) => llm.hanging_after(answers),
        None => llm,
    };
    (Arc::new(llm), Arc::new(NullEncoder::new(dim)))
}

/// Opens the sessions, passes the parity gate, and runs one real step so that the first user pays for no set-up.
fn real_models(folder: &Path, schema: &PromptSchema, options: &LoadOptions) -> Result<Models, BundleError> {
    let invalid =
        |error: &dyn Display| BundleError::Invalid { bundle: folder.display().to_string(), message: error.to_string() };
    let llm_options = LlmOptions {
        max_len: schema.max_prompt_tokens + schema.max_new_tokens,
        prefix: schema.prefix(),
        runtime_path: options.onnxruntime.clone(),
        ..options.llm.clone()
    };
    let llm = OnnxLlm::load(&folder.join(LLM_FOLDER), llm_options).map_err(|error| invalid(&error))?;
    let encoder_options = EncoderOptions {
        threads: options.encoder_threads,
        runtime_path: options.onnxruntime.clone(),
        ..EncoderOptions::default()
    };
    let encoder = BertEncoder::load(&folder.join(ENCODER_FOLDER), encoder_options).map_err(|error| invalid(&error))?;
    ParityProbe::read(folder)?.check(folder, &llm, &encoder)?;

    let prompt = render(schema, &PromptInput::default(), schema.mode(), &|text| llm.count_tokens(text)).text;
    for answer in llm.generate_all(&[GenerateRequest::new(prompt, 2)]) {
        answer.map_err(|error| invalid(&error))?;
    }
    Ok((Arc::new(llm), Arc::new(encoder)))
}
