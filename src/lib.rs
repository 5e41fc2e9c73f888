//! taiji: a near-online feature service. This file is the map of the crate.
//!
//! Data flows one way, and a room never reaches around its neighbour:
//!
//! ```text
//! event → store → refresh → (prompt → llm → encode → quantize, retrieve, catalogue) → feature → store → api
//! ```
//!
//! `bundle` loads what `refresh` runs; `train` makes what `bundle` loads; `config`, `admin` and `telemetry` serve all.

pub mod encode;
pub mod event;
pub mod feature;
pub mod llm;
pub mod prompt;
pub mod quantize;
pub mod store;
pub mod train;
