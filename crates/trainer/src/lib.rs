//! The trainer: makes everything the service loads. Called by `taiji-trainer` only.
//!
//! `synth`/`data` (events, items) → `sft` (tokenizer, decoder) → `taiji_export` (ONNX) → `codebook` (PQ) → `index` (users) →
//! `evaluate` → published as a bundle by `pipeline`.

pub mod codebook;
pub mod data;
mod draw;
pub mod evaluate;
pub mod fit;
pub mod index;
pub mod model;
pub mod models;
pub mod nn;
pub mod objective;
pub mod pipeline;
pub mod reason;
pub mod sft;
pub mod synth;
