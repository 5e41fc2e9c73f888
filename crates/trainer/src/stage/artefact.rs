//! What stages hand to each other.

use super::StageError;
use crate::progress::Progress;
use std::path::{Path, PathBuf};

/// The type of a stage's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Artefact {
    /// `items.jsonl`, `events.jsonl`, perhaps `users.jsonl` and `labels.jsonl` (each may be `.gz`), and `source.json`.
    Data,
    /// `train.jsonl`, `validation.jsonl`, `codebook.jsonl`, `tokenizer.json`, `prompt.toml`; of the stage that cuts them also
    /// `*.sources.jsonl` (examples before their wording), of the one that chooses pairs `filter.json`.
    Examples,
    /// `train.jsonl`, `validation.jsonl` (prompts with the reasons written for them), `*.planted.jsonl` where it is known which of them
    /// are true, `reason.json`.
    Reasons,
    /// `train.jsonl`, `validation.jsonl` (surprise at the title, aligned with the reasons), `scores.json`.
    Scores,
    /// `codes.tsv`, items with their semantic IDs; `codes.json`, its shape.
    CodeTable,
    /// `train.jsonl`, `validation.jsonl`, `test.jsonl`: users' items as tokens of their codes; `tokenizer.json`.
    Sequences,
    /// A language model in Hugging Face form.
    Checkpoint,
    /// A language model as ONNX graphs.
    Graphs,
    /// `model/`, a text encoder as an ONNX graph, and `external.json`, where it comes from.
    Encoder,
    /// `pq.safetensors`, `health.json`.
    Codebook,
    /// `prefixes.safetensors`: residual centroids, whose codes' prefixes are sparse IDs in experiments.
    PrefixCodebook,
    /// Catalogue and user index.
    Generation,
    /// `judged.json`, figures on held-out users.
    Judgement,
    /// `ranker.safetensors`, `ranker.json` (vocabulary), `onnx/graph.onnx`, `rank_report.json`, `latency.json`.
    Ranker,
    /// `simulator.safetensors`, `simulator.json`: chances of pairs of user and item.
    Simulator,
    /// `roll_outs.jsonl`: answers drawn for held-out users.
    RollOuts,
    /// `backfill.jsonl`, `texts.jsonl`, `vectors.safetensors`, `generations.jsonl`: what the pipeline makes of users as of the past.
    Backfill,
    /// `item_vectors.safetensors`: items by what people do after one another.
    ItemVectors,
    /// `features.jsonl`: what a ranker is given at each point.
    Features,
    /// What the service loads.
    Bundle,
}

impl Artefact {
    /// As messages and hashes name it.
    pub fn name(self) -> &'static str {
        match self {
            Artefact::Data => "data",
            Artefact::Examples => "examples",
            Artefact::Reasons => "reasons",
            Artefact::Scores => "scores",
            Artefact::CodeTable => "code table",
            Artefact::Sequences => "sequences",
            Artefact::Checkpoint => "checkpoint",
            Artefact::Graphs => "graphs",
            Artefact::Encoder => "encoder",
            Artefact::Codebook => "codebook",
            Artefact::PrefixCodebook => "prefix codebook",
            Artefact::Generation => "generation",
            Artefact::Judgement => "judgement",
            Artefact::Ranker => "ranker",
            Artefact::Simulator => "simulator",
            Artefact::RollOuts => "roll-outs",
            Artefact::Backfill => "backfill",
            Artefact::ItemVectors => "item vectors",
            Artefact::Features => "features",
            Artefact::Bundle => "bundle",
        }
    }
}

/// One input of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// Its type.
    pub artefact: Artefact,
    /// Whether the stage does without.
    pub optional: bool,
}

impl Input {
    /// One that must be there.
    pub const fn one(artefact: Artefact) -> Input {
        Input { artefact, optional: false }
    }

    /// One that may be left out.
    pub const fn optional(artefact: Artefact) -> Input {
        Input { artefact, optional: true }
    }
}

/// What a stage is given: the finished folders of its parents, with their hashes, and what it tells through.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    folders: Vec<(Artefact, PathBuf, String)>,
    progress: Progress,
}

impl Inputs {
    /// Nothing yet.
    pub fn new(progress: Progress) -> Inputs {
        Inputs { folders: Vec::new(), progress }
    }

    /// What the stage tells through.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Adds a parent.
    pub fn add(&mut self, artefact: Artefact, folder: PathBuf, hash: String) {
        self.folders.push((artefact, folder, hash));
    }

    /// The folder of an input that may be left out.
    pub fn optional(&self, artefact: Artefact) -> Option<&Path> {
        self.folders.iter().find(|(of, ..)| *of == artefact).map(|(_, folder, _)| folder.as_path())
    }

    /// The folder of an input that must be there; the graph has seen to that.
    pub fn one(&self, artefact: Artefact) -> Result<&Path, StageError> {
        self.optional(artefact).ok_or(StageError::Input { artefact: artefact.name() })
    }

    /// The hash of an input.
    pub fn hash(&self, artefact: Artefact) -> Result<&str, StageError> {
        let found = self.folders.iter().find(|(of, ..)| *of == artefact);
        found.map(|(.., hash)| hash.as_str()).ok_or(StageError::Input { artefact: artefact.name() })
    }
}
