//! Judging models on held-out users, of a bundle in the making or a finished one.
//!
//! In: models, a generation, data. Out: [`Judged`], [`Compared`], [`Rounded`]. Callers: `stages::judge`, `taiji-trainer evaluate`, `compare`,
//! `perplexity` and `export`.

mod bundle;
mod compare;
mod rounded;

pub use bundle::{HeldOut, Judged, evaluate_bundle, items_of, judge_held_out, open_bundle};
pub use compare::{Compared, compare_llm};
pub use rounded::{MOST_RATIO, Rounded, Texts, export_judged, perplexity};
