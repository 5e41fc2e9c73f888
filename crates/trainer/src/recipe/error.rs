//! What can be wrong with a recipe, and with running it.

use crate::stage::StageError;
use thiserror::Error;

/// A recipe that cannot be run as it is written; names file, stage and key.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RecipeError {
    #[error("recipe {file}: {message}")]
    File { file: String, message: String },
    #[error("recipe {file}: stage {stage}: {message}")]
    Stage { file: String, stage: String, message: String },
    #[error("recipe {file}: stage {stage}: {key}: {message}")]
    Key { file: String, stage: String, key: String, message: String },
    #[error("recipe {file} has the form before [[stage]]. The same in the form of now:\n\n{new}")]
    OldForm { file: String, new: String },
}

/// What can stop a run.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error("stage {stage}: {source}")]
    Stage { stage: String, source: Box<StageError> },
    #[error("stage {stage} is not made yet, and stands outside of what --from, --until, --before and --only leave")]
    NotMade { stage: String },
    #[error("{0}")]
    Usage(String),
    #[error("stage {stage} panicked; its message is above")]
    Panicked { stage: String },
    #[error(transparent)]
    Work(Box<StageError>),
}

impl From<StageError> for RunError {
    fn from(error: StageError) -> RunError {
        RunError::Work(Box::new(error))
    }
}

impl RunError {
    /// A stage's failure.
    pub fn stage(stage: &str, source: StageError) -> RunError {
        RunError::Stage { stage: stage.to_string(), source: Box::new(source) }
    }

    /// Whether the command line or the recipe is at fault, not the world around.
    pub fn is_usage(&self) -> bool {
        matches!(self, RunError::Recipe(_) | RunError::Usage(_))
    }
}
