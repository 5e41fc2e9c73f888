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
pub use judge::{Judged, evaluate_bundle};
pub use recipe::{DataRecipe, EvaluateRecipe, Recipe};
pub use run::{RunOptions, run};

use thiserror::Error;

/// What can stop a run.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum PipelineError {
    #[error("recipe {path}: {message}")]
    Recipe { path: String, message: String },
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("encoder checkpoint {path} is not there: run `make build`, or python3 scripts/fetch.py recipe FILE")]
    EncoderMissing { path: String },
    #[error(transparent)]
    Data(#[from] crate::train::data::DataError),
    #[error(transparent)]
    Prompt(#[from] crate::prompt::PromptError),
    #[error(transparent)]
    Sft(#[from] crate::train::sft::SftError),
    #[error(transparent)]
    Export(#[from] crate::train::export::ExportError),
    #[error(transparent)]
    Codebook(#[from] crate::train::codebook::CodebookError),
    #[error(transparent)]
    Quantize(#[from] crate::quantize::QuantizeError),
    #[error(transparent)]
    Llm(#[from] crate::llm::LlmError),
    #[error(transparent)]
    Encode(#[from] crate::encode::EncodeError),
    #[error(transparent)]
    Retrieve(#[from] crate::retrieve::RetrieveError),
    #[error(transparent)]
    Catalogue(#[from] crate::catalogue::CatalogueError),
    #[error(transparent)]
    Models(#[from] crate::train::models::ModelsError),
    #[error(transparent)]
    Index(#[from] crate::train::index::IndexError),
    #[error(transparent)]
    Bundle(#[from] crate::bundle::BundleError),
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
}

impl PipelineError {
    fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> PipelineError + use<> {
        let path = path.display().to_string();
        move |error| PipelineError::File { path: path.clone(), message: error.to_string() }
    }
}
