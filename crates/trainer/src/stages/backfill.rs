//! `backfill`: what the serving pipeline makes of users as of the points at which something was shown to them, and as of the beginnings of
//! index generations.

use super::served::{encode, encoder, open};
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::data::{Dataset, read_labels};
use crate::lift::{
    Backfill, BackfillSettings, Embed, Embedded, Generations, Moment, history_text, member_moments, moments,
};
use crate::rank::points;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::prompt::{PromptInput, PromptSchema};

struct BackfillStage {
    settings: BackfillSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: BackfillSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    let value = value(&settings)?;
    Ok(Arc::new(BackfillStage { settings, value }))
}

impl Stage for BackfillStage {
    fn kind(&self) -> &'static str {
        "backfill"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    /// Graphs and codebook are those of a bundle in the making; histories are embedded without them.
    fn inputs(&self) -> Vec<Input> {
        let models = match self.settings.embed {
            Embed::History => vec![],
            _ => vec![Input::one(Artefact::Graphs), Input::one(Artefact::Codebook)],
        };
        let parts = [Artefact::Data, Artefact::Examples, Artefact::Encoder].map(Input::one);
        parts.into_iter().chain(models).collect()
    }

    fn output(&self) -> Artefact {
        Artefact::Backfill
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let (points, _) = points(&dataset, &read_labels(inputs.one(Artefact::Data)?)?);
        let generations = Generations::of(&points, self.settings.generations);
        let of_points: Vec<(i64, Moment)> = points
            .iter()
            .zip(moments(&dataset, &points, &self.settings))
            .filter_map(|(point, moment)| Some((point.cut.before_ms, moment?)))
            .collect();
        let members = member_moments(&dataset, &generations, self.settings.min_engagements);
        let all: Vec<Moment> =
            of_points.iter().map(|(_, moment)| *moment).chain(members.iter().flatten().copied()).collect();
        let mut embedded = self.embed(inputs, &dataset, &all, threads)?.into_iter();
        let with_points = of_points.into_iter().zip(&mut embedded).map(|((ms, moment), text)| (ms, moment, text));
        let with_points: Vec<(i64, Moment, Embedded)> = with_points.collect();
        let members = members.into_iter().map(|generation| generation.into_iter().zip(&mut embedded).collect());
        let backfill = Backfill::new(&generations, with_points, members.collect());
        inputs.progress().say(&format!(
            "{} moments of {} points and {} generations, {} distinct texts",
            all.len(),
            points.len(),
            generations.starts_ms().len(),
            backfill.distinct()
        ));
        Ok(backfill.write(&dataset, folder)?)
    }
}

impl BackfillStage {
    /// A text and its vector for each moment, in order.
    fn embed(
        &self,
        inputs: &Inputs,
        dataset: &Dataset,
        all: &[Moment],
        threads: Option<usize>,
    ) -> Result<Vec<Embedded>, StageError> {
        let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
        let prompt = |one: &Moment| dataset.prompt_input(&dataset.users[one.user], one.cut, schema.max_engagements);
        let prompts: Vec<PromptInput> = all.iter().map(prompt).collect();
        if self.settings.embed == Embed::History {
            return embedded(&encoder(inputs, threads)?, prompts.iter().map(history_text).collect(), inputs);
        }
        let models = open(inputs, &dataset.items, threads)?;
        let answers = models.answer(&prompts)?;
        if self.settings.embed == Embed::Served {
            let served = answers.into_iter();
            let served = served.map(|answer| Embedded { text: answer.parsed.embedding_text(), vector: answer.vector });
            return Ok(served.collect());
        }
        let texts = answers.iter().map(|answer| self.settings.embed.of(&answer.parsed)).collect();
        embedded(models.encoder.as_ref(), texts, inputs)
    }
}

/// Texts with their vectors, in order.
fn embedded(encoder: &dyn Encoder, texts: Vec<String>, inputs: &Inputs) -> Result<Vec<Embedded>, StageError> {
    let vectors = encode(encoder, &texts, inputs.progress())?;
    Ok(texts.into_iter().zip(vectors).map(|(text, vector)| Embedded { text, vector }).collect())
}
