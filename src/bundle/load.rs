//! Loading: checksums → sessions → parity gate → warm-up.

use super::{BundleError, CODEBOOK_FILE, ENCODER_FOLDER, LLM_FOLDER, Manifest, ParityProbe, space_id};
use crate::catalogue::Catalogue;
use crate::encode::{BertEncoder, Encoder, EncoderOptions, NullEncoder};
use crate::llm::{GenerateRequest, LlmEngine, LlmOptions, NullLlm, OnnxLlm};
use crate::prompt::{PromptInput, PromptSchema, render};
use crate::quantize::PqCodebook;
use crate::retrieve::{FaissUserIndex, UserIndex, UserSnapshot};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the models are run.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct LoadOptions {
    /// Canned answers and vectors instead of LLM and encoder.
    pub canned: bool,
    /// libonnxruntime, when not where the program looks by itself.
    pub onnxruntime: Option<PathBuf>,
    /// The LLM's; its row length, prefix and library are set from the bundle and from what stands above.
    pub llm: LlmOptions,
    pub encoder_threads: usize,
    /// Inverted lists visited per search.
    pub nprobe: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            canned: false,
            onnxruntime: None,
            llm: LlmOptions { threads: 2, max_rows: 16, ..LlmOptions::default() },
            encoder_threads: 1,
            nprobe: 16,
        }
    }
}

/// A loaded bundle. Immutable but for the fresh parts of index and catalogue.
pub struct Bundle {
    /// Epoch, space, provenance.
    pub manifest: Manifest,
    /// What the prompt looks like.
    pub schema: PromptSchema,
    /// Writes reasoning and answer.
    pub llm: Arc<dyn LlmEngine>,
    /// Text → vector.
    pub encoder: Arc<dyn Encoder>,
    /// Vector → codes.
    pub codebook: PqCodebook,
    /// Items.
    pub catalogue: Arc<Catalogue>,
    /// Users by similarity.
    pub index: Arc<dyn UserIndex>,
    /// Histories of the index's main part.
    pub snapshot: UserSnapshot,
    /// Answers are canned (`--engine null`).
    pub canned: bool,
}

/// `generations/<n>` of a bundle.
pub fn generation_dir(bundle: &Path, generation: u64) -> PathBuf {
    bundle.join("generations").join(generation.to_string())
}

/// Loads a bundle, or says which file or part refuses. Blocking; takes a second or two.
pub fn load(folder: &Path, options: &LoadOptions) -> Result<Bundle, BundleError> {
    let manifest = Manifest::read(folder)?;
    verify(&manifest, folder, options.canned)?;
    let invalid = |part: &'static str| {
        let bundle = folder.display().to_string();
        move |error: &dyn Display| BundleError::Invalid { bundle: bundle.clone(), message: format!("{part}: {error}") }
    };
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
    let (users, snapshot) =
        UserSnapshot::read(&generation.join("users.parquet")).map_err(|error| invalid("users")(&error))?;
    let dim = codebook.dim();
    let index = FaissUserIndex::load(&generation.join("users.faiss"), users, dim, options.nprobe)
        .map_err(|error| invalid("index")(&error))?;

    let (llm, encoder) = match options.canned {
        true => canned_models(dim),
        false => real_models(folder, &schema, options)?,
    };
    if encoder.dim() != dim {
        let message = format!("vectors have {} dimensions, the codebook {dim}", encoder.dim());
        return Err(invalid("encoder")(&message));
    }
    let index = Arc::new(index);
    Ok(Bundle {
        manifest,
        schema,
        llm,
        encoder,
        codebook,
        catalogue: Arc::new(catalogue),
        index,
        snapshot,
        canned: options.canned,
    })
}

/// Checksums; canned answers do without the external files (the encoder is not read).
fn verify(manifest: &Manifest, folder: &Path, canned: bool) -> Result<(), BundleError> {
    if !canned {
        return manifest.verify(folder);
    }
    let mut committed = manifest.clone();
    committed.files.retain(|_, entry| entry.external.is_none());
    committed.verify(folder)
}

type Models = (Arc<dyn LlmEngine>, Arc<dyn Encoder>);

fn canned_models(dim: usize) -> Models {
    (Arc::new(NullLlm), Arc::new(NullEncoder::new(dim)))
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

    let prompt = render(schema, &PromptInput::default(), &|text| llm.count_tokens(text)).text;
    for answer in llm.generate_all(&[GenerateRequest::new(prompt, 2)]) {
        answer.map_err(|error| invalid(&error))?;
    }
    Ok((Arc::new(llm), Arc::new(encoder)))
}
