//! ONNX Runtime: the library, sessions on it, prepacked weights, and what stands beside a graph.
//!
//! In: a model folder. Out: sessions, a tokenizer, or an error that names the file. Callers: `llm`, `encode`, `openai`.

pub mod folder;
pub mod prepack;
pub mod runtime;

pub use runtime::Provider;
pub use taiji_export::GRAPH_FILE;
