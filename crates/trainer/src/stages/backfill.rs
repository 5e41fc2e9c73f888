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
use std::collections::HashMap;
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

    /// 2: what stands as of several moments is asked once, so batches are others, and vectors differ by rounding.
    fn version(&self) -> u32 {
        2
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    /// Graphs and codebook are those of a bundle in the making; histories are embedded without them, and nothing without anything.
    fn inputs(&self) -> Vec<Input> {
        let parts: &[Artefact] = match self.settings.embed {
            Embed::Nothing => &[Artefact::Data],
            Embed::History => &[Artefact::Data, Artefact::Examples, Artefact::Encoder],
            _ => &[Artefact::Data, Artefact::Examples, Artefact::Encoder, Artefact::Graphs, Artefact::Codebook],
        };
        parts.iter().copied().map(Input::one).collect()
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
        if self.settings.embed == Embed::Nothing {
            return Ok(vec![Embedded { text: String::new(), vector: vec![] }; all.len()]);
        }
        let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
        let prompt = |one: &Moment| dataset.prompt_input(&dataset.users[one.user], one.cut, schema.max_engagements);
        let (prompts, places) = distinct(all, all.iter().map(prompt));
        let asked = self.ask(inputs, dataset, &prompts, threads)?;
        Ok(places.into_iter().map(|place| asked[place].clone()).collect())
    }

    /// A text and its vector for each prompt, in order.
    fn ask(
        &self,
        inputs: &Inputs,
        dataset: &Dataset,
        prompts: &[PromptInput],
        threads: Option<usize>,
    ) -> Result<Vec<Embedded>, StageError> {
        inputs.progress().say(&format!("{} different prompts", prompts.len()));
        if self.settings.embed == Embed::History {
            return embedded(&encoder(inputs, threads)?, prompts.iter().map(history_text).collect(), inputs);
        }
        let models = open(inputs, &dataset.items, threads)?;
        let answers = models.answer(prompts)?;
        if self.settings.embed == Embed::Served {
            let served = answers.into_iter();
            let served = served.map(|answer| Embedded { text: answer.parsed.embedding_text(), vector: answer.vector });
            return Ok(served.collect());
        }
        let texts = answers.iter().map(|answer| self.settings.embed.of(&answer.parsed)).collect();
        embedded(models.encoder.as_ref(), texts, inputs)
    }
}

/// The different prompts, and the place of each moment's among them: where nothing happened in between, a user stands as before.
fn distinct(moments: &[Moment], prompts: impl Iterator<Item = PromptInput>) -> (Vec<PromptInput>, Vec<usize>) {
    let mut of_user: HashMap<usize, Vec<usize>> = HashMap::new();
    let (mut all, mut places) = (Vec::new(), Vec::with_capacity(moments.len()));
    for (moment, prompt) in moments.iter().zip(prompts) {
        let known = of_user.entry(moment.user).or_default();
        let place = known.iter().copied().find(|place| all[*place] == prompt);
        places.push(place.unwrap_or_else(|| {
            known.push(all.len());
            all.push(prompt);
            all.len() - 1
        }));
    }
    (all, places)
}

/// Texts with their vectors, in order.
fn embedded(encoder: &dyn Encoder, texts: Vec<String>, inputs: &Inputs) -> Result<Vec<Embedded>, StageError> {
    let vectors = encode(encoder, &texts, inputs.progress())?;
    Ok(texts.into_iter().zip(vectors).map(|(text, vector)| Embedded { text, vector }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Cut;

    #[test]
    fn what_stands_as_of_several_moments_is_asked_once() {
        let moment = |user: usize, before_ms: i64| Moment { user, cut: Cut { engagements: 0, before_ms } };
        let prompt = |query: &str| PromptInput { queries: vec![query.to_string()], ..PromptInput::default() };
        let moments = [moment(0, 1), moment(1, 1), moment(0, 2), moment(0, 3), moment(1, 2)];
        let prompts = ["a", "a", "a", "b", "a"].map(prompt);
        let (all, places) = distinct(&moments, prompts.into_iter());
        assert_eq!(places, [0, 1, 0, 2, 1]);
        assert_eq!(all, ["a", "a", "b"].map(prompt));
    }
}
