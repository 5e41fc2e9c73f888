//! `sft`: a decoder trained on examples, from scratch or from a checkpoint.

use super::examples::{read_examples, tokenizer};
use super::settings::{Context, KeyError, read, value};
use crate::sft::{self, SftSettings};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taiji::prompt::PromptSchema;

struct Sft {
    settings: SftSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    if table.contains_key("vocab") {
        return Err(KeyError::new(
            "vocab",
            "belongs to the stage that makes the examples, and the tokenizer with them",
        ));
    }
    if table.contains_key("checkpoint") {
        return Err(KeyError::new("checkpoint", "is a stage of its own: name it in from"));
    }
    let settings: SftSettings = read(table)?;
    // Whether there is a checkpoint beside adapters is seen when the stage runs.
    let checkpoint = settings.lora.as_ref().map(|_| PathBuf::new());
    SftSettings { checkpoint, ..settings.clone() }.check().map_err(KeyError::other)?;
    let mut value = value(&settings)?;
    if let Some(settings) = value.as_object_mut() {
        // How many threads, what is shown, how often a state is kept, and how long a bad run is borne do not change the result.
        ["vocab", "threads", "samples", "checkpoint_every", "max_skipped"]
            .iter()
            .for_each(|key| drop(settings.shift_remove(*key)));
    }
    Ok(Arc::new(Sft { settings, value }))
}

impl Stage for Sft {
    fn kind(&self) -> &'static str {
        "sft"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Examples), Input::optional(Artefact::Checkpoint)]
    }

    fn output(&self) -> Artefact {
        Artefact::Checkpoint
    }

    fn resumes(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let examples = inputs.one(Artefact::Examples)?;
        let prompt = PromptSchema::load(&examples.join("prompt.toml"))?;
        let longest = prompt.max_prompt_tokens + prompt.max_new_tokens;
        if self.settings.max_len < longest {
            let message = format!("{} is below prompt plus answer, {longest} tokens", self.settings.max_len);
            return Err(StageError::Setting { key: "max_len", message });
        }
        let settings = SftSettings {
            threads: threads.unwrap_or(self.settings.threads),
            checkpoint: inputs.optional(Artefact::Checkpoint).map(Path::to_owned),
            ..self.settings.clone()
        };
        let report = sft::train(
            &settings,
            &tokenizer(examples)?,
            &read_examples(&examples.join("train.jsonl"))?,
            &read_examples(&examples.join("validation.jsonl"))?,
            folder,
            &mut *sft::training_progress(inputs.progress()),
        )?;
        inputs.progress().say(&format!(
            "{} parameters, {} trained, {} steps ({} skipped), {} tokens, {:.0} tokens/s, validation loss {:?}",
            report.parameters,
            report.trained_parameters,
            report.steps,
            report.skipped,
            report.tokens,
            report.tokens_per_s,
            report.validation_loss
        ));
        Ok(())
    }
}
