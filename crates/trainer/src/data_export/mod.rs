//! What others' trainers read: examples, preferences and prompts of a recipe's stage, in their files' form.
//!
//! In: a stage of kind `sft` (its examples) or `align` (its prompts, and what the policy of the start answered to them, valued by the
//! stage's rewards). Out: a folder with files for TRL, verl or LLaMA-Factory, and `export.json`. Caller: `bin/taiji-trainer`.
//!
//! ```text
//! sft   ─► examples ───────────────────────────► sft_train, sft_validation
//! align ─► prompts (with user_id: `rewards`) ──► rl
//!       └► roll-outs × rewards ────────────────► preference: the best answer to a prompt and the worst
//! ```
//!
//! Prompts are written as serving writes them, without a chat template: a model that is served by them must be trained on them.

mod formats;
#[cfg(test)]
mod tests;
mod verl;

pub use formats::Format;

use crate::nn::tensor_file::write_json;
use crate::recipe::Ready;
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::sft::{SftExample, TextTokenizer};
use crate::stage::{Artefact, StageError};
use crate::stages::{AlignSources, open_align, read_examples};
use formats::{Files, Preference, Prompt};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The kinds of stage whose data can be written.
pub const KINDS: [&str; 2] = ["align", "sft"];

/// `export.json`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Exported {
    /// Of the recipe.
    pub stage: String,
    /// Examples for training and validation.
    pub sft: [usize; 2],
    /// Prompts.
    pub rl: usize,
    /// Pairs.
    pub preference: usize,
    /// Prompts to which all answers of the start are worth the same: no pair.
    pub without_preference: usize,
}

/// Writes a stage's data into a folder, which is made, or empty.
pub fn export(ready: &Ready, format: Format, threads: Option<usize>, out: &Path) -> Result<Exported, StageError> {
    std::fs::create_dir_all(out).map_err(StageError::io(out))?;
    if std::fs::read_dir(out).map_err(StageError::io(out))?.next().is_some() {
        let message = format!("{} is not empty: what lies there would be taken for this export's", out.display());
        return Err(StageError::Refused { message });
    }
    let mut exported = Exported { stage: ready.name.clone(), ..Exported::default() };
    match ready.kind.as_str() {
        "sft" => write_examples(ready, format, out, &mut exported)?,
        _ => write_prompts(ready, threads, format, out, &mut exported)?,
    }
    write_json(&out.join("export.json"), &exported)?;
    Ok(exported)
}

fn write_examples(ready: &Ready, format: Format, out: &Path, exported: &mut Exported) -> Result<(), StageError> {
    let folder = ready.inputs.one(Artefact::Examples)?;
    let mut files = Files::new(format, out, TextTokenizer::load(&folder.join(TOKENIZER_FILE))?.ends_by_tag());
    for (place, part) in ["train", "validation"].into_iter().enumerate() {
        let examples: Vec<SftExample> = read_examples(&folder.join(format!("{part}.jsonl")))?;
        exported.sft[place] = examples.len();
        files.sft(part, &examples)?;
    }
    files.finish()
}

fn write_prompts(
    ready: &Ready,
    threads: Option<usize>,
    format: Format,
    out: &Path,
    exported: &mut Exported,
) -> Result<(), StageError> {
    let (settings, sources) = open_align(&ready.settings, &ready.inputs, threads)?;
    let AlignSources { tokenizer, prompts, rewards, written, .. } = sources;
    let texts: Vec<String> = prompts.iter().map(|prompt| tokenizer.decode(&prompt.tokens)).collect::<Result<_, _>>()?;
    let asked = prompts.iter().zip(&texts);
    let asked = asked.map(|(case, prompt)| Prompt { user_id: &case.user_id, prompt, truth: case.truth.as_ref() });
    let mut files = Files::new(format, out, tokenizer.ends_by_tag());
    files.rl(&asked.collect::<Vec<_>>())?;
    exported.rl = texts.len();
    let Some(written) = written else { return files.finish() };
    let found = written.best_and_worst(&rewards.names(), settings.weighting.weights.as_deref())?;
    let mut preferences = Vec::new();
    for ((prompt, answers), pair) in texts.iter().zip(&written.texts).zip(&found) {
        if let Some([chosen, rejected]) = *pair {
            preferences.push(Preference { prompt, chosen: &answers[chosen], rejected: &answers[rejected] });
        }
    }
    files.preference(&preferences)?;
    exported.preference = preferences.len();
    exported.without_preference = found.len() - preferences.len();
    files.finish()
}
