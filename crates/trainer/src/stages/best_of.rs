//! `best-of`: examples out of a policy's own answers: of each prompt the one that the rewards value most (best-of-n, RAFT:
//! arXiv 2304.06767). The rival of an alignment that needs no gradient of a reward.
//!
//! In: data whose users are asked about, the form of the prompts, the policy, its roll-outs; encoder and simulator, as the rewards ask. Out:
//! examples; validation is the parent's. Answers without the exact format are taken for no prompt.

use super::align::AlignSources;
use super::examples::Line;
use super::settings::{Context, KeyError, read, value};
use crate::data::write_jsonl;
use crate::reward::{RewardKind, RewardSettings};
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, copy_file, write_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::{ANSWER_CLOSE, parse};

/// What was taken.
pub const BEST_OF_FILE: &str = "best_of.json";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Rewards, in the order of the weights.
    reward: Vec<RewardSettings>,
    /// One a reward, sum 1; equal ones where none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weights: Option<Vec<f64>>,
}

struct BestOf {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    if settings.reward.is_empty() {
        return Err(KeyError::new("reward", "is empty: name one"));
    }
    settings.reward.iter().try_for_each(RewardSettings::check).map_err(KeyError::other)?;
    if settings.weights.as_ref().is_some_and(|weights| weights.len() != settings.reward.len()) {
        return Err(KeyError::new("weights", "give one a reward"));
    }
    let value = value(&settings)?;
    Ok(Arc::new(BestOf { settings, value }))
}

impl Stage for BestOf {
    fn kind(&self) -> &'static str {
        "best-of"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        let rewarded = |kind| self.settings.reward.iter().any(|reward| reward.kind == kind);
        vec![
            Input::one(Artefact::Data),
            Input::one(Artefact::Examples),
            Input::one(Artefact::Checkpoint),
            Input::one(Artefact::RollOuts),
            Input { artefact: Artefact::Encoder, optional: !rewarded(RewardKind::Semantic) },
            Input { artefact: Artefact::Simulator, optional: !rewarded(RewardKind::Simulated) },
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Examples
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let AlignSources { tokenizer, prompts, rewards, written, .. } =
            AlignSources::open(&self.settings.reward, None, inputs, threads)?;
        let written = written.ok_or(StageError::Input { artefact: Artefact::RollOuts.name() })?;
        let chosen = written.best_and_worst(&rewards.names(), self.settings.weights.as_deref())?;
        let (mut lines, mut alike, mut unformed) = (Vec::new(), 0, 0);
        for ((case, texts), pair) in prompts.iter().zip(&written.texts).zip(chosen) {
            let Some([best, _]) = pair else {
                alike += 1;
                continue;
            };
            if !parse(&texts[best], case.mode).format_ok {
                unformed += 1;
                continue;
            }
            // What ends a text of somebody else's comes behind the tag; `sft` adds it again.
            let end = texts[best].rfind(ANSWER_CLOSE).map_or(texts[best].len(), |at| at + ANSWER_CLOSE.len());
            let completion = texts[best][..end].to_string();
            lines.push(Line { prompt: tokenizer.decode(&case.tokens)?, completion });
        }
        if lines.is_empty() {
            let message =
                format!("of no prompt an answer is better than the others and has the format ({alike}, {unformed})");
            return Err(StageError::Refused { message });
        }
        let counted =
            json!({ "examples": lines.len(), "alike": alike, "without_format": unformed, "of": written.group });
        inputs.progress().say(&format!("{} prompts of {}", lines.len(), prompts.len()));
        write_jsonl(&folder.join("train.jsonl"), lines)?;
        let examples = inputs.one(Artefact::Examples)?;
        for file in ["validation.jsonl", "codebook.jsonl", "prompt.toml"] {
            copy_file(&examples.join(file), &folder.join(file))?;
        }
        copy_file(&inputs.one(Artefact::Checkpoint)?.join(TOKENIZER_FILE), &folder.join(TOKENIZER_FILE))?;
        write_json(&folder.join(BEST_OF_FILE), &counted)
    }
}
