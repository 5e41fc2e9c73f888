//! `features`: codes and cross-user sequences of every point, out of a backfill.

use super::codebook::CODEBOOK;
use super::served::encoder;
use super::settings::{Context, KeyError, check_share, read, value};
use super::source::dataset;
use crate::codebook::PrefixCodebook;
use crate::data::{read_labels, write_jsonl};
use crate::lift::{Backfill, Codes, FeatureSettings, ItemVectors, Parts, feature_lines};
use crate::rank::points;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::quantize::PqCodebook;

/// Its file.
pub(super) const FEATURES_FILE: &str = "features.jsonl";

struct Features {
    settings: FeatureSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: FeatureSettings = read(table)?;
    check_share("truth", settings.truth)?;
    let value = value(&settings)?;
    Ok(Arc::new(Features { settings, value }))
}

impl Stage for Features {
    fn kind(&self) -> &'static str {
        "features"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        let optional = [Artefact::Codebook, Artefact::PrefixCodebook, Artefact::Encoder, Artefact::ItemVectors];
        let optional = optional.map(Input::optional);
        [Artefact::Data, Artefact::Backfill].map(Input::one).into_iter().chain(optional).collect()
    }

    fn output(&self) -> Artefact {
        Artefact::Features
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (dataset, _) = dataset(inputs)?;
        let (points, _) = points(&dataset, &read_labels(inputs.one(Artefact::Data)?)?);
        let needs_encoder = self.settings.truth > 0.0 && inputs.optional(Artefact::Encoder).is_some();
        let encoder = needs_encoder.then(|| encoder(inputs, threads)).transpose()?;
        let vectors = inputs.optional(Artefact::ItemVectors);
        let vectors = vectors.map(|folder| ItemVectors::read(folder, dataset.items.len())).transpose()?;
        let backfill = Backfill::read(inputs.one(Artefact::Backfill)?, &dataset)?;
        let codebook = inputs.optional(Artefact::Codebook);
        let codebook = codebook.map(|folder| PqCodebook::load(&folder.join(CODEBOOK))).transpose()?;
        let prefixes = inputs.optional(Artefact::PrefixCodebook).map(PrefixCodebook::read).transpose()?;
        let parts = Parts {
            dataset: &dataset,
            backfill: &backfill,
            codes: match (&codebook, &prefixes) {
                (None, None) => None,
                (Some(codebook), None) => Some(Codes::Product(codebook)),
                (None, Some(prefixes)) => Some(Codes::Prefixes(prefixes)),
                (Some(_), Some(_)) => {
                    let message = "names two codebooks: leave one out".to_string();
                    return Err(StageError::Setting { key: "from", message });
                }
            },
            encoder: encoder.as_ref().map(|encoder| encoder as &dyn Encoder),
            items: vectors.as_ref(),
        };
        let lines = feature_lines(&parts, &points, &self.settings)?;
        let with = lines.iter().filter(|line| !line.item_ids.is_empty()).count();
        inputs.progress().say(&format!("{} of {} points, {with} with a neighbour", lines.len(), points.len()));
        write_jsonl(&folder.join(FEATURES_FILE), &lines)?;
        Ok(())
    }
}
