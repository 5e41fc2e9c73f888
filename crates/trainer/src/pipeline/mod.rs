//! `taiji-trainer run`: a recipe → a bundle, by a chain of stages that resume.
//!
//! In: a recipe, for real data a folder. Out: `<out>/<name>/<epoch>/` with manifest and report.
//! Callers: `bin/taiji-trainer`. Each stage is a room of `train`; this one only chains them.
//!
//! ```text
//! data ─► examples ─► sft ─► export ─┬─► codebook ─► index ─► evaluate ─► publish
//!                         encoder ───┘
//! ```

mod compare;
mod examples;
mod judge;
mod publish;
mod recipe;
mod run;
mod stage;

pub use compare::{Compared, compare_llm};
pub use judge::{Judged, evaluate_bundle, open_bundle};
pub use recipe::{DataRecipe, EvaluateRecipe, Recipe};
pub use run::{RunOptions, fetch_encoder, run};

use thiserror::Error;

/// What can stop a run.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum PipelineError {
    #[error("recipe {path}: {message}")]
    Recipe { path: String, message: String },
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("encoder checkpoint {path} is not there: run `taiji-trainer fetch --recipe FILE`")]
    EncoderMissing { path: String },
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    #[error(transparent)]
    Prompt(#[from] taiji::prompt::PromptError),
    #[error(transparent)]
    Sft(#[from] crate::sft::SftError),
    #[error(transparent)]
    Export(#[from] taiji_export::ExportError),
    #[error(transparent)]
    Codebook(#[from] crate::codebook::CodebookError),
    #[error(transparent)]
    Quantize(#[from] taiji::quantize::QuantizeError),
    #[error(transparent)]
    Llm(#[from] taiji::llm::LlmError),
    #[error(transparent)]
    Encode(#[from] taiji::encode::EncodeError),
    #[error(transparent)]
    Retrieve(#[from] taiji::retrieve::RetrieveError),
    #[error(transparent)]
    Catalogue(#[from] taiji::catalogue::CatalogueError),
    #[error(transparent)]
    Models(#[from] crate::models::ModelsError),
    #[error(transparent)]
    Index(#[from] crate::index::IndexError),
    #[error(transparent)]
    Bundle(#[from] taiji::bundle::BundleError),
    #[error(transparent)]
    Fetch(#[from] taiji::packages::FetchError),
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
}

impl PipelineError {
    fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> PipelineError + use<> {
        let path = path.display().to_string();
        move |error| PipelineError::File { path: path.clone(), message: error.to_string() }
    }
}
