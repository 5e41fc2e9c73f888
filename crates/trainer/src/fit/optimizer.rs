//! AdamW with decoupled weight decay and gradient clipping; one pass over memory per tensor.
//!
//! Called after each backward. Deterministic: the norm adds up in a fixed order.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::FitError;
use super::gradients::{Gradients, PIECE};
use super::groups::ParameterSet;
use crate::nn::{FileError, TensorFile};

/// Settings of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWSettings {
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean square.
    pub beta2: f64,
    /// Keeps the division finite.
    pub epsilon: f64,
    /// Decay per step is learning rate × this; matrices only.
    pub weight_decay: f64,
    /// Longest gradient (L2 over all tensors); longer ones are scaled down.
    pub clip_norm: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.98, epsilon: 1e-9, weight_decay: 0.05, clip_norm: 1.0 }
    }
}

/// What [`AdamW::update`] did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// Length of the unclipped gradient.
    pub norm: f64,
    /// Whether the step was taken: a gradient with a NaN or an infinity in it changes nothing, neither weights nor state.
    pub taken: bool,
}

/// Optimizer state: two moments per trainable value.
pub struct AdamW {
    settings: AdamWSettings,
    set: ParameterSet,
    moments: Vec<Mutex<Moments>>,
    step: u64,
}

#[derive(Clone)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl AdamW {
    /// Fresh state (all moments 0) for these parameters.
    pub fn new(set: ParameterSet, settings: AdamWSettings) -> Self {
        let moments = set
            .trainable()
            .map(|parameter| {
                let zeros = vec![0.0f32; parameter.var.elem_count()];
                Mutex::new(Moments { mean: zeros.clone(), square: zeros })
            })
            .collect();
        Self { settings, set, moments, step: 0 }
    }

    /// What is trained.
    pub fn set(&self) -> &ParameterSet {
        &self.set
    }

    /// Steps taken; skipped ones are not among them.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update at this learning rate, unless the gradient is not finite.
    pub fn update(&mut self, gradients: &Gradients, rate: f64) -> Result<Update, FitError> {
        let norm = gradients.norm()?;
        if !norm.is_finite() {
            return Ok(Update { norm, taken: false });
        }
        self.step += 1;
        let settings = &self.settings;
        let clip = if norm > settings.clip_norm { settings.clip_norm / norm } else { 1.0 };
        let correction1 = 1.0 - settings.beta1.powf(self.step as f64);
        let correction2 = 1.0 - settings.beta2.powf(self.step as f64);
        for ((member, moments), gradient) in self.set.members.iter().zip(&self.moments).zip(&gradients.0) {
            let own_rate = rate * member.rate_scale;
            let weight_decay = member.weight_decay.unwrap_or(settings.weight_decay);
            let decay = if member.parameter.decay { 1.0 - own_rate * weight_decay } else { 1.0 };
            let operation = Step {
                moments,
                clip: clip as f32,
                beta1: settings.beta1 as f32,
                beta2: settings.beta2 as f32,
                step_size: (own_rate / correction1) as f32,
                square_scale: (1.0 / correction2) as f32,
                epsilon: settings.epsilon as f32,
                decay: decay as f32,
            };
            member.parameter.var.inplace_op2(gradient, &operation)?;
        }
        Ok(Update { norm, taken: true })
    }

    /// Writes the moments and the step count (safetensors), atomically.
    pub fn save(&self, path: &Path) -> Result<(), FitError> {
        let mut file = TensorFile::default();
        for (parameter, moments) in self.set.trainable().zip(&self.moments) {
            let moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
            let shape = parameter.var.dims().to_vec();
            file.tensors.push((format!("mean.{}", parameter.name), shape.clone(), moments.mean.clone()));
            file.tensors.push((format!("square.{}", parameter.name), shape, moments.square.clone()));
        }
        file.metadata.insert("step".into(), self.step.to_string());
        Ok(file.write(path)?)
    }

    /// Reads what [`Self::save`] wrote, for the same tensors.
    pub fn restore(&mut self, path: &Path) -> Result<(), FitError> {
        let mut file = TensorFile::read(path)?;
        let step = file.metadata.get("step").and_then(|text| text.parse().ok());
        self.step = step.ok_or_else(|| FileError::content(path, "metadata has no step: not an optimizer file"))?;
        for (parameter, moments) in self.set.trainable().zip(&self.moments) {
            let shape = parameter.var.dims();
            let mean = file.take(path, &format!("mean.{}", parameter.name), shape)?;
            let square = file.take(path, &format!("square.{}", parameter.name), shape)?;
            *moments.lock().unwrap_or_else(PoisonError::into_inner) = Moments { mean, square };
        }
        Ok(())
    }
}

struct Step<'a> {
    moments: &'a Mutex<Moments>,
    clip: f32,
    beta1: f32,
    beta2: f32,
    step_size: f32,
    square_scale: f32,
    epsilon: f32,
    decay: f32,
}

impl InplaceOp2 for Step<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        weights: &mut CpuStorage,
        layout: &Layout,
        gradient: &CpuStorage,
        g_layout: &Layout,
    ) -> CandleResult<()> {
        let CpuStorage::F32(weights) = weights else { bail!("adamw trains f32 tensors") };
        let (Some((start, end)), Some((g_start, g_end))) = (layout.contiguous_offsets(), g_layout.contiguous_offsets())
        else {
            bail!("adamw takes contiguous tensors");
        };
        let gradient = &gradient.as_slice::<f32>()?[g_start..g_end];
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { mean, square } = &mut *moments;
        let pieces = weights[start..end].par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        pieces.zip(mean.par_chunks_mut(PIECE)).zip(square.par_chunks_mut(PIECE)).for_each(|(((w, g), m), s)| {
            for index in 0..w.len() {
                let slope = g[index] * self.clip;
                m[index] = self.beta1 * m[index] + (1.0 - self.beta1) * slope;
                s[index] = self.beta2 * s[index] + (1.0 - self.beta2) * slope * slope;
                let spread = (s[index] * self.square_scale).sqrt() + self.epsilon;
                w[index] = w[index] * self.decay - self.step_size * m[index] / spread;
            }
        });
        Ok(())
    }
}
