//! A recipe: the TOML file that makes a bundle. `[codebook]` and `codebook_texts` have defaults, the rest is required.

use super::PipelineError;
use crate::codebook::CodebookSettings;
use crate::index::IndexRecipe;
use crate::sft::SftSettings;
use crate::synth::{DEFAULT_WORLD_SEED, SynthSettings};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use taiji::bundle::{ENCODER_FOLDER, External, Licence};
use taiji::prompt::PromptSchema;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the bundle; its folder is `<out>/<name>/<epoch>`.
    pub name: String,
    /// Number of the bundle.
    pub epoch: u64,
    /// Where the events come from.
    pub data: DataRecipe,
    /// How prompts look; becomes the bundle's `prompt.toml`.
    pub prompt: PromptSchema,
    /// The decoder and its training.
    pub sft: SftSettings,
    /// The text encoder.
    pub encoder: External,
    /// Licences of what goes in beside our own code.
    pub licences: Vec<Licence>,
    /// The quantiser.
    #[serde(default)]
    pub codebook: CodebookSettings,
    /// Texts the quantiser is trained on, at least; items first, then answers with reasons.
    #[serde(default = "default_codebook_texts")]
    pub codebook_texts: usize,
    /// The user index.
    pub index: IndexRecipe,
    /// The judgement at the end.
    pub evaluate: EvaluateRecipe,
}

fn default_codebook_texts() -> usize {
    12_000
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum DataRecipe {
    /// A generated world.
    Synth {
        /// People.
        users: usize,
        /// Items.
        items: usize,
        /// Events, about.
        events: usize,
        /// Decides users and events.
        seed: u64,
        /// Decides items.
        #[serde(default = "default_world_seed")]
        world_seed: u64,
        /// Most examples cut out of one user.
        max_per_user: usize,
    },
    /// A folder of `items.jsonl` and `events.jsonl`, given by `--data`; leave-one-out: the last two purchases of
    /// every user, and what follows the first of them, are kept out of training and index.
    Files {
        /// Most examples cut out of one user.
        max_per_user: usize,
        /// Leave out targets that nothing in the history points to.
        #[serde(default = "yes")]
        informative_only: bool,
    },
}

fn yes() -> bool {
    true
}

fn default_world_seed() -> u64 {
    DEFAULT_WORLD_SEED
}

impl DataRecipe {
    /// The generator's settings, for generated data.
    pub fn synth(&self) -> Option<SynthSettings> {
        match *self {
            DataRecipe::Synth { users, items, events, seed, world_seed, .. } => {
                Some(SynthSettings { users, items, events, seed, world_seed, ..SynthSettings::default() })
            }
            DataRecipe::Files { .. } => None,
        }
    }

    /// Whether targets that nothing points to are left out; true reasons, as in a generated world, are all kept.
    pub fn informative_only(&self) -> bool {
        matches!(self, DataRecipe::Files { informative_only: true, .. })
    }

    /// Most examples cut out of one user.
    pub fn max_per_user(&self) -> usize {
        match self {
            DataRecipe::Synth { max_per_user, .. } | DataRecipe::Files { max_per_user, .. } => *max_per_user,
        }
    }
}

/// `[evaluate]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateRecipe {
    /// Users judged.
    pub users: usize,
    /// Seed of the held-out users of a generated world, and of all draws.
    pub seed: u64,
}

impl Recipe {
    /// Reads and checks a recipe.
    pub fn read(path: &Path) -> Result<Recipe, PipelineError> {
        let refuse = |message: String| PipelineError::Recipe { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let recipe: Recipe = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        recipe.prompt.validate().map_err(|error| refuse(error.to_string()))?;
        recipe.sft.check().map_err(|error| refuse(error.to_string()))?;
        if recipe.encoder.target != ENCODER_FOLDER {
            return Err(refuse(format!("encoder.target must be {ENCODER_FOLDER:?}: the service looks there")));
        }
        let longest = recipe.prompt.max_prompt_tokens + recipe.prompt.max_new_tokens;
        if recipe.sft.max_len < longest {
            let max_len = recipe.sft.max_len;
            return Err(refuse(format!("sft.max_len {max_len} is below prompt plus answer, {longest} tokens")));
        }
        Ok(recipe)
    }

    /// Hash of the settings, for lineage and stage folders.
    pub fn hash(&self) -> Result<String, PipelineError> {
        Ok(hash_of(&[&serde_json::to_string(self)?]))
    }
}

/// Short hex hash of some strings.
pub fn hash_of(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_recipes_are_valid_and_keep_the_demo_small() {
        let folder = testkit::in_repository("models");
        let demo = Recipe::read(&folder.join("demo.toml")).expect("demo.toml");
        assert!(demo.prompt.max_prompt_tokens <= 384 && demo.codebook_texts >= 10_000);
        assert!(demo.data.synth().is_some() && !demo.data.informative_only());
        let real = Recipe::read(&folder.join("real.toml")).expect("real.toml");
        assert!(real.data.synth().is_none() && real.data.informative_only());
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("tempdir");
        let demo = include_str!("../../../../models/demo.toml");
        for (from, to, named) in [
            ("max_len = 416", "max_len = 100", "max_len"),
            ("target = \"encoder\"", "target = \"elsewhere\"", "encoder.target"),
            ("epochs = 1", "epochs = 1\nlearning_rate = 1", "learning_rate"),
        ] {
            let path = folder.path().join("recipe.toml");
            assert!(demo.contains(from), "{from}");
            std::fs::write(&path, demo.replace(from, to)).expect("write");
            let error = Recipe::read(&path).expect_err(named).to_string();
            assert!(error.contains(named) && error.contains("recipe.toml"), "{error}");
        }
    }
}
