//! `score`: how surprised a frozen checkpoint is by the true title, with each reason and without.
//!
//! Through the trainer's own pass without a tape, in which the reasons of a prompt share its rows; the engine's scoring call would read
//! the prompt anew for each.

use super::examples::{read_lines, tokenizer};
use super::reason::SPLITS;
use super::settings::{Context, KeyError, read, value};
use crate::data::write_jsonl;
use crate::model::load_checkpoint;
use crate::reason::choose::{Method, pairs, percentile};
use crate::reason::{Group, Planted, Scorer, Scores};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use crate::stats::auc;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Medians, and how well scores tell true reasons from planted wrong ones.
pub const SCORES_FILE: &str = "scores.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Titles are cut here, as the prompts' own.
    max_title_chars: usize,
    /// Most tokens of one batch.
    batch_tokens: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { max_title_chars: 48, batch_tokens: 4096 }
    }
}

struct Score {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let value = value(&settings)?;
    Ok(Arc::new(Score { settings, value }))
}

impl Stage for Score {
    fn kind(&self) -> &'static str {
        "score"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Reasons), Input::one(Artefact::Checkpoint)]
    }

    fn output(&self) -> Artefact {
        Artefact::Scores
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let (reasons, checkpoint) = (inputs.one(Artefact::Reasons)?, inputs.one(Artefact::Checkpoint)?);
        let decoder = load_checkpoint(checkpoint).map_err(crate::sft::SftError::from)?;
        let tokenizer = tokenizer(checkpoint)?;
        let Settings { max_title_chars, batch_tokens } = self.settings;
        let scorer = Scorer { decoder: &decoder, tokenizer: &tokenizer, max_title_chars, batch_tokens };
        let mut report = serde_json::Map::new();
        for split in SPLITS {
            let groups = read_groups(reasons, split)?;
            let mut bar = inputs.progress().bar(split, groups.len() as u64);
            let scores = scorer.score(&groups, &mut |done| bar.set(done as u64))?;
            drop(bar);
            report.insert(split.to_string(), figures(&groups, &scores, read_planted(reasons, split)?.as_deref()));
            write_jsonl(&folder.join(format!("{split}.jsonl")), scores)?;
        }
        let told = json!({ "scorer": inputs.hash(Artefact::Checkpoint)?, "parts": report });
        write_json(&folder.join(SCORES_FILE), &told)
    }
}

/// Prompts with their reasons.
pub fn read_groups(folder: &Path, split: &str) -> Result<Vec<Group>, StageError> {
    read_lines(&folder.join(format!("{split}.jsonl")))
}

/// What each reason is worth, where that is known.
pub fn read_planted(folder: &Path, split: &str) -> Result<Option<Vec<Vec<Planted>>>, StageError> {
    let path = folder.join(format!("{split}.planted.jsonl"));
    if path.is_file() { read_lines(&path).map(Some) } else { Ok(None) }
}

/// The methods whose cost may tell a wrong reason from a true one.
const JUDGED: [(&str, Method); 3] =
    [("perplexity", Method::Perplexity), ("gain", Method::Gain), ("no_reason", Method::NoReason)];

fn figures(groups: &[Group], scores: &[Scores], planted: Option<&[Vec<Planted>]>) -> Value {
    let mut figures = serde_json::Map::new();
    let unscored = pairs(groups).filter(|(group, reason)| scores[*group].with[*reason].is_none()).count();
    figures.insert("pairs".into(), json!(pairs(groups).count()));
    figures.insert("too_long".into(), json!(unscored));
    for (name, method) in JUDGED {
        let costs = |kind: Option<Planted>| {
            let known = pairs(groups).filter(move |(group, reason)| {
                kind.is_none_or(|kind| planted.is_some_and(|planted| planted[*group][*reason] == kind))
            });
            known.filter_map(move |(group, reason)| method.cost(&scores[group], reason))
        };
        let against = |wrong: &[Planted]| {
            let bad = wrong.iter().flat_map(|kind| costs(Some(*kind)).map(|cost| (cost, true)));
            auc(bad.chain(costs(Some(Planted::True)).map(|cost| (cost, false))))
        };
        figures.insert(
            name.to_string(),
            json!({
                "median_nats": percentile(costs(None).collect(), 0.5),
                "median_nats_true": percentile(costs(Some(Planted::True)).collect(), 0.5),
                "median_nats_wrong_right_path": percentile(costs(Some(Planted::WrongRight)).collect(), 0.5),
                "median_nats_wrong_own_path": percentile(costs(Some(Planted::WrongOwn)).collect(), 0.5),
                "auc": against(&[Planted::WrongRight, Planted::WrongOwn]),
                "auc_right_path": against(&[Planted::WrongRight]),
                "auc_own_path": against(&[Planted::WrongOwn]),
            }),
        );
    }
    Value::Object(figures)
}
