//! One table of metric names, and the structs whose `emit` writes log line and counter together.
//!
//! In: happenings of every room. Out: Prometheus text on the admin port, log lines. Callers: all rooms.

pub mod events;
pub mod kafka;
pub mod metrics;
mod progress;
pub mod readiness;
mod repeated;

pub use metrics::Metrics;
pub use progress::{Progress, Stall, Work};
pub use readiness::Readiness;
