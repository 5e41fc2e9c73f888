//! What can stop a stage.

use std::path::Path;
use thiserror::Error;

/// Why a stage failed; whoever runs it says which one it was.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum StageError {
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("input changed while it was read ({files}): run again")]
    Changed { files: String },
    #[error("{folder} is being written by {holder}: wait for it (--wait), or give another --work folder")]
    Busy { folder: String, holder: String },
    #[error("{key}: {message}")]
    Setting { key: &'static str, message: String },
    #[error("no input of type {artefact}: name one in from")]
    Input { artefact: &'static str },
    #[error("encoder checkpoint {path} is not there: run `taiji-trainer fetch --recipe FILE`")]
    EncoderMissing { path: String },
    #[error("{message}")]
    Refused { message: String },
    #[error("the threads of a stage cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error(transparent)]
    Data(#[from] crate::data::DataError),
    #[error(transparent)]
    Prompt(#[from] taiji::prompt::PromptError),
    #[error(transparent)]
    Sft(#[from] crate::sft::SftError),
    #[error(transparent)]
    Codes(#[from] crate::semantic_ids::CodeTableError),
    #[error(transparent)]
    Generative(#[from] crate::generative::GenerativeError),
    #[error(transparent)]
    Rank(#[from] crate::rank::RankError),
    #[error(transparent)]
    TensorFile(#[from] crate::nn::FileError),
    #[error(transparent)]
    Lift(#[from] crate::lift::LiftError),
    #[error(transparent)]
    Simulate(#[from] crate::simulate::SimulateError),
    #[error(transparent)]
    Align(#[from] crate::align::AlignError),
    #[error(transparent)]
    Reward(#[from] crate::reward::RewardError),
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
    Stats(#[from] crate::stats::StatsError),
    #[error(transparent)]
    Teacher(#[from] crate::reason::endpoint::EndpointError),
    #[error(transparent)]
    Bundle(#[from] taiji::bundle::BundleError),
    #[error(transparent)]
    Fetch(#[from] taiji::packages::FetchError),
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
}

impl StageError {
    /// An error of the file system at a path.
    pub fn io(path: &Path) -> impl Fn(std::io::Error) -> StageError + use<> {
        let path = path.display().to_string();
        move |error| StageError::File { path: path.clone(), message: error.to_string() }
    }
}
