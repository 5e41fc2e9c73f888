//! Where a decoder computes and with what: kernels of our own on the CPU in f32, or candle's plain operations on any device.
//!
//! In: what a recipe says. Out: every operation of the decoder. Called by `decoder` and `linear`.
//!
//! Weights stay where the optimiser is: on the CPU, in f32. Plain operations get a copy on their device and in their precision at
//! every step, and gradients come back the same way; so optimiser, states and checkpoints know nothing of devices.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::attention::{self, AttentionShape, Segment};
use super::dropout::{AttentionDropout, Dropout};
use super::loss::OutputRows;
use super::{ModelError, Objective, embedding, norm, portable};

/// Where a stage trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The CPU, by kernels made for it, in f32.
    #[default]
    Cpu,
    /// The first GPU, in bf16; norms, softmax and the output layer in f32. Needs the cargo feature `cuda`.
    Cuda,
    /// The CPU by the operations that a GPU would take, in f32: several times slower, to judge them by.
    Plain,
}

impl DeviceKind {
    /// As recipes and the command line write it.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Cpu => "cpu",
            DeviceKind::Cuda => "cuda",
            DeviceKind::Plain => "plain",
        }
    }
}

/// The operations of one decoder.
#[derive(Debug, Clone)]
pub(super) enum Compute {
    /// `embedding`, `norm`, `attention`, `linear`, `loss`.
    Kernels,
    /// `portable`.
    Plain {
        /// Where.
        device: Device,
        /// Of weights and activations.
        dtype: DType,
    },
}

impl Compute {
    pub(super) fn on(kind: DeviceKind) -> std::result::Result<Self, ModelError> {
        match kind {
            DeviceKind::Cpu => Ok(Compute::Kernels),
            DeviceKind::Plain => Ok(Compute::Plain { device: Device::Cpu, dtype: DType::F32 }),
            DeviceKind::Cuda => match Device::new_cuda(0) {
                Ok(device) => Ok(Compute::Plain { device, dtype: DType::BF16 }),
                Err(error) => Err(ModelError::Device(error.to_string())),
            },
        }
    }

    /// A weight as the operations take it.
    pub(super) fn place(&self, weight: Tensor) -> Result<Tensor> {
        match self {
            Compute::Kernels => Ok(weight),
            Compute::Plain { device, dtype } => weight.to_device(device)?.to_dtype(*dtype),
        }
    }

    /// The output layer's weight: f32 whatever the others are.
    pub(super) fn place_head(&self, weight: Tensor) -> Result<Tensor> {
        match self {
            Compute::Kernels => Ok(weight),
            Compute::Plain { device, .. } => weight.to_device(device),
        }
    }

    pub(super) fn embed(&self, table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        match self {
            Compute::Kernels => embedding::embed(table, tokens),
            Compute::Plain { .. } => portable::embed(table, tokens),
        }
    }

    pub(super) fn rms_norm(&self, x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
        match self {
            Compute::Kernels => norm::rms_norm(x, weight, epsilon),
            Compute::Plain { .. } => portable::rms_norm(x, weight, epsilon),
        }
    }

    pub(super) fn head_norm(
        &self,
        qkv: &Tensor,
        [query, key]: [&Tensor; 2],
        shape: &AttentionShape,
        epsilon: f32,
    ) -> Result<Tensor> {
        match self {
            Compute::Kernels => norm::head_norm(qkv, query, key, shape, epsilon),
            Compute::Plain { .. } => portable::head_norm(qkv, query, key, shape, epsilon),
        }
    }

    pub(super) fn attention(
        &self,
        qkv: &Tensor,
        bias: Option<&Tensor>,
        segments: &Arc<Vec<Segment>>,
        shape: &Arc<AttentionShape>,
        dropout: Option<AttentionDropout>,
    ) -> Result<Tensor> {
        match self {
            Compute::Kernels => attention::attention(qkv, bias, segments, shape, dropout),
            Compute::Plain { .. } => portable::attention(qkv, bias, segments, shape, dropout),
        }
    }

    pub(super) fn dropout(&self, x: &Tensor, dropout: Dropout, place: u64) -> Result<Tensor> {
        match self {
            Compute::Kernels => dropout.apply(x, place),
            Compute::Plain { .. } => portable::dropout(x, dropout, place),
        }
    }

    /// The objective's value, a scalar on the tape.
    pub(super) fn loss(
        &self,
        rows: &OutputRows<'_>,
        objective: &dyn Objective,
    ) -> std::result::Result<Tensor, ModelError> {
        match self {
            Compute::Kernels => rows.loss(objective),
            Compute::Plain { .. } => portable::loss(rows, objective),
        }
    }

    /// Log-likelihood (nats) of each learned row's target.
    pub(super) fn log_likelihoods(&self, rows: &OutputRows<'_>) -> Result<Vec<f64>> {
        match self {
            Compute::Kernels => rows.log_likelihoods(),
            Compute::Plain { .. } => portable::numbers(&portable::log_likelihoods(rows)?),
        }
    }

    /// The same, and the most likely token there.
    pub(super) fn scores(&self, rows: &OutputRows<'_>) -> Result<Vec<(f64, u32)>> {
        match self {
            Compute::Kernels => rows.scores(),
            Compute::Plain { .. } => portable::scores(rows),
        }
    }
}
