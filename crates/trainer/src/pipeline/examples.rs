//! Training texts: prompt → completion pairs, and the texts the quantiser is trained on.

use super::PipelineError;
use super::recipe::{Recipe, hash_of};
use crate::data::{Dataset, ExampleSettings, SftSource, Split, build_examples};
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::sft::{SftExample, TextTokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use taiji::prompt::{parse, render};

/// Texts the tokenizer is trained on, at most.
const TOKENIZER_TEXTS: usize = 8_000;

/// Everything that is trained on.
pub struct Texts {
    /// For the decoder.
    pub train: Vec<SftExample>,
    /// Targets after those of training.
    pub validation: Vec<SftExample>,
    /// Item texts and answers with reasons, for the quantiser.
    pub codebook: Vec<String>,
}

impl Texts {
    /// Hash of all texts.
    pub fn hash(&self) -> String {
        let pairs = self.train.iter().chain(&self.validation);
        let mut parts: Vec<&str> = pairs.flat_map(|example| [&*example.prompt, &*example.completion]).collect();
        parts.extend(self.codebook.iter().map(String::as_str));
        hash_of(&parts)
    }
}

/// Examples cut out of the dataset, before they are rendered.
pub struct Sources {
    train: Vec<(SftSource, String)>,
    validation: Vec<(SftSource, String)>,
}

/// Cuts examples out of the dataset and words their completions; the wording is drawn by the recipe's seed.
pub fn cut_sources(recipe: &Recipe, dataset: &Dataset) -> Sources {
    let mut random = ChaCha8Rng::seed_from_u64(recipe.sft.seed);
    let mut cut = |split: Split| -> Vec<(SftSource, String)> {
        let settings = ExampleSettings {
            max_per_user: recipe.data.max_per_user(),
            max_engagements: recipe.prompt.max_engagements,
            informative_only: recipe.data.informative_only(),
            ..ExampleSettings::new(split)
        };
        let worded = |source: SftSource| {
            let completion = source.completion(recipe.prompt.max_title_chars, &mut random);
            (source, completion)
        };
        build_examples(dataset, &settings).into_iter().map(worded).collect()
    };
    let train = cut(Split::Train);
    let mut validation = cut(Split::Validation);
    let step = validation.len().div_ceil(recipe.sft.validation_examples.max(1)).max(1);
    validation = validation.into_iter().step_by(step).collect();
    Sources { train, validation }
}

/// The tokenizer of a recipe: the checkpoint's that it begins from, else trained on prompts and completions, without a limit on
/// the prompts.
pub fn train_tokenizer(recipe: &Recipe, sources: &Sources) -> Result<TextTokenizer, PipelineError> {
    if let Some(folder) = &recipe.sft.checkpoint {
        return Ok(TextTokenizer::load(&folder.join(TOKENIZER_FILE))?);
    }
    let step = (sources.train.len() / TOKENIZER_TEXTS).max(1);
    let texts: Vec<String> = sources
        .train
        .iter()
        .step_by(step)
        .map(|(source, completion)| render(&recipe.prompt, &source.prompt, &|_| 0).text + completion)
        .collect();
    Ok(TextTokenizer::train(texts.iter().map(String::as_str), recipe.sft.vocab, &[])?)
}

/// Renders every example as serving would, token limit included.
pub fn make_texts(recipe: &Recipe, dataset: &Dataset, sources: &Sources, tokenizer: &TextTokenizer) -> Texts {
    // A text that cannot be encoded cannot be trained on either; the trainer reports it.
    let count = |text: &str| tokenizer.encode(text).map(|ids| ids.len()).unwrap_or(0);
    let rendered = |(source, completion): &(SftSource, String)| SftExample {
        prompt: render(&recipe.prompt, &source.prompt, &count).text,
        completion: completion.clone(),
    };
    let train: Vec<SftExample> = sources.train.iter().map(rendered).collect();
    let validation = sources.validation.iter().map(rendered).collect();
    let codebook = codebook_texts(recipe, dataset, &train);
    Texts { train, validation, codebook }
}

/// All items, then answers with their reasons, evenly over the examples.
fn codebook_texts(recipe: &Recipe, dataset: &Dataset, train: &[SftExample]) -> Vec<String> {
    let mut texts: Vec<String> = dataset
        .items
        .iter()
        .map(|item| taiji::prompt::answer_text(&item.categories, &item.title, recipe.prompt.max_title_chars))
        .collect();
    let wanted = recipe.codebook_texts.saturating_sub(texts.len()).max(1);
    let step = (train.len() / wanted).max(1);
    texts.extend(train.iter().step_by(step).take(wanted).map(|example| parse(&example.completion).embedding_text()));
    texts
}
