//! Groups, gradients, optimizer and loop on a module of two tensors.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::groups::matches;
use super::*;
use crate::nn::{Module, Parameter, Weight, tensor};

/// y = x·w + b, with names as a decoder's.
struct Line {
    weight: Weight,
    bias: Weight,
}

impl Line {
    fn new() -> Self {
        let values = |count: usize| (0..count).map(|place| place as f32 * 0.1 - 0.2).collect();
        Self {
            weight: Weight::new(&tensor(values(6), (3, 2)).unwrap()).unwrap(),
            bias: Weight::new(&tensor(values(2), 2).unwrap()).unwrap(),
        }
    }

    /// Mean square of the difference to what a fixed line gives.
    fn loss(&self, inputs: &Tensor) -> Tensor {
        let wanted = inputs.matmul(&tensor(vec![1.0, -1.0, 0.5, 2.0, 0.0, 1.0], (3, 2)).unwrap()).unwrap();
        let found = inputs.matmul(&self.weight).unwrap().broadcast_add(&self.bias).unwrap();
        (found - wanted).unwrap().sqr().unwrap().mean_all().unwrap()
    }

    fn values(&self) -> Vec<Vec<f32>> {
        ParameterSet::all(self).values().unwrap()
    }
}

impl Module for Line {
    fn parameters(&self) -> Vec<Parameter> {
        let named = [("layers.0.weight", &self.weight, true), ("layers.1.bias", &self.bias, false)];
        named.map(|(name, weight, decay)| Parameter { name: name.into(), var: weight.var().clone(), decay }).into()
    }

    fn freeze(&self, frozen: &dyn Fn(&str) -> bool) {
        self.weight.freeze(frozen("layers.0.weight"));
        self.bias.freeze(frozen("layers.1.bias"));
    }
}

fn inputs(seed: u64, rows: usize) -> Tensor {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    tensor((0..rows * 3).map(|_| random.random::<f32>() * 2.0 - 1.0).collect(), (rows, 3)).unwrap()
}

fn group(name: &str) -> GroupSettings {
    GroupSettings { names: vec![name.into()], ..GroupSettings::default() }
}

#[test]
fn patterns_fit_names() {
    for (pattern, name, fits) in [
        ("model.layers.{4..11}.*", "model.layers.4.mlp.down_proj.weight", true),
        ("model.layers.{4..11}.*", "model.layers.11.mlp.down_proj.weight", true),
        ("model.layers.{4..11}.*", "model.layers.12.mlp.down_proj.weight", false),
        ("model.layers.{4..11}.*", "model.layers.x.mlp", false),
        ("*norm*", "model.norm.weight", true),
        ("*.lora_?", "a.lora_A", false),
        ("*", "", true),
        ("a*b*c", "aXbYbZc", true),
        ("a*b*c", "aXbYbZ", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}

#[test]
fn a_frozen_parameter_needs_no_gradient_and_a_trainable_one_without_is_named() {
    let line = Line::new();
    let frozen = GroupSettings { frozen: true, ..group("*bias") };
    let set = ParameterSet::grouped(&line, std::slice::from_ref(&frozen), 0.1).unwrap();
    let store = line.loss(&inputs(1, 5)).backward().unwrap();
    assert!(store.get(line.bias.var()).is_none());
    let before = line.values();
    let gradients = Gradients::collect(&set, &store).unwrap();
    AdamW::new(ParameterSet::grouped(&line, &[frozen], 0.1).unwrap(), AdamWSettings::default())
        .update(&gradients, 0.1)
        .unwrap();
    let after = line.values();
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1], after[1]);

    let all = ParameterSet::all(&line);
    let message = Gradients::collect(&all, &store).unwrap_err().to_string();
    assert!(message.contains("layers.1.bias"), "{message}");
}

#[test]
fn groups_that_make_no_sense_are_refused() {
    let line = Line::new();
    let refuse = |group: GroupSettings, part: &str| {
        let message = ParameterSet::grouped(&line, &[group], 0.1).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    refuse(group("layers.7.*"), "fits no parameter: names are like layers.0.weight");
    refuse(group("layers.{7}.*"), "range of numbers");
    refuse(GroupSettings { frozen: true, ..group("*") }, "nothing to train");
    refuse(GroupSettings { lr: Some(0.0), ..group("*") }, "lr must be positive");
    refuse(GroupSettings::default(), "names no parameter");
    refuse(GroupSettings { frozen: true, lr: Some(1.0), ..group("*bias") }, "leave out lr");
}

#[test]
fn a_group_has_its_own_learning_rate_and_decay() {
    let line = Line::new();
    let groups = [
        GroupSettings { lr: Some(0.01), weight_decay: Some(0.5), ..group("*weight") },
        GroupSettings { lr: Some(0.2), ..group("*") },
    ];
    let set = ParameterSet::grouped(&line, &groups, 0.1).unwrap();
    let settings = AdamWSettings { weight_decay: 0.0, epsilon: 0.0, ..AdamWSettings::default() };
    let gradients = Gradients::collect(&set, &line.loss(&inputs(1, 9)).backward().unwrap()).unwrap();
    let before = line.values();
    // Half the peak: each group moves by half of its own rate; Adam's first step is rate · sign(gradient).
    AdamW::new(set, settings).update(&gradients, 0.05).unwrap();
    let after = line.values();
    for (place, (old, new)) in before[0].iter().zip(&after[0]).enumerate() {
        let moved = old * (1.0 - 0.005 * 0.5) - new;
        assert!((moved.abs() - 0.005).abs() < 1e-6, "weight {place}: {moved}");
    }
    for (old, new) in before[1].iter().zip(&after[1]) {
        assert!(((old - new).abs() - 0.1).abs() < 1e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn gradients_of_parts_make_those_of_the_whole(cuts in proptest::collection::vec(1usize..7, 1..5), seed in 0u64..99) {
        let line = Line::new();
        let set = ParameterSet::all(&line);
        let rows: usize = cuts.iter().sum();
        let whole = inputs(seed, rows);
        let of = |batch: &Tensor| Gradients::collect(&set, &line.loss(batch).backward().unwrap()).unwrap();
        let expected = of(&whole);
        let (mut start, mut parts) = (0, Vec::new());
        for cut in cuts {
            parts.push((cut as f64, of(&whole.narrow(0, start, cut).unwrap())));
            start += cut;
        }
        let mean = Gradients::mean(parts).unwrap().unwrap();
        for (a, b) in mean.0.iter().zip(&expected.0) {
            let off = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            prop_assert!(off < 1e-5, "{off}");
        }
    }
}

#[test]
fn several_backward_passes_over_one_forward() {
    let line = Line::new();
    let set = ParameterSet::all(&line);
    let batch = inputs(3, 4);
    let states = batch.matmul(&line.weight).unwrap().broadcast_add(&line.bias).unwrap();
    let of = |loss: &Tensor| Gradients::collect(&set, &loss.backward().unwrap()).unwrap();
    let losses = [states.sqr().unwrap().sum_all().unwrap(), states.exp().unwrap().sum_all().unwrap()];
    let together = of(&(&losses[0] + &losses[1]).unwrap());
    let apart = Gradients::mean(losses.iter().map(|loss| (0.5, of(loss))).collect()).unwrap().unwrap();
    for (sum, half) in together.0.iter().zip(&apart.0) {
        let off = (sum - (half * 2.0).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-4);
    }
}

/// Fits [`Line`]; gives NaN for some steps and validates by a list or by the distance of the bias from 0.
struct LineTask {
    line: Line,
    steps: u64,
    parts: usize,
    poisoned: Vec<u64>,
    /// How often each step's batch was met.
    met: BTreeMap<u64, usize>,
    validations: Option<Vec<f64>>,
    die_at: Option<u64>,
    /// Steps behind which states were announced.
    saved: Vec<u64>,
}

impl LineTask {
    fn new(steps: u64) -> Self {
        let (poisoned, met) = (Vec::new(), BTreeMap::new());
        Self {
            line: Line::new(),
            steps,
            parts: 1,
            poisoned,
            met,
            validations: Some(Vec::new()),
            die_at: None,
            saved: Vec::new(),
        }
    }

    fn run(&mut self, settings: &LoopSettings, folder: &Path) -> Result<Fitted, FitError> {
        let optimizer = AdamW::new(ParameterSet::all(&self.line), AdamWSettings::default());
        let die_at = self.die_at;
        run(self, optimizer, settings, "a run", folder, &mut |event| {
            assert_ne!(Some(event.point.step), die_at, "killed")
        })
    }
}

impl Task for LineTask {
    type Batch = (u64, Tensor);
    type Error = FitError;

    fn steps(&self) -> u64 {
        self.steps
    }

    fn saving(&mut self, steps: u64) -> Result<(), FitError> {
        self.saved.push(steps);
        Ok(())
    }

    fn batches(&mut self, step: u64) -> Result<Vec<(u64, Tensor)>, FitError> {
        *self.met.entry(step).or_default() += 1;
        Ok((0..self.parts).map(|part| (step, inputs(step * 10 + part as u64, 4 + part))).collect())
    }

    fn evaluate(&mut self, (step, batch): &(u64, Tensor), set: &ParameterSet) -> Result<Evaluated, FitError> {
        let factor = if self.poisoned.contains(step) { f64::INFINITY } else { 1.0 };
        let loss = (self.line.loss(batch) * factor)?;
        Ok(Evaluated {
            loss: f64::from(loss.to_scalar::<f32>()?),
            weight: batch.dim(0)? as f64,
            tokens: batch.dim(0)? as u64,
            gradients: Gradients::collect(set, &loss.backward()?)?,
        })
    }

    fn validate(&mut self) -> Result<Option<Validated>, FitError> {
        let Some(list) = &mut self.validations else { return Ok(None) };
        let of_bias = self.line.bias.to_vec1::<f32>()?.iter().map(|value| f64::from(value.abs())).sum();
        let loss = if list.is_empty() { of_bias } else { list.remove(0) };
        Ok(Some(Validated { loss, accuracy: None }))
    }
}

fn loop_settings(total: u64) -> LoopSettings {
    LoopSettings {
        schedule: Schedule { peak: 0.05, warmup: 2, total, floor: 0.1 },
        log_every: 1,
        validate_every: 1,
        checkpoint_every: 2,
        max_skipped: 3,
        ema: 0.0,
        keep_best: false,
        patience: 0,
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut task = LineTask { poisoned: vec![2, 5], ..LineTask::new(8) };
    let fitted = task.run(&loop_settings(8), folder.path()).unwrap();
    assert_eq!((fitted.steps, fitted.skipped), (8, 2));
    assert_eq!(fitted.curve.iter().map(|point| point.skipped).collect::<Vec<_>>(), [0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!(fitted.curve[2].train_loss, None);
    assert_eq!(fitted.curve[2].gradient_norm, None);
    assert!(task.line.values().concat().iter().all(|value| value.is_finite()));
}

/// Bug 2 of the audit: the run ended at the first such batch, and every rerun met it again.
#[test]
fn too_many_skipped_steps_end_the_run_and_no_rerun_meets_them_again() {
    let folder = tempfile::tempdir().unwrap();
    let poisoned = vec![3, 4, 5, 6];
    let mut task = LineTask { poisoned: poisoned.clone(), ..LineTask::new(9) };
    let message = task.run(&loop_settings(9), folder.path()).unwrap_err().to_string();
    assert!(message.contains("step 7") && message.contains("4 steps skipped, at most 3"), "{message}");

    // Whoever keeps more than weights hears of that state, too.
    assert_eq!(task.saved, [2, 4, 6, 7]);
    // The same limit: an error at once. A higher one: on behind the last bad batch.
    let mut again = LineTask { poisoned, ..LineTask::new(9) };
    assert!(matches!(again.run(&loop_settings(9), folder.path()), Err(FitError::TooManySkipped { skipped: 4, .. })));
    assert!(again.met.is_empty());
    let raised = LoopSettings { max_skipped: 4, ..loop_settings(9) };
    let fitted = again.run(&raised, folder.path()).unwrap();
    assert_eq!((fitted.steps, fitted.skipped), (9, 4));
    assert_eq!(again.met.keys().copied().collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn the_average_follows_its_formula_and_is_what_is_validated_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let steps = 6;
    let mut plain = LineTask::new(steps);
    let mut expected = plain.line.values();
    let optimizer = |line: &Line| AdamW::new(ParameterSet::all(line), AdamWSettings::default());
    let mut plain_optimizer = optimizer(&plain.line);
    let settings = LoopSettings { ema: 0.3, ..loop_settings(steps) };
    for step in 0..steps {
        let batch = plain.batches(step).unwrap().remove(0);
        let gradients = plain.evaluate(&batch, plain_optimizer.set()).unwrap().gradients;
        plain_optimizer.update(&gradients, settings.schedule.rate(step + 1)).unwrap();
        let kept = 0.3f32.min((2 + step) as f32 / (11 + step) as f32);
        for (mean, new) in expected.iter_mut().flatten().zip(plain.line.values().concat()) {
            *mean = kept * *mean + (1.0 - kept) * new;
        }
    }
    let mut task = LineTask::new(steps);
    let fitted = task.run(&settings, folder.path()).unwrap();
    assert_ne!(task.line.values(), plain.line.values());
    for (found, wanted) in task.line.values().concat().iter().zip(expected.concat()) {
        assert!((found - wanted).abs() < 1e-6);
    }
    let bias: f64 = task.line.values()[1].iter().map(|value| f64::from(value.abs())).sum();
    assert_eq!(fitted.curve[5].validation_loss, Some(bias));
}

#[test]
fn the_best_weights_are_kept_and_patience_stops() {
    let folder = tempfile::tempdir().unwrap();
    let losses = vec![5.0, 3.0, 4.0, f64::NAN, 3.0, 1.0];
    let settings = LoopSettings { keep_best: true, patience: 3, ..loop_settings(30) };
    let mut task = LineTask { validations: Some(losses), ..LineTask::new(30) };
    let fitted = task.run(&settings, folder.path()).unwrap();
    assert_eq!((fitted.steps, fitted.best, fitted.stopped_early), (5, Some((2, 3.0)), true));
    let other = tempfile::tempdir().unwrap();
    let mut two = LineTask::new(2);
    // The same schedule, two steps of it.
    two.run(&LoopSettings { keep_best: false, ..settings.clone() }, other.path()).unwrap();
    assert_eq!(task.line.values(), two.line.values());

    let empty = tempfile::tempdir().unwrap();
    let mut blind = LineTask { validations: None, ..LineTask::new(3) };
    assert!(matches!(blind.run(&settings, empty.path()), Err(FitError::NoValidation)));
}

#[test]
fn a_run_killed_at_any_step_ends_with_the_same_weights() {
    let settings = LoopSettings {
        ema: 0.5,
        keep_best: true,
        patience: 9,
        checkpoint_every: 3,
        validate_every: 2,
        ..loop_settings(12)
    };
    let task = || LineTask { parts: 2, poisoned: vec![1, 7], ..LineTask::new(12) };
    let without_rate = |fitted: Fitted| -> Vec<CurvePoint> {
        fitted.curve.into_iter().map(|point| CurvePoint { tokens_per_s: 0.0, ..point }).collect()
    };
    let whole = tempfile::tempdir().unwrap();
    let mut reference = task();
    let fitted = reference.run(&settings, whole.path()).unwrap();
    assert_eq!(fitted.skipped, 2);
    let (tokens, curve) = (fitted.tokens, without_rate(fitted));
    for die_at in 1..=12 {
        let folder = tempfile::tempdir().unwrap();
        let mut killed = LineTask { die_at: Some(die_at), ..task() };
        let attempt = std::panic::AssertUnwindSafe(|| killed.run(&settings, folder.path()));
        assert!(std::panic::catch_unwind(attempt).is_err());
        let mut again = task();
        let resumed = again.run(&settings, folder.path()).unwrap();
        assert_eq!(resumed.tokens, tokens);
        assert_eq!(without_rate(resumed), curve, "killed at {die_at}");
        assert_eq!(again.line.values(), reference.line.values(), "killed at {die_at}");
        clear(folder.path()).unwrap();
        assert!(!folder.path().join("resume").exists());
    }
}

#[test]
fn a_state_of_another_run_or_an_older_form_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut killed = LineTask { die_at: Some(3), ..LineTask::new(4) };
    let attempt = std::panic::AssertUnwindSafe(|| killed.run(&loop_settings(4), folder.path()));
    assert!(std::panic::catch_unwind(attempt).is_err());
    let mut task = LineTask::new(4);
    let optimizer = AdamW::new(ParameterSet::all(&task.line), AdamWSettings::default());
    let other = run(&mut task, optimizer, &loop_settings(4), "another", folder.path(), &mut |_| {});
    assert!(matches!(other, Err(FitError::OtherRun { .. })));
    let state = folder.path().join("resume/step-2");
    std::fs::rename(state.join("state.toml"), state.join("state.json")).unwrap();
    assert!(matches!(LineTask::new(4).run(&loop_settings(4), folder.path()), Err(FitError::OtherRun { .. })));
}

proptest! {
    #[test]
    fn the_schedule_rises_to_its_peak_and_never_rises_after(
        warmup in 0u64..50, more in 1u64..200, floor in 0.0f64..1.0, peak in 1e-6f64..1.0,
    ) {
        let schedule = Schedule { peak, warmup, total: warmup + more, floor };
        let rates: Vec<f64> = (1..=schedule.total + 3).map(|step| schedule.rate(step)).collect();
        let rises = warmup.saturating_sub(1) as usize;
        prop_assert!(rates[..rises + 1].is_sorted());
        prop_assert!(rates[rises..].is_sorted_by(|a, b| a + 1e-12 >= *b));
        prop_assert!(rates.iter().all(|rate| (0.0..=peak * (1.0 + 1e-12)).contains(rate)));
        prop_assert!((rates[schedule.total as usize - 1] - peak * floor).abs() < 1e-12);
    }
}
