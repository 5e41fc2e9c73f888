//! The trainer: makes everything the service loads. Called by `taiji-trainer` only.
//!
//! `synth`/`data` (events, items) → `sft` (tokenizer, decoder) → `taiji_export` (ONNX) → `codebook` (PQ) → `index` (users) →
//! `evaluate`, `judge` → a bundle. Beside it `semantic_ids` (items as codes) → `generative` (a decoder that writes the next item's).
//! `rank` (a ranker) → `simulate` (its scores as a frozen table); `lift` (features as of the past, with which a ranker is trained).
//! `reward` values answers, `weighting` makes one advantage of several rewards, `align` trains a policy by it; `pareto_lab` compares its rules. `stages` has each as a stage, `recipe` chains them.

pub mod align;
pub mod codebook;
pub mod data;
pub mod data_export;
mod draw;
pub mod evaluate;
pub mod fit;
pub mod generative;
pub mod index;
pub mod judge;
pub mod lift;
pub mod model;
pub mod models;
pub mod nn;
pub mod objective;
pub mod off_policy;
pub mod pareto_lab;
pub mod progress;
pub mod rank;
pub mod reason;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod rewards;
pub mod semantic_ids;
pub mod sft;
pub mod simulate;
pub mod stage;
pub mod stages;
pub mod stats;
pub mod synth;
pub mod weighting;
