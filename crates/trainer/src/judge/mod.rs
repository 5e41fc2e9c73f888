//! Judging models on held-out users, of a bundle in the making or a finished one.
//!
//! In: models, a generation, data. Out: [`Judged`], [`Compared`]. Callers: `stages::judge`, `taiji-trainer evaluate` and `compare`.

mod bundle;
mod compare;

pub use bundle::{Judged, evaluate_bundle, items_of, judge_held_out, open_bundle};
pub use compare::{Compared, compare_llm};
