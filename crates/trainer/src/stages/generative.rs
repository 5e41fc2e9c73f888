//! `generative`: a decoder that writes the codes of a user's next item.

use super::examples::tokenizer;
use super::sequences::read_sequences;
use super::settings::{Context, KeyError, read, value};
use crate::fit::training_progress;
use crate::generative::{GenerativeSettings, train};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

struct Generative {
    settings: GenerativeSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: GenerativeSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let mut value = value(&settings)?;
    if let Some(settings) = value.as_object_mut() {
        // How many threads, how often a state is kept, and how long a bad run is borne do not change the result.
        ["threads", "checkpoint_every", "max_skipped"].iter().for_each(|key| drop(settings.shift_remove(*key)));
    }
    Ok(Arc::new(Generative { settings, value }))
}

impl Stage for Generative {
    fn kind(&self) -> &'static str {
        "generative"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Sequences)]
    }

    fn output(&self) -> Artefact {
        Artefact::Checkpoint
    }

    fn resumes(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let sequences = inputs.one(Artefact::Sequences)?;
        let settings =
            GenerativeSettings { threads: threads.unwrap_or(self.settings.threads), ..self.settings.clone() };
        let (codes, sequences) = (tokenizer(sequences)?, read_sequences(sequences)?);
        let report = train(&settings, &codes, &sequences, folder, &mut *training_progress(inputs.progress()))?;
        inputs.progress().say(&format!(
            "{} parameters, {} sequences, {} steps ({} skipped), {} tokens, {:.0} tokens/s, validation loss {:?}",
            report.parameters,
            report.sequences,
            report.steps,
            report.skipped,
            report.tokens,
            report.tokens_per_s,
            report.validation_loss
        ));
        Ok(())
    }
}
