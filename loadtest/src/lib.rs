//! Load on a running taiji, what it answered and how fast; and the figures that benches of this project keep.
//!
//! [`figures`] is the type that every bench writes. [`load`] makes calls by [`arrivals`] and [`popularity`], `scenario` says which and
//! judges, `report` draws. [`smallest`] and [`raw`] are what a read is held beside, `bench_read` holds it.

pub mod arrivals;
mod bench_read;
pub mod cli;
pub mod figures;
pub mod load;
pub mod popularity;
mod process;
mod provenance;
pub mod raw;
mod raw_command;
pub mod report;
mod rig;
mod scenario;
pub mod smallest;
