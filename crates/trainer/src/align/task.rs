//! A step of alignment, as `fit`'s loop asks for it: prompts, roll-outs, rewards, advantages; then gradients.

use super::batch::{Group, GroupBatch};
use super::log::{Log, Replayed, SampleLine};
use super::metrics::{Likelihoods, StepFigures, mean};
use super::products::products;
use super::prompts::Order;
use super::sampler::{RollOut, Sampler};
use super::{AlignError, AlignSettings, PromptCase, Start, Truncated};
use crate::fit::{Evaluated, Gradients, ParameterSet, Task, Validated};
use crate::model::{Decoder, save_merged};
use crate::nn::tensor_file::write_atomically;
use crate::objective::{Evaluation, GroupPolicy, Objective, ObjectiveError};
use crate::reward::{Answered, RewardSet};
use crate::sft::tokenizer::{TOKENIZER_FILE, TextTokenizer};
use crate::sft::training::kept_folder;
use crate::simulate::Telemetry;
use crate::weighting::{Batch, Weighting, differs};
use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;
use taiji::prompt::{ParsedAnswer, parse};

/// The policy and all that judges it.
pub(super) struct Policy<'a> {
    pub(super) settings: &'a AlignSettings,
    pub(super) tokenizer: &'a TextTokenizer,
    pub(super) prompts: &'a [PromptCase],
    pub(super) start: Option<Start>,
    /// Most tokens of an answer.
    pub(super) longest: usize,
    pub(super) decoder: Decoder,
    /// The policy of the start, where a divergence from it is asked.
    pub(super) reference: Option<Decoder>,
    /// What rules' probes differentiate by.
    pub(super) probe_set: ParameterSet,
    pub(super) sampler: Sampler,
    pub(super) rewards: RewardSet,
    pub(super) rule: Box<dyn Weighting + Send>,
    pub(super) order: Order,
    pub(super) log: Log,
    pub(super) out: &'a Path,
    /// Of the step under way.
    pub(super) figures: StepFigures,
    pub(super) likelihoods: Likelihoods,
    /// What the simulator had counted before the step.
    pub(super) counted: Telemetry,
    pub(super) began: Instant,
    /// Nothing may be learned in the step under way: a gradient that its rule asked for is no number.
    pub(super) is_void: bool,
}

/// Groups of a step: prompts, their answers and what these are worth.
#[derive(Default)]
struct Drawn {
    /// Places among the run's prompts.
    prompts: Vec<usize>,
    answers: Vec<RollOut>,
    parsed: Vec<ParsedAnswer>,
    /// `[reward][answer]`
    values: Vec<Vec<f64>>,
}

impl Drawn {
    fn differs(&self, group: usize, at: usize) -> bool {
        self.values.iter().any(|of| differs(&of[at * group..][..group]))
    }

    /// Takes a group over.
    fn push(&mut self, from: &Drawn, at: usize, group: usize) {
        let answers = at * group..(at + 1) * group;
        self.prompts.push(from.prompts[at]);
        self.answers.extend_from_slice(&from.answers[answers.clone()]);
        self.parsed.extend_from_slice(&from.parsed[answers.clone()]);
        self.values.resize(from.values.len(), Vec::new());
        self.values.iter_mut().zip(&from.values).for_each(|(own, of)| own.extend_from_slice(&of[answers.clone()]));
    }
}

impl Policy<'_> {
    /// Goes back to the state behind so many steps: the rule hears of their rewards again.
    fn resume(&mut self, steps: u64) -> Result<(), AlignError> {
        self.log = Log::read(self.out, steps)?;
        let names = self.rewards.names();
        for step in self.log.steps.iter().filter(|step| !step.is_void) {
            let batch = Batch::new(&names, &step.rewards, &step.gains, self.settings.group())?;
            self.rule.combine(&batch, step.products().as_ref())?;
        }
        Ok(())
    }

    /// Groups of the next step; those in which no reward differs are drawn again, as often as the settings say. Beside them each reward's gain
    /// over the start on every prompt that was asked: over what is kept alone, a reward that ever more groups agree on would lose its gain.
    fn draw(&mut self, step: u64, drawn: &mut usize) -> Result<(Drawn, Vec<f64>), AlignError> {
        let (group, wanted) = (self.settings.group(), self.settings.prompts);
        let (mut kept, mut dull) = (Drawn::default(), Drawn::default());
        for _ in 0..=self.settings.resample() {
            let round = self.round(step, *drawn, wanted - kept.prompts.len())?;
            *drawn += round.prompts.len();
            for at in 0..round.prompts.len() {
                let into = if round.differs(group, at) { &mut kept } else { &mut dull };
                into.push(&round, at, group);
            }
            if kept.prompts.len() == wanted {
                break;
            }
        }
        let gains = self.gains(&[&kept, &dull]);
        // Nothing is learned from the others, but a step has its number of groups.
        let missing = wanted - kept.prompts.len();
        (0..missing).for_each(|at| kept.push(&dull, at, group));
        Ok((kept, gains))
    }

    /// Mean rewards of groups less those of the start on the same prompts; without a start, less nothing.
    fn gains(&self, asked: &[&Drawn]) -> Vec<f64> {
        let prompts: Vec<usize> = asked.iter().flat_map(|drawn| drawn.prompts.iter().copied()).collect();
        let rewards = self.rewards.names().len();
        let before = self.start.as_ref().map_or(vec![0.0; rewards], |start| start.mean_over(&prompts));
        let now = |reward: usize| mean(asked.iter().filter_map(|drawn| drawn.values.get(reward)).flatten().copied());
        before.iter().enumerate().map(|(reward, before)| now(reward) - before).collect()
    }

    /// Roll-outs and rewards of the next prompts.
    fn round(&mut self, step: u64, drawn: usize, count: usize) -> Result<Drawn, AlignError> {
        let group = self.settings.group();
        let prompts: Vec<usize> = (drawn..drawn + count).map(|draw| self.order.at(draw)).collect();
        let asked: Vec<(u64, &[u32])> = prompts
            .iter()
            .enumerate()
            .map(|(at, prompt)| ((drawn + at) as u64, self.prompts[*prompt].tokens.as_slice()))
            .collect();
        let started = Instant::now();
        let answers = self.sampler.roll_out(&asked, group, self.settings.seed, step)?;
        self.add_time("roll_out", started);
        let started = Instant::now();
        let case = |at: usize| &self.prompts[prompts[at / group]];
        let parsed: Vec<ParsedAnswer> =
            answers.iter().enumerate().map(|(at, answer)| parse(&answer.text, case(at).mode)).collect();
        let answered: Vec<Answered<'_>> = parsed
            .iter()
            .enumerate()
            .map(|(at, parsed)| Answered {
                user_id: &case(at).user_id,
                truth: case(at).truth.as_ref(),
                text: &answers[at].text,
                parsed,
                tokens: answers[at].tokens.len(),
            })
            .collect();
        let values = self.rewards.values(&answered, group)?.values;
        self.add_time("reward", started);
        Ok(Drawn { prompts, answers, parsed, values })
    }

    fn add_time(&mut self, what: &str, started: Instant) {
        let name = format!("step_time/{what}");
        let before = self.figures.get(&name).unwrap_or(0.0);
        self.figures.put(name, before + started.elapsed().as_secs_f64());
    }

    /// Advantages of the drawn answers; what the rule was given goes into the log. Where a gradient that it asked for is no number it is given
    /// nothing, and the step is void.
    fn combine(&mut self, drawn: &Drawn, gains: Vec<f64>, draws: usize) -> Result<Vec<f64>, AlignError> {
        let group = self.settings.group();
        let rewards = self.rewards.names().len();
        let names: Vec<String> = self.rewards.names().into_iter().map(str::to_string).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let batch = Batch::new(&names, &drawn.values, &gains, group)?;
        let started = Instant::now();
        let products = match self.rule.probe() {
            None => None,
            Some(probe) => {
                let alone: Vec<Vec<f64>> = (0..rewards).map(|reward| batch.probed(probe, reward)).collect();
                let by_reward: Vec<Vec<Group<'_>>> =
                    alone.iter().map(|of| self.groups(drawn, of, self.settings.truncated)).collect();
                Some(products(&by_reward, &self.decoder, &self.probe_set, self.settings, self.longest)?)
            }
        };
        self.is_void = products.as_ref().is_some_and(|products| !products.is_finite());
        if self.is_void {
            let rewards = drawn.values.clone();
            self.log.steps.push(Replayed { drawn: draws, rewards, gains, is_void: true, ..Replayed::default() });
            return Ok(vec![0.0; drawn.answers.len()]);
        }
        let combined = self.rule.combine(&batch, products.as_ref())?;
        if let Some(products) = &products {
            self.add_time("probe", started);
            self.figures.products(&names, products, &combined.weights);
        }
        let deviations = self.start.as_ref().map(|start| start.deviations.as_slice());
        self.figures.rewards(&names, &batch, &drawn.values, &combined, deviations);
        self.log.steps.push(Replayed {
            drawn: draws,
            rewards: drawn.values.clone(),
            gains,
            whole: products.as_ref().map(|products| products.whole.clone()),
            across: products.as_ref().map(|products| products.across.clone()),
            is_void: false,
        });
        Ok(combined.advantages)
    }

    /// The answers that are learned from.
    fn groups<'b>(&'b self, drawn: &'b Drawn, advantages: &[f64], truncated: Truncated) -> Vec<Group<'b>> {
        let group = self.settings.group();
        let of = |(at, prompt): (usize, &usize)| {
            let answers = drawn.answers[at * group..][..group].iter().zip(advantages[at * group..].iter().copied());
            let counts = |(answer, _): &(&RollOut, f64)| truncated == Truncated::Score || !answer.truncated;
            Group { prompt: &self.prompts[*prompt].tokens, answers: answers.filter(counts).collect() }
        };
        drawn.prompts.iter().enumerate().map(of).collect()
    }

    fn sample(&mut self, step: u64, drawn: &Drawn, advantages: &[f64]) -> Result<(), AlignError> {
        if !step.is_multiple_of(self.settings.log_every) {
            return Ok(());
        }
        let case = &self.prompts[drawn.prompts[0]];
        let prompt = self.tokenizer.decode(&case.tokens)?;
        for at in 0..self.settings.group() {
            self.log.samples.push(SampleLine {
                step,
                user_id: case.user_id.clone(),
                prompt: prompt.clone(),
                completion: drawn.answers[at].text.clone(),
                rewards: drawn.values.iter().map(|of| of[at]).collect(),
                advantage: advantages[at],
            });
        }
        Ok(())
    }

    /// Figures of the answers beside their rewards.
    fn describe(&mut self, drawn: &Drawn) {
        self.figures.answers(&drawn.answers);
        self.figures.put("format", mean(drawn.parsed.iter().map(|one| f64::from(u8::from(one.format_ok)))));
        let different: HashSet<&str> = drawn.parsed.iter().map(|one| one.answer.as_str()).collect();
        self.figures.put("distinct_answers", different.len() as f64 / drawn.parsed.len() as f64);
        if let Some(all) = self.rewards.telemetry() {
            let telemetry = all.since(&self.counted);
            self.counted = all.clone();
            self.figures.put("simulator/hit_rate", telemetry.hit_rate());
            self.figures.put("simulator/ungrounded", telemetry.ungrounded_share());
        }
    }
}

impl Task for Policy<'_> {
    type Batch = GroupBatch;
    type Error = AlignError;

    fn steps(&self) -> u64 {
        self.settings.steps
    }

    fn batches(&mut self, step: u64) -> Result<Vec<GroupBatch>, AlignError> {
        if self.log.steps.len() as u64 != step {
            self.resume(step)?;
        }
        self.began = Instant::now();
        self.figures = StepFigures { step: step + 1, ..StepFigures::default() };
        self.likelihoods = Likelihoods::default();
        if step.is_multiple_of(self.settings.sync_every) || !self.sampler.is_ready() {
            self.sampler.sync(&self.decoder)?;
            self.add_time("sync", self.began);
        }
        let mut draws = self.log.steps.last().map_or(0, |last| last.drawn);
        let (drawn, gains) = self.draw(step + 1, &mut draws)?;
        self.describe(&drawn);
        let advantages = self.combine(&drawn, gains, draws)?;
        self.sample(step + 1, &drawn, &advantages)?;
        let masked = self.settings.truncated == Truncated::Mask && drawn.answers.iter().all(|answer| answer.truncated);
        let groups = match masked {
            // Nothing is learned from them, but a step has its batches.
            true => self.groups(&drawn, &vec![0.0; advantages.len()], Truncated::Score),
            false => self.groups(&drawn, &advantages, self.settings.truncated),
        };
        GroupBatch::all(&groups, self.settings, self.longest, self.reference.as_ref())
    }

    fn evaluate(&mut self, batch: &GroupBatch, set: &ParameterSet) -> Result<Evaluated, AlignError> {
        let started = Instant::now();
        let policy = batch.objective(self.settings);
        let heard = Heard { policy: &policy, log_likelihoods: RefCell::default() };
        let loss = self.decoder.loss(&batch.batch, &heard)?;
        let gradients = Gradients::collect(set, &loss.backward()?)?;
        self.likelihoods.add(batch, &policy, &heard.log_likelihoods.borrow(), self.settings);
        let evaluated = Evaluated {
            // The loop skips the step and counts it.
            loss: if self.is_void { f64::NAN } else { f64::from(loss.to_scalar::<f32>()?) },
            weight: batch.divisor,
            tokens: batch.batch.input.tokens.len() as u64,
            gradients,
        };
        self.add_time("train", started);
        Ok(evaluated)
    }

    /// Nothing is held out here: a policy is judged by a stage of its own, greedily, on other users.
    fn validate(&mut self) -> Result<Option<Validated>, AlignError> {
        Ok(None)
    }

    fn saving(&mut self, _: u64) -> Result<(), AlignError> {
        self.log.write(self.out)
    }

    fn stepped(&mut self, step: u64) -> Result<(), AlignError> {
        let (mean, bound) = (self.likelihoods.mean_gap(), self.settings.max_gap);
        let synced = (step - 1).is_multiple_of(self.settings.sync_every);
        if synced && mean > bound {
            return Err(AlignError::Gap { step, mean, bound });
        }
        self.likelihoods.report(&mut self.figures, self.reference.is_some(), synced);
        self.figures.put("step_time", self.began.elapsed().as_secs_f64());
        self.log.figures.push(std::mem::take(&mut self.figures));
        match self.settings.keep_at.contains(&step) {
            true => self.keep(&kept_folder(self.out, step)),
            false => Ok(()),
        }
    }
}

impl Policy<'_> {
    /// Writes the weights with the tokenizer, at the temperature that the start had.
    pub(super) fn keep(&self, folder: &Path) -> Result<(), AlignError> {
        self.decoder.with_scaled_logits(self.settings.temperature, |decoder| save_merged(decoder, folder))?;
        Ok(write_atomically(&folder.join(TOKENIZER_FILE), self.tokenizer.to_json()?.as_bytes())?)
    }
}

/// An objective that keeps the log-likelihoods it was given.
struct Heard<'a> {
    policy: &'a GroupPolicy,
    log_likelihoods: RefCell<Vec<f64>>,
}

impl Objective for Heard<'_> {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        self.log_likelihoods.replace(log_likelihoods.to_vec());
        self.policy.evaluate(log_likelihoods)
    }
}
