//! AdamW with decoupled weight decay, gradient clipping, and a warm-up + cosine schedule; one pass over memory per tensor.
//!
//! Called by `sft` after each backward. Deterministic: the norm adds up in a fixed order.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::ModelError;
use super::checkpoint::{TensorFile, read_tensors, write_tensors};
use super::decoder::Parameter;
use super::tape::with_values;

/// Values updated by one task.
const PIECE: usize = 16 * 1024;

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

/// Linear warm-up to `peak`, then a half cosine down to `peak · floor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// All steps.
    pub total: u64,
    /// Last learning rate as a part of the peak.
    pub floor: f64,
}

impl Schedule {
    /// Learning rate of a step, counted from 1.
    pub fn rate(&self, step: u64) -> f64 {
        if step <= self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let length = self.total.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

/// Optimizer state: two moments per trainable value.
pub struct AdamW {
    settings: AdamWSettings,
    parameters: Vec<Parameter>,
    moments: Vec<Mutex<Moments>>,
    step: u64,
}

#[derive(Clone)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl AdamW {
    /// Fresh state (all moments 0) for these tensors.
    pub fn new(parameters: Vec<Parameter>, settings: AdamWSettings) -> Self {
        let moments = parameters
            .iter()
            .map(|parameter| {
                let zeros = vec![0.0f32; parameter.var.elem_count()];
                Mutex::new(Moments { mean: zeros.clone(), square: zeros })
            })
            .collect();
        Self { settings, parameters, moments, step: 0 }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update at this learning rate; returns the norm of the unclipped gradient.
    pub fn update(&mut self, gradients: &GradStore, rate: f64) -> Result<f64, ModelError> {
        let norm = self.gradient_norm(gradients)?;
        self.step += 1;
        if !norm.is_finite() {
            return Err(ModelError::NotFinite { norm, step: self.step });
        }
        let settings = &self.settings;
        let clip = if norm > settings.clip_norm { settings.clip_norm / norm } else { 1.0 };
        let correction1 = 1.0 - settings.beta1.powf(self.step as f64);
        let correction2 = 1.0 - settings.beta2.powf(self.step as f64);
        for (parameter, moments) in self.parameters.iter().zip(&self.moments) {
            let Some(gradient) = gradients.get(&parameter.var) else {
                return Err(ModelError::MissingGradient(parameter.name.clone()));
            };
            let decay = if parameter.decay { 1.0 - rate * settings.weight_decay } else { 1.0 };
            let operation = Update {
                moments,
                clip: clip as f32,
                beta1: settings.beta1 as f32,
                beta2: settings.beta2 as f32,
                step_size: (rate / correction1) as f32,
                square_scale: (1.0 / correction2) as f32,
                epsilon: settings.epsilon as f32,
                decay: decay as f32,
            };
            parameter.var.inplace_op2(&gradient.contiguous()?, &operation)?;
        }
        Ok(norm)
    }

    fn gradient_norm(&self, gradients: &GradStore) -> Result<f64, ModelError> {
        let mut total = 0.0f64;
        for parameter in &self.parameters {
            let Some(gradient) = gradients.get(&parameter.var) else {
                return Err(ModelError::MissingGradient(parameter.name.clone()));
            };
            let pieces: Vec<f64> = with_values(&gradient.contiguous()?, |values| {
                values.par_chunks(PIECE).map(|piece| piece.iter().map(|v| f64::from(*v).powi(2)).sum()).collect()
            })?;
            total += pieces.iter().sum::<f64>();
        }
        Ok(total.sqrt())
    }

    /// Writes the moments and the step count (safetensors), atomically.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let mut file = TensorFile::default();
        for (parameter, moments) in self.parameters.iter().zip(&self.moments) {
            let moments = moments.lock().unwrap_or_else(PoisonError::into_inner);
            let shape = parameter.var.dims().to_vec();
            file.tensors.push((format!("mean.{}", parameter.name), shape.clone(), moments.mean.clone()));
            file.tensors.push((format!("square.{}", parameter.name), shape, moments.square.clone()));
        }
        file.metadata.insert("step".into(), self.step.to_string());
        write_tensors(path, &file)
    }

    /// Reads what [`Self::save`] wrote, for the same tensors.
    pub fn restore(&mut self, path: &Path) -> Result<(), ModelError> {
        let mut file = read_tensors(path)?;
        let wrong = |message: String| ModelError::Checkpoint { path: path.to_owned(), message };
        let step = file.metadata.get("step").and_then(|text| text.parse().ok());
        self.step = step.ok_or_else(|| wrong("metadata has no step: not an optimizer file".into()))?;
        for (parameter, moments) in self.parameters.iter().zip(&self.moments) {
            let shape = parameter.var.dims();
            let mean = file.take(path, &format!("mean.{}", parameter.name), shape)?;
            let square = file.take(path, &format!("square.{}", parameter.name), shape)?;
            *moments.lock().unwrap_or_else(PoisonError::into_inner) = Moments { mean, square };
        }
        Ok(())
    }
}

struct Update<'a> {
    moments: &'a Mutex<Moments>,
    clip: f32,
    beta1: f32,
    beta2: f32,
    step_size: f32,
    square_scale: f32,
    epsilon: f32,
    decay: f32,
}

impl InplaceOp2 for Update<'_> {
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
