//! taiji: a near-online feature service. This file is the map of the crate.
//!
//! Data flows one way, and a room never reaches around its neighbour:
//!
//! ```text
//! event → store → refresh → (prompt → llm → encode → quantize, retrieve, catalogue) → feature → store → api
//! ```
//!
//! `bundle` loads what `refresh` runs (the crate `taiji-trainer` makes it), `live` says what of it is active; `packages` fetches
//! what is too large for the repository; `config`, `admin`, `telemetry`, `backoff`, `checksum`, `clock` and `tls` serve all.

// `unsafe` stands in `llm::binding`, and in one line and the assembly of `cli::program`; elsewhere it is an error.
#![deny(unsafe_code)]

pub mod admin;
pub mod answer;
pub mod api;
pub mod backoff;
pub mod bundle;
pub mod catalogue;
pub mod checksum;
pub mod cli;
pub mod clock;
pub mod columns;
pub mod config;
pub mod due;
pub mod encode;
pub mod erase;
pub mod event;
pub mod feature;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod http;
pub mod ingest;
pub mod kafka;
pub(crate) mod listen;
pub mod live;
pub mod llm;
pub(crate) mod log_id;
pub mod onnx;
pub mod openai;
pub mod packages;
pub mod prompt;
pub mod proto;
pub mod publish;
pub mod quantize;
pub mod refresh;
pub mod retrieve;
pub mod store;
pub mod telemetry;
pub mod tls;
