//! The trainer: makes everything the service loads. Called by `taiji-trainer` only.
//!
//! `synth`/`data` (events, items) → `sft` (tokenizer, decoder) → `taiji_export` (ONNX) → `codebook` (PQ) → `index` (users) →
//! `evaluate`, `judge` → a bundle. `stages` has each as a stage, `recipe` chains them.

pub mod codebook;
pub mod data;
mod draw;
pub mod evaluate;
pub mod fit;
pub mod index;
pub mod judge;
pub mod model;
pub mod models;
pub mod nn;
pub mod objective;
pub mod progress;
pub mod reason;
pub mod recipe;
pub mod report;
pub mod sft;
pub mod stage;
pub mod stages;
pub mod stats;
pub mod synth;
