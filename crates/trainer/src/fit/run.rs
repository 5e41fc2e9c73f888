//! The loop: a task's batches → their gradients → one update; averages, validation, the best weights, states, the curve.
//!
//! Called by every method that trains. Stops by steps or by patience, never by the clock, so a run can be repeated; a killed
//! one, begun again, goes on and ends with the same weights.

use std::path::Path;
use std::time::Instant;

use super::FitError;
use super::average::Average;
use super::curve::CurvePoint;
use super::gradients::Gradients;
use super::groups::ParameterSet;
use super::optimizer::{AdamW, Update};
use super::progress::TrainEvent;
use super::schedule::Schedule;
use super::state::{self, Held, RunState};

/// What is to be learned, by a method: where batches come from and what their gradients are.
pub trait Task {
    /// What one backward pass looks at.
    type Batch;
    /// The method's own error.
    type Error: From<FitError>;

    /// Steps of the whole run.
    fn steps(&self) -> u64;

    /// The batches of a step, counted from 0; their gradients are averaged by weight (gradient accumulation). The same step
    /// and weights give the same batches, whatever was asked before.
    fn batches(&mut self, step: u64) -> Result<Vec<Self::Batch>, Self::Error>;

    /// Loss and gradients of a batch.
    fn evaluate(&mut self, batch: &Self::Batch, set: &ParameterSet) -> Result<Evaluated, Self::Error>;

    /// How far the present weights are from good on what is not trained on; `None` if there is nothing.
    fn validate(&mut self) -> Result<Option<Validated>, Self::Error>;

    /// Passes over the examples after so many steps, where there is a fixed set of them.
    fn epoch(&self, _steps: u64) -> Option<f64> {
        None
    }

    /// Hears that a resumable state of so many steps is about to be written; whoever has to be as it was then writes down what it takes.
    fn saving(&mut self, _steps: u64) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Hears that `step` (from 1) has changed the weights; whoever keeps weights on the way does it here. A resumed run comes by again
    /// with the same weights.
    fn stepped(&mut self, _step: u64) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// What validation measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Validated {
    /// Lower is better.
    pub loss: f64,
    /// Share of tokens that are the most likely ones to the model, where there are tokens.
    pub accuracy: Option<f64>,
}

/// Loss and gradients of one batch.
#[derive(Debug)]
pub struct Evaluated {
    /// Mean loss.
    pub loss: f64,
    /// What the batch counts beside others of its step: the normaliser of its mean.
    pub weight: f64,
    /// Tokens (or other units of work) in it.
    pub tokens: u64,
    /// Gradients of the mean loss.
    pub gradients: Gradients,
}

/// Settings of a loop.
#[derive(Debug, Clone, PartialEq)]
pub struct LoopSettings {
    /// Learning rates.
    pub schedule: Schedule,
    /// Steps between entries of the curve.
    pub log_every: u64,
    /// Steps between validations, 0 = only at the end.
    pub validate_every: u64,
    /// Steps between resumable states, 0 = none.
    pub checkpoint_every: u64,
    /// Most steps that may be skipped because the loss or the gradient is not finite; one more ends the run.
    pub max_skipped: u64,
    /// Decay of the weights' moving average, which is validated and kept in place of the last weights; 0 = none.
    pub ema: f64,
    /// End with the weights of the lowest validation loss instead of the last ones.
    pub keep_best: bool,
    /// Stop after this many validations without a new lowest loss; 0 = never.
    pub patience: u64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Steps done, skipped ones included.
    pub steps: u64,
    /// Steps skipped.
    pub skipped: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seconds, earlier attempts of a resumed run included.
    pub seconds: f64,
    /// Step of the lowest validation loss, and that loss.
    pub best: Option<(u64, f64)>,
    /// Patience came to an end before the steps did.
    pub stopped_early: bool,
    /// The run over time.
    pub curve: Vec<CurvePoint>,
}

impl Fitted {
    /// Tokens a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    /// Validation loss of the weights that were kept: the lowest (`keep_best`) or the last.
    pub fn kept_loss(&self, keep_best: bool) -> Option<f64> {
        match keep_best {
            true => self.best.map(|(_, loss)| loss),
            false => self.curve.iter().rev().find_map(|point| point.validation_loss),
        }
    }
}

/// Trains what `optimizer` holds, from the newest resumable state in `folder` if there is one of this `run_id` (a hash of all
/// that decides the result), and leaves the chosen weights in the module. `progress` hears of every step. The states stay:
/// call [`clear`](super::clear) once the result is written.
pub fn run<T: Task>(
    task: &mut T,
    optimizer: AdamW,
    settings: &LoopSettings,
    run_id: &str,
    folder: &Path,
    progress: &mut (dyn FnMut(&TrainEvent) + Send),
) -> Result<Fitted, T::Error> {
    let mut fitting = Fitting::begin(task, optimizer, settings, run_id, folder)?;
    while !fitting.is_over() {
        let event = fitting.step()?;
        progress(&event);
        fitting.task.stepped(event.point.step)?;
        let every = settings.checkpoint_every;
        if every > 0 && event.point.step.is_multiple_of(every) && !event.last {
            fitting.save()?;
        }
    }
    Ok(fitting.finish()?)
}

struct Fitting<'a, T> {
    task: &'a mut T,
    settings: &'a LoopSettings,
    folder: &'a Path,
    optimizer: AdamW,
    average: Option<Average>,
    /// Weights of the lowest validation loss, if they are to be kept.
    best: Option<Vec<Vec<f32>>>,
    state: RunState,
    steps: u64,
    earlier_seconds: f64,
    earlier_tokens: u64,
    started: Instant,
}

impl<'a, T: Task> Fitting<'a, T> {
    fn begin(
        task: &'a mut T,
        mut optimizer: AdamW,
        settings: &'a LoopSettings,
        run_id: &str,
        folder: &'a Path,
    ) -> Result<Self, FitError> {
        let mut average = match settings.ema > 0.0 {
            true => Some(Average::new(optimizer.set(), settings.ema)?),
            false => None,
        };
        let mut best = None;
        let mut held = Held { optimizer: &mut optimizer, average: &mut average, best: &mut best };
        let state = match state::restore(folder, run_id, &mut held)? {
            Some(state) => state,
            None => RunState { run_id: run_id.to_owned(), ..RunState::default() },
        };
        // Raised, the limit lets the run go on behind the steps it has skipped.
        if state.skipped > settings.max_skipped {
            return Err(too_many(&state, settings, Update { norm: f64::NAN, taken: false }, f64::NAN));
        }
        let steps = task.steps();
        let (earlier_seconds, earlier_tokens) = (state.seconds, state.tokens);
        let started = Instant::now();
        Ok(Self {
            task,
            settings,
            folder,
            optimizer,
            average,
            best,
            state,
            steps,
            earlier_seconds,
            earlier_tokens,
            started,
        })
    }

    fn is_over(&self) -> bool {
        self.state.stopped || self.state.step >= self.steps
    }

    fn step(&mut self) -> Result<TrainEvent, T::Error> {
        let lr = self.settings.schedule.rate(self.state.step + 1);
        let (loss, gradients) = self.evaluate()?;
        let update = match loss.is_finite() {
            true => self.optimizer.update(&gradients, lr)?,
            false => Update { norm: gradients.norm()?, taken: false },
        };
        self.state.step += 1;
        if update.taken {
            self.state.pending_loss += loss;
            self.state.pending_steps += 1;
            if let Some(average) = &mut self.average {
                average.add(self.optimizer.set())?;
            }
        } else {
            self.state.skipped += 1;
        }
        let this_attempt = self.started.elapsed().as_secs_f64();
        self.state.seconds = self.earlier_seconds + this_attempt;
        if self.state.skipped > self.settings.max_skipped {
            // Saved, so that no later attempt meets the same batches again.
            self.save()?;
            return Err(too_many(&self.state, self.settings, update, loss).into());
        }
        let new_tokens = (self.state.tokens - self.earlier_tokens) as f64;
        self.enter_curve(CurvePoint {
            step: self.state.step,
            train_loss: match self.state.pending_steps {
                0 => None,
                taken => Some(self.state.pending_loss / taken as f64),
            },
            epoch: self.task.epoch(self.state.step),
            validation_loss: None,
            validation_accuracy: None,
            num_tokens: self.state.tokens,
            lr,
            gradient_norm: Some(update.norm).filter(|norm| norm.is_finite()),
            tokens_per_s: new_tokens / this_attempt.max(1e-9),
            skipped: self.state.skipped,
        })
    }

    /// Mean loss and gradients over the batches of the next step.
    fn evaluate(&mut self) -> Result<(f64, Gradients), T::Error> {
        let (mut parts, mut losses) = (Vec::new(), Vec::new());
        for batch in self.task.batches(self.state.step)? {
            let evaluated = self.task.evaluate(&batch, self.optimizer.set())?;
            self.state.tokens += evaluated.tokens;
            losses.push((evaluated.weight, evaluated.loss));
            parts.push((evaluated.weight, evaluated.gradients));
        }
        let loss = match losses[..] {
            [(_, loss)] => loss,
            _ => losses.iter().map(|(w, loss)| w * loss).sum::<f64>() / losses.iter().map(|(w, _)| w).sum::<f64>(),
        };
        match Gradients::mean(parts)? {
            Some(gradients) => Ok((loss, gradients)),
            None => Err(FitError::NoBatch(self.state.step + 1).into()),
        }
    }

    /// Validates and adds to the curve where this step asks for it.
    fn enter_curve(&mut self, mut point: CurvePoint) -> Result<TrainEvent, T::Error> {
        let every = self.settings.validate_every;
        let validates = point.step == self.steps || (every > 0 && point.step.is_multiple_of(every));
        if validates {
            let validated = self.validate()?;
            point.validation_loss = validated.map(|validated| validated.loss);
            point.validation_accuracy = validated.and_then(|validated| validated.accuracy);
        }
        let curve = validates || point.step.is_multiple_of(self.settings.log_every);
        if curve {
            self.state.curve.push(point.clone());
            self.state.pending_loss = 0.0;
            self.state.pending_steps = 0;
        }
        Ok(TrainEvent { steps: self.steps, point, curve, last: self.is_over() })
    }

    /// Validation of the weights as they would be kept; remembers the best ones.
    fn validate(&mut self) -> Result<Option<Validated>, T::Error> {
        let set = self.optimizer.set();
        if let Some(average) = &mut self.average {
            average.swap(set)?;
        }
        let validated = self.task.validate()?;
        let loss = validated.map(|validated| validated.loss);
        let wanted = self.settings.keep_best || self.settings.patience > 0;
        match loss {
            None if wanted => return Err(FitError::NoValidation.into()),
            Some(loss) if self.state.best_loss.is_none_or(|best| loss < best) && loss.is_finite() => {
                self.state.best_loss = Some(loss);
                self.state.best_step = Some(self.state.step);
                self.state.validations_since_best = 0;
                if self.settings.keep_best {
                    self.best = Some(set.values()?);
                }
            }
            Some(_) => self.state.validations_since_best += 1,
            None => {}
        }
        if let Some(average) = &mut self.average {
            average.swap(set)?;
        }
        let patience = self.settings.patience;
        self.state.stopped = patience > 0 && self.state.validations_since_best >= patience;
        Ok(validated)
    }

    fn save(&mut self) -> Result<(), T::Error> {
        self.task.saving(self.state.step)?;
        let held = Held { optimizer: &mut self.optimizer, average: &mut self.average, best: &mut self.best };
        Ok(state::save(self.folder, &held, &self.state)?)
    }

    /// Puts the chosen weights into the module.
    fn finish(mut self) -> Result<Fitted, FitError> {
        match (&self.best, &mut self.average) {
            (Some(best), _) => self.optimizer.set().set_values(best)?,
            (None, Some(average)) => average.swap(self.optimizer.set())?,
            (None, None) => {}
        }
        let state = self.state;
        Ok(Fitted {
            steps: state.step,
            skipped: state.skipped,
            tokens: state.tokens,
            seconds: self.earlier_seconds + self.started.elapsed().as_secs_f64(),
            best: state.best_step.zip(state.best_loss),
            stopped_early: state.stopped && state.step < self.steps,
            curve: state.curve,
        })
    }
}

fn too_many(state: &RunState, settings: &LoopSettings, update: Update, loss: f64) -> FitError {
    FitError::TooManySkipped {
        step: state.step,
        skipped: state.skipped,
        limit: settings.max_skipped,
        norm: update.norm,
        loss,
    }
}
