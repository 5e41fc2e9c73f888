//! `examples`: prompt → completion texts, the texts the quantiser is trained on, and the tokenizer.

use super::settings::{Context, KeyError, read, value};
use super::source::{Source, dataset};
use crate::data::{Dataset, ExampleSettings, SftSource, Split, build_examples, write_jsonl};
use crate::fit::is_default;
use crate::lift::history_text;
use crate::reason::Origin;
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::sft::{SftExample, TextTokenizer};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::{PromptMode, PromptSchema, THINK_CLOSE, render};

/// Texts the tokenizer is trained on, at most.
const TOKENIZER_TEXTS: usize = 8_000;
/// Tokens of a tokenizer that is trained here, unless told otherwise.
const DEFAULT_VOCAB: usize = 2_048;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Most examples cut out of one user.
    max_per_user: usize,
    /// Leave out targets that nothing in the history points to. By default for data that are not generated: true reasons, as
    /// a generated world has them, are all kept.
    informative_only: Option<bool>,
    /// Decides the wording.
    #[serde(default = "default_seed")]
    seed: u64,
    /// Tokens of the tokenizer, special ones included; not with a checkpoint, which brings its own.
    vocab: Option<usize>,
    /// Most examples for validation.
    #[serde(default = "default_validation")]
    validation_examples: usize,
    /// Texts for the quantiser, at least; items first, then answers with reasons.
    #[serde(default = "default_codebook_texts")]
    codebook_texts: usize,
    /// What they are of.
    #[serde(default, skip_serializing_if = "is_default")]
    codebook_of: CodebookOf,
    /// By mode of the prompt: the share of the examples that is written in it; 1 where nothing is said. An example written in
    /// two modes counts twice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    share: BTreeMap<PromptMode, f64>,
    /// How prompts look, and in which modes; becomes the bundle's `prompt.toml`.
    prompt: PromptSchema,
}

/// Texts that a quantiser is trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CodebookOf {
    /// Items, then answers with their reasons: what is served.
    #[default]
    Answers,
    /// Histories before the examples' targets: what is embedded without a language model.
    Histories,
}

fn default_seed() -> u64 {
    7
}

fn default_validation() -> usize {
    256
}

fn default_codebook_texts() -> usize {
    12_000
}

struct Examples {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings = checked(table)?;
    let value = value(&settings)?;
    Ok(Arc::new(Examples { settings, value }))
}

/// Read and checked.
fn checked(table: toml::Table) -> Result<Settings, KeyError> {
    let settings: Settings = read(table)?;
    settings.prompt.validate().map_err(KeyError::other)?;
    for (mode, share) in &settings.share {
        if !settings.prompt.modes.contains(mode) {
            return Err(KeyError::new("share", format!("{} is none of the prompt's modes", mode.name())));
        }
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(KeyError::new("share", format!("{} must be above 0 and at most 1, got {share}", mode.name())));
        }
    }
    Ok(settings)
}

impl Stage for Examples {
    fn kind(&self) -> &'static str {
        "examples"
    }

    fn version(&self) -> u32 {
        2
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::optional(Artefact::Checkpoint)]
    }

    fn output(&self) -> Artefact {
        Artefact::Examples
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let (dataset, source) = dataset(inputs)?;
        let sources = self.cut(&dataset, &source);
        let tokenizer = match (inputs.optional(Artefact::Checkpoint), self.settings.vocab) {
            (Some(checkpoint), None) => tokenizer(checkpoint)?,
            (Some(_), Some(_)) => {
                let message = "the checkpoint brings its own tokenizer: leave vocab out".to_string();
                return Err(StageError::Setting { key: "vocab", message });
            }
            (None, vocab) => self.train_tokenizer(&sources, vocab.unwrap_or(DEFAULT_VOCAB))?,
        };
        // A text that cannot be encoded cannot be trained on either; the trainer reports it.
        let count = |text: &str| tokenizer.encode(text).map(|ids| ids.len()).unwrap_or(0);
        // Rendered as serving would, token limit included.
        let rendered = |Worded { source, mode, completion }: &Worded| SftExample {
            prompt: render(&self.settings.prompt, &source.prompt, *mode, &count).text,
            completion: completion.clone(),
        };
        let train: Vec<SftExample> = sources.train.iter().map(rendered).collect();
        let validation: Vec<SftExample> = sources.validation.iter().map(rendered).collect();
        self.write_origins(&folder.join("train.sources.jsonl"), &sources.train, &train)?;
        self.write_origins(&folder.join("validation.sources.jsonl"), &sources.validation, &validation)?;
        inputs.progress().say(&format!("{} for training, {} for validation", train.len(), validation.len()));
        write_jsonl(&folder.join("train.jsonl"), train.iter().map(Line::new))?;
        write_jsonl(&folder.join("validation.jsonl"), validation.iter().map(Line::new))?;
        write_jsonl(&folder.join("codebook.jsonl"), self.codebook_texts(&dataset, &sources.train, &train))?;
        let path = folder.join(TOKENIZER_FILE);
        std::fs::write(&path, tokenizer.to_json()?).map_err(StageError::io(&path))?;
        Ok(self.settings.prompt.save(&folder.join("prompt.toml"))?)
    }
}

/// Examples cut out of the dataset and worded, before their prompts are rendered.
struct Sources {
    train: Vec<Worded>,
    validation: Vec<Worded>,
}

/// An example in one mode.
struct Worded {
    source: SftSource,
    mode: PromptMode,
    completion: String,
}

impl Examples {
    /// Cuts examples out of the dataset and words their completions; the wording is drawn by the seed.
    fn cut(&self, dataset: &Dataset, source: &Source) -> Sources {
        let settings = &self.settings;
        let mut random = ChaCha8Rng::seed_from_u64(settings.seed);
        let mut cut = |split: Split| -> Vec<Worded> {
            let how = ExampleSettings {
                max_per_user: settings.max_per_user,
                max_engagements: settings.prompt.max_engagements,
                informative_only: settings.informative_only.unwrap_or(*source == Source::Files),
                ..ExampleSettings::new(split)
            };
            let mut worded = Vec::new();
            for (place, source) in build_examples(dataset, &how).into_iter().enumerate() {
                for mode in self.modes_at(place) {
                    let completion = source.completion(mode, settings.prompt.max_title_chars, &mut random);
                    worded.push(Worded { source: source.clone(), mode, completion });
                }
            }
            worded
        };
        let train = cut(Split::Train);
        let mut validation = cut(Split::Validation);
        let step = validation.len().div_ceil(settings.validation_examples.max(1)).max(1);
        validation = validation.into_iter().step_by(step).collect();
        Sources { train, validation }
    }

    /// The modes that the example at this place is written in: each mode has its share, evenly over the examples.
    fn modes_at(&self, place: usize) -> impl Iterator<Item = PromptMode> {
        let Settings { prompt, share, .. } = &self.settings;
        prompt.modes.iter().copied().filter(move |mode| {
            let share = share.get(mode).copied().unwrap_or(1.0);
            let written = |count: usize| (count as f64 * share).round() as usize;
            written(place + 1) > written(place)
        })
    }

    /// Trained on prompts and completions, without a limit on the prompts.
    fn train_tokenizer(&self, sources: &Sources, vocab: usize) -> Result<TextTokenizer, StageError> {
        let step = (sources.train.len() / TOKENIZER_TEXTS).max(1);
        let chosen = sources.train.iter().step_by(step);
        let text = |Worded { source, mode, completion }: &Worded| {
            render(&self.settings.prompt, &source.prompt, *mode, &|_| 0).text + completion
        };
        let texts: Vec<String> = chosen.map(text).collect();
        Ok(TextTokenizer::train(texts.iter().map(String::as_str), vocab, &[])?)
    }

    /// What reasons are written for: the examples before their wording, once each, with the prompts as they were rendered, up to where
    /// the reasoning begins.
    fn write_origins(&self, path: &Path, sources: &[Worded], examples: &[SftExample]) -> Result<(), StageError> {
        let first = self.settings.prompt.mode();
        let origin = |(Worded { source, .. }, example): (&Worded, &SftExample)| Origin {
            user_id: source.user_id.clone(),
            prompt: example.prompt.strip_suffix(THINK_CLOSE).unwrap_or(&example.prompt).to_string(),
            categories: source.target.categories.clone(),
            title: source.target.title.clone(),
            reasons: source.reasons.clone(),
        };
        let of_first = sources.iter().zip(examples).filter(|(worded, _)| worded.mode == first);
        write_jsonl(path, of_first.map(origin))?;
        Ok(())
    }

    /// All items, then answers with their reasons, evenly over the examples; or histories, evenly.
    fn codebook_texts(&self, dataset: &Dataset, sources: &[Worded], train: &[SftExample]) -> Vec<String> {
        if self.settings.codebook_of == CodebookOf::Histories {
            let step = (sources.len() / self.settings.codebook_texts.max(1)).max(1);
            let chosen = sources.iter().step_by(step).take(self.settings.codebook_texts);
            return chosen.map(|worded| history_text(&worded.source.prompt)).collect();
        }
        let chars = self.settings.prompt.max_title_chars;
        let items = dataset.items.iter();
        let mut texts: Vec<String> =
            items.map(|item| taiji::prompt::answer_text(&item.categories, &item.title, chars)).collect();
        let wanted = self.settings.codebook_texts.saturating_sub(texts.len()).max(1);
        let step = (train.len() / wanted).max(1);
        texts.extend(train.iter().step_by(step).take(wanted).map(SftExample::embedding_text));
        texts
    }
}

/// One example in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) prompt: String,
    pub(super) completion: String,
}

impl Line {
    fn new(example: &SftExample) -> Line {
        Line { prompt: example.prompt.clone(), completion: example.completion.clone() }
    }
}

/// The examples of a folder before their wording: `train` or `validation`.
pub fn read_origins(folder: &Path, split: &str) -> Result<Vec<Origin>, StageError> {
    read_lines(&folder.join(format!("{split}.sources.jsonl")))
}

/// The tokenizer in a folder of examples, sequences or a checkpoint.
pub fn tokenizer(folder: &Path) -> Result<TextTokenizer, StageError> {
    Ok(TextTokenizer::load(&folder.join(TOKENIZER_FILE))?)
}

/// The examples of a file, in order.
pub fn read_examples(path: &Path) -> Result<Vec<SftExample>, StageError> {
    let lines: Vec<Line> = read_lines(path)?;
    Ok(lines.into_iter().map(|Line { prompt, completion }| SftExample { prompt, completion }).collect())
}

/// The texts for the quantiser in a folder of examples.
pub fn read_texts(folder: &Path) -> Result<Vec<String>, StageError> {
    read_lines(&folder.join("codebook.jsonl"))
}

/// The values of a file, one a line.
pub fn read_lines<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Vec<T>, StageError> {
    let file = std::fs::File::open(path).map_err(StageError::io(path))?;
    let mut read = Vec::new();
    for (place, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(StageError::io(path))?;
        read.push(serde_json::from_str(&line).map_err(|error| StageError::File {
            path: path.display().to_string(),
            message: format!("line {}: {error}", place + 1),
        })?);
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::synth::{SynthSettings, WorldKind, generate};
    use taiji::prompt::parse;

    fn made(more: &str, modes: &str) -> Result<Examples, KeyError> {
        let recipe = format!(
            "max_per_user = 2\n{more}\n[prompt]\nid = 'x'\nmax_engagements = 12\nmax_queries = 2\n\
             max_title_chars = 48\nmax_prompt_tokens = 4000\nmax_new_tokens = 96\n{modes}"
        );
        let settings = checked(toml::from_str(&recipe).unwrap())?;
        Ok(Examples { value: value(&settings)?, settings })
    }

    #[test]
    fn each_example_is_written_in_the_modes_asked_for() {
        let world = SynthSettings { kind: WorldKind::Reason, users: 40, seed: 3, ..SynthSettings::default() };
        let dataset = generate(&world).dataset();
        let counts = |more: &str, modes: &str| {
            let sources = made(more, modes).unwrap().cut(&dataset, &Source::Synth { seed: 3 });
            let of = |wanted| sources.train.iter().filter(|worded| worded.mode == wanted).count();
            for Worded { mode, completion, .. } in sources.train.iter().chain(&sources.validation) {
                let parsed = parse(completion, *mode);
                assert!(parsed.format_ok, "{completion}");
                assert_eq!(parsed.reasoning.is_empty(), *mode == PromptMode::NoThink, "{completion}");
            }
            [of(PromptMode::Think), of(PromptMode::NoThink)]
        };
        assert_eq!(counts("", ""), [80, 0]);
        assert_eq!(counts("", "modes = ['think', 'no_think']"), [80, 80]);
        assert_eq!(counts("", "modes = ['no_think']"), [0, 80]);
        assert_eq!(counts("share = { no_think = 0.25 }", "modes = ['think', 'no_think']"), [80, 20]);
    }

    #[test]
    fn a_share_of_what_is_not_written_is_refused_and_nothing_said_leaves_the_settings_as_they_were() {
        assert!(made("share = { no_think = 0.5 }", "").err().unwrap().message.contains("no_think is none"));
        assert!(made("share = { think = 0.0 }", "").err().unwrap().message.contains("above 0"));
        let before = made("", "").unwrap().value;
        assert!(before.get("share").is_none() && before["prompt"].get("modes").is_none(), "{before}");
    }
}
