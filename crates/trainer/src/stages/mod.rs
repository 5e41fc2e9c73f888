//! The kinds of stages that a recipe can name.
//!
//! In: a kind and its settings. Out: a [`Stage`]. Callers: `recipe`. Each file is one kind: it reads its parents' folders, calls the
//! room that does the work, and writes its own folder. What a folder holds is said at [`Artefact`](crate::stage::Artefact).

mod align;
mod answers;
mod answers_worth;
mod backfill;
mod before;
mod best_of;
mod checkpoint;
mod code_table;
mod codebook;
mod collaborative;
mod encoder;
mod examples;
mod export;
mod features;
mod files;
mod filter;
mod generative;
mod generative_judge;
mod index;
mod judge;
mod prefix_codebook;
mod publish;
mod rank;
mod rank_figures;
mod reason;
mod roll_outs;
mod sampled_labels;
mod score;
mod sequences;
mod served;
mod settings;
mod sft;
mod simulator;
mod simulator_judge;
mod source;
mod synth;

pub use align::{AlignSources, Written, open_align};
pub use encoder::settings as encoder_settings;
pub use examples::read_examples;
pub use judge::JUDGED_FILE;
pub use settings::{Context, KeyError};

use crate::stage::Stage;
use std::sync::Arc;

type Make = fn(toml::Table, &Context) -> Result<Arc<dyn Stage>, KeyError>;

/// One kind.
struct Kind {
    name: &'static str,
    /// Whether it has a setting `seed`.
    seeded: bool,
    make: Make,
}

const fn kind(name: &'static str, seeded: bool, make: Make) -> Kind {
    Kind { name, seeded, make }
}

/// All kinds; a new one is a file here and a line in this list.
const KINDS: [Kind; 31] = [
    kind("synth", true, synth::make),
    kind("files", false, files::make),
    kind("before", false, before::make),
    kind("sampled-labels", true, sampled_labels::make),
    kind("checkpoint", false, checkpoint::make),
    kind("examples", true, examples::make),
    kind("reason", true, reason::make),
    kind("score", false, score::make),
    kind("filter", true, filter::make),
    kind("sft", true, sft::make),
    kind("export", false, export::make),
    kind("encoder", false, encoder::make),
    kind("codebook", true, codebook::make),
    kind("prefix-codebook", true, prefix_codebook::make),
    kind("code-table", false, code_table::make),
    kind("sequences", false, sequences::make),
    kind("generative", true, generative::make),
    kind("generative-judge", false, generative_judge::make),
    kind("index", false, index::make),
    kind("judge", true, judge::make),
    kind("answers", false, answers::make),
    kind("backfill", false, backfill::make),
    kind("collaborative", true, collaborative::make),
    kind("features", true, features::make),
    kind("rank", true, rank::make),
    kind("simulator", true, simulator::make),
    kind("simulator-judge", false, simulator_judge::make),
    kind("roll-outs", true, roll_outs::make),
    kind("align", true, align::make),
    kind("best-of", false, best_of::make),
    kind("publish", false, publish::make),
];

/// A stage of a kind with its settings; refuses unknown kinds and keys, and values that cannot work.
pub fn make(kind: &str, settings: toml::Table, context: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let known = KINDS.iter().find(|known| known.name == kind);
    let names = || KINDS.map(|known| known.name).join(", ");
    let known = known.ok_or_else(|| KeyError::new("kind", format!("{kind:?} is none of {}", names())))?;
    (known.make)(settings, context)
}

/// Whether stages of a kind have a setting `device`.
pub fn has_device(kind: &str) -> bool {
    ["sft", "align"].contains(&kind)
}

/// Whether stages of a kind have a setting `seed`.
pub fn is_seeded(kind: &str) -> bool {
    KINDS.iter().any(|known| known.name == kind && known.seeded)
}
