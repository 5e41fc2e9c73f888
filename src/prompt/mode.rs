//! Whether the model reasons before it answers: one model, told by how the prompt ends.
//!
//! In: the modes of a schema. Out: the end of the prompt. Callers: `render`, `answer`, `schema`; `answer` and the trainer choose.

use super::{PromptSchema, THINK_CLOSE, THINK_OPEN};
use serde::{Deserialize, Serialize};

/// How the model is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptMode {
    /// The prompt opens the reasoning; the model writes it, then the answer.
    #[default]
    Think,
    /// The prompt holds a reasoning that is empty and closed; the model writes the answer at once.
    NoThink,
}

impl PromptMode {
    /// What a prompt ends with.
    pub(super) fn prompt_end(self) -> String {
        match self {
            PromptMode::Think => THINK_OPEN.to_string(),
            PromptMode::NoThink => format!("{THINK_OPEN}{THINK_CLOSE}"),
        }
    }

    /// Of a rendered prompt.
    pub fn of(prompt: &str) -> PromptMode {
        match prompt.ends_with(THINK_CLOSE) {
            true => PromptMode::NoThink,
            false => PromptMode::Think,
        }
    }

    /// As schemas and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            PromptMode::Think => "think",
            PromptMode::NoThink => "no_think",
        }
    }
}

impl PromptSchema {
    /// The mode unless told otherwise.
    pub fn mode(&self) -> PromptMode {
        self.modes.first().copied().unwrap_or_default()
    }
}

/// What schemas know that say nothing of modes: those from before there were any.
pub(super) fn think_alone() -> Vec<PromptMode> {
    vec![PromptMode::Think]
}

/// Not written out, so that a schema from before there were modes keeps its hash.
pub(super) fn is_think_alone(modes: &[PromptMode]) -> bool {
    *modes == [PromptMode::Think]
}
