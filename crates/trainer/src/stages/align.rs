//! `align`: a policy trained on rewards of its own answers (GRPO, POPO).
//!
//! In: data whose users are asked about, the form of the prompts, the policy of the start; encoder and simulator, as the rewards ask;
//! the start's roll-outs, where the rule asks for them. Out: a checkpoint.

use super::roll_outs::{ROLL_OUTS_FILE, RollOuts};
use super::served;
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::align::{self, AlignError, AlignSettings, PromptCase, Start, start_values};
use crate::data::{DEFAULT_TARGET, Dataset, read_lines, test_cases};
use crate::fit::training_progress;
use crate::reward::{RewardKind, RewardSet, RewardSettings, Sources};
use crate::sft::TextTokenizer;
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::simulate::Simulator;
use crate::stage::{Artefact, Fingerprint, Input, Inputs, STAGE_FILE, Stage, StageError, read_json};
use crate::weighting::{Batch, Gdpo, RuleKind, Weighting};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use taiji::encode::Encoder;
use taiji::event::Item;
use taiji::prompt::{PromptSchema, render};
use taiji_export::Checkpoint;

struct Align {
    settings: AlignSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings = settings(table)?;
    let mut value = value(&settings)?;
    if let Some(settings) = value.as_object_mut() {
        // How many threads, what is shown, how often a state is kept, and how long a bad run is borne do not change the result.
        ["threads", "log_every", "checkpoint_every", "max_skipped"]
            .iter()
            .for_each(|key| drop(settings.shift_remove(*key)));
    }
    Ok(Arc::new(Align { settings, value }))
}

impl Stage for Align {
    fn kind(&self) -> &'static str {
        "align"
    }

    /// 2: Nash measures its gains on every prompt that was asked; before, on the groups that were kept. Where no group is drawn anew, and for
    /// rules that read no gains, that is the same.
    fn version(&self) -> u32 {
        let reads_gains = self.settings.weighting.rule == RuleKind::Nash && self.settings.resample() > 0;
        if reads_gains { 2 } else { 1 }
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        let rewarded = |kind| self.settings.reward.iter().any(|reward| reward.kind == kind);
        let needed_if = |needed: bool, artefact| Input { artefact, optional: !needed };
        vec![
            Input::one(Artefact::Data),
            Input::one(Artefact::Examples),
            Input::one(Artefact::Checkpoint),
            needed_if(rewarded(RewardKind::Semantic), Artefact::Encoder),
            needed_if(rewarded(RewardKind::Simulated), Artefact::Simulator),
            needed_if(self.settings.weighting.needs_start(), Artefact::RollOuts),
        ]
    }

    fn output(&self) -> Artefact {
        Artefact::Checkpoint
    }

    fn resumes(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let settings = AlignSettings { threads: threads.unwrap_or(self.settings.threads), ..self.settings.clone() };
        let AlignSources { schema, tokenizer, prompts, rewards, written, .. } =
            AlignSources::open(&settings.reward, Some(settings.temperature), inputs, threads)?;
        let sources = align::Sources {
            checkpoint: inputs.one(Artefact::Checkpoint)?,
            tokenizer: &tokenizer,
            prompts: &prompts,
            start: written.as_ref().map(|written| written.start(&rewards)).transpose()?,
            rewards,
            longest: schema.max_new_tokens,
        };
        let report = align::train(&settings, sources, folder, &mut *training_progress(inputs.progress()))?;
        let figure = |name: &str| report.last.get(name).unwrap_or(f64::NAN);
        inputs.progress().say(&format!(
            "{} steps ({} skipped) in {:.0} s, {} prompts drawn; at the end reward {:.4}, format {:.3}, entropy {:.3}",
            report.steps,
            report.skipped,
            report.seconds,
            report.drawn,
            figure("reward"),
            figure("format"),
            figure("entropy"),
        ));
        Ok(())
    }
}

/// What an alignment is made of, out of its parents' folders. Callers: the stage itself; `best_of`; `rewards` and `data_export`,
/// for who trains elsewhere.
pub struct AlignSources {
    /// Form of the prompts.
    pub schema: PromptSchema,
    /// Of the checkpoint.
    pub tokenizer: TextTokenizer,
    /// Tokens that the checkpoint may draw; of some it has more than its tokenizer.
    pub vocab_size: usize,
    /// Catalogue.
    pub items: Vec<Item>,
    /// What is asked.
    pub prompts: Vec<PromptCase>,
    /// What answers are worth.
    pub rewards: RewardSet,
    /// What the policy of the start answers.
    pub written: Option<Written>,
}

/// Answers of the policy of the start, and their rewards.
pub struct Written {
    /// `[prompt][answer]`
    pub texts: Vec<Vec<String>>,
    /// `[reward][prompt × answer]`
    pub values: Vec<Vec<f64>>,
    /// Answers to a prompt.
    pub group: usize,
}

impl Written {
    /// Of each prompt the places of its best and of its worst answer, by GDPO (each reward normalised in its group, then their weighted sum;
    /// equal weights without others); `None` where all are worth the same. Of equal ones the first.
    pub fn best_and_worst(
        &self,
        names: &[&str],
        weights: Option<&[f64]>,
    ) -> Result<Vec<Option<[usize; 2]>>, StageError> {
        let equal = vec![1.0 / names.len() as f64; names.len()];
        let none = vec![0.0; names.len()];
        let advantages = || {
            let batch = Batch::new(names, &self.values, &none, self.group)?;
            Ok(Gdpo::new(weights.unwrap_or(&equal))?.combine(&batch, None)?.advantages)
        };
        let advantages: Vec<f64> = advantages().map_err(AlignError::Weighting)?;
        let pair = |group: &[f64]| {
            let best = (0..group.len()).reduce(|best, next| if group[next] > group[best] { next } else { best })?;
            let worst = (0..group.len()).reduce(|worst, next| if group[next] < group[worst] { next } else { worst })?;
            // Sums that cancel differ by rounding.
            (group[best] - group[worst] > 1e-6).then_some([best, worst])
        };
        Ok(advantages.chunks(self.group).map(pair).collect())
    }

    /// Means and deviations of the rewards.
    pub fn start(&self, rewards: &RewardSet) -> Result<Start, StageError> {
        Ok(Start::of(&rewards.names(), &self.values, self.group)?)
    }
}

/// A stage's settings and what it is made of, for who does not run it.
pub fn open_align(
    table: &toml::Table,
    inputs: &Inputs,
    threads: Option<usize>,
) -> Result<(AlignSettings, AlignSources), StageError> {
    let settings = settings(table.clone()).map_err(|wrong| StageError::Refused { message: wrong.message })?;
    let sources = AlignSources::open(&settings.reward, Some(settings.temperature), inputs, threads)?;
    Ok((settings, sources))
}

fn settings(table: toml::Table) -> Result<AlignSettings, KeyError> {
    let settings: AlignSettings = read(table)?;
    settings.check().map_err(KeyError::other)?;
    Ok(settings)
}

impl AlignSources {
    /// Reads all of it; the answers of the start are valued here, and must have been drawn at a temperature where one is given.
    pub fn open(
        reward: &[RewardSettings],
        temperature: Option<f64>,
        inputs: &Inputs,
        threads: Option<usize>,
    ) -> Result<Self, StageError> {
        let schema = PromptSchema::load(&inputs.one(Artefact::Examples)?.join("prompt.toml"))?;
        let checkpoint = inputs.one(Artefact::Checkpoint)?;
        let tokenizer = TextTokenizer::load(&checkpoint.join(TOKENIZER_FILE))?;
        let vocab_size = Checkpoint::open(checkpoint)?.config.vocab_size;
        let (dataset, _) = dataset(inputs)?;
        let simulator =
            inputs.optional(Artefact::Simulator).map(|folder| Simulator::load(folder, &dataset.items)).transpose()?;
        let encoder: Option<Arc<dyn Encoder>> = match inputs.optional(Artefact::Encoder) {
            Some(_) => Some(Arc::new(served::encoder(inputs, threads)?)),
            None => None,
        };
        let prompts = prompts(&dataset, &schema, &tokenizer)?;
        let sources = Sources { items: &dataset.items, encoder, simulator, max_title_chars: schema.max_title_chars };
        let mut rewards = RewardSet::new(reward, sources)?;
        let written = match inputs.optional(Artefact::RollOuts) {
            Some(folder) => {
                check_start(inputs, folder, temperature)?;
                Some(written(folder, &prompts, &tokenizer, &mut rewards)?)
            }
            None => None,
        };
        Ok(Self { schema, tokenizer, vocab_size, items: dataset.items, prompts, rewards, written })
    }
}

/// The prompt of every user's last target, in the schema's first mode.
fn prompts(dataset: &Dataset, schema: &PromptSchema, tokenizer: &TextTokenizer) -> Result<Vec<PromptCase>, StageError> {
    let mode = schema.mode();
    let count = |text: &str| tokenizer.encode(text).map_or(0, |tokens| tokens.len());
    let prompt = |case: crate::data::TestCase| {
        Ok(PromptCase {
            user_id: case.user_id,
            tokens: tokenizer.encode(&render(schema, &case.prompt, mode, &count).text)?,
            mode,
            truth: case.target,
        })
    };
    test_cases(dataset, DEFAULT_TARGET, schema.max_engagements, usize::MAX).cases.into_iter().map(prompt).collect()
}

/// Refuses roll-outs that are seen not to be this start's: of other people, prompts or, as long as their graphs are there, weights, or at
/// another temperature than the policy is trained at; gains over them would be mere differences between the two.
fn check_start(inputs: &Inputs, folder: &Path, temperature: Option<f64>) -> Result<(), StageError> {
    let fail = |key, message| Err(StageError::Setting { key, message });
    let made: Fingerprint = read_json(&folder.join(STAGE_FILE))?;
    for artefact in [Artefact::Data, Artefact::Examples] {
        if made.inputs.get(artefact.name()).map(String::as_str) != Some(inputs.hash(artefact)?) {
            return fail(
                "from",
                format!("has roll-outs of other {} than the policy's: make them the same", artefact.name()),
            );
        }
    }
    // Graphs that were cleared away cannot be asked whose they are; that rounded ones are of the checkpoint is taken as it is.
    let graphs = made.inputs.get(Artefact::Graphs.name()).map(|hash| folder.with_file_name(format!("export-{hash}")));
    if let Some(graphs) = graphs.filter(|graphs| graphs.join(STAGE_FILE).is_file()) {
        let exported: Fingerprint = read_json(&graphs.join(STAGE_FILE))?;
        let of = exported.inputs.get(Artefact::Checkpoint.name()).map(String::as_str);
        if of != Some(inputs.hash(Artefact::Checkpoint)?) {
            return fail(
                "from",
                "has roll-outs of another checkpoint than the policy's start: make them the same".into(),
            );
        }
    }
    let found = made.settings["temperature"].as_f64().unwrap_or(1.0);
    match temperature {
        Some(wanted) if (found - wanted).abs() >= 1e-6 => {
            fail("temperature", format!("is {wanted}, that of the stage roll-outs {found}: make them the same"))
        }
        _ => Ok(()),
    }
}

/// What the policy of the start wrote, and its rewards.
fn written(
    folder: &Path,
    prompts: &[PromptCase],
    tokenizer: &TextTokenizer,
    rewards: &mut RewardSet,
) -> Result<Written, StageError> {
    let all: Vec<RollOuts> = read_lines(&folder.join(ROLL_OUTS_FILE))?.collect::<Result<_, _>>()?;
    let mut all: HashMap<String, Vec<String>> = all.into_iter().map(|of| (of.user_id, of.texts)).collect();
    let count = |text: &str| tokenizer.encode(text).map_or(0, |tokens| tokens.len());
    let (values, group) = start_values(prompts, &all, &count, rewards)?;
    let texts = prompts.iter().map(|prompt| all.remove(&prompt.user_id).unwrap_or_default()).collect();
    Ok(Written { texts, values, group })
}
