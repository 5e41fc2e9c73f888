//! Training texts: prompt → completion pairs, and the texts the quantiser is trained on.

use super::PipelineError;
use super::recipe::{Recipe, hash_of};
use crate::prompt::{parse, render};
use crate::train::data::{Dataset, ExampleSettings, SftSource, Split, build_examples};
use crate::train::sft::SftExample;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

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
    pub fn hash(&self) -> Result<String, PipelineError> {
        let pairs = self.train.iter().chain(&self.validation);
        let mut parts: Vec<&str> = pairs.flat_map(|example| [&*example.prompt, &*example.completion]).collect();
        parts.extend(self.codebook.iter().map(String::as_str));
        hash_of(&parts)
    }
}

/// Cuts examples out of the dataset and words them; the wording is drawn by the recipe's seed.
pub fn make_examples(recipe: &Recipe, dataset: &Dataset) -> Texts {
    let mut random = ChaCha8Rng::seed_from_u64(recipe.sft.seed);
    let mut worded = |split: Split| -> Vec<SftExample> {
        let settings = ExampleSettings {
            max_per_user: recipe.data.max_per_user(),
            max_engagements: recipe.prompt.max_engagements,
            ..ExampleSettings::new(split)
        };
        build_examples(dataset, &settings).iter().map(|source| word(recipe, source, &mut random)).collect()
    };
    let train = worded(Split::Train);
    let mut validation = worded(Split::Validation);
    validation.truncate(recipe.sft.validation_examples);
    let codebook = codebook_texts(recipe, dataset, &train);
    Texts { train, validation, codebook }
}

/// The tokenizer is not trained yet, so the token limit of the prompt is watched by the trainer (longer examples are
/// left out there) and by the service (which has a tokenizer).
fn word(recipe: &Recipe, source: &SftSource, random: &mut ChaCha8Rng) -> SftExample {
    SftExample {
        prompt: render(&recipe.prompt, &source.prompt, &|_| 0).text,
        completion: source.completion(recipe.prompt.max_title_chars, random),
    }
}

/// All items, then answers with their reasons, evenly over the examples.
fn codebook_texts(recipe: &Recipe, dataset: &Dataset, train: &[SftExample]) -> Vec<String> {
    let mut texts: Vec<String> = dataset
        .items
        .iter()
        .map(|item| crate::prompt::answer_text(&item.categories, &item.title, recipe.prompt.max_title_chars))
        .collect();
    let wanted = recipe.codebook_texts.saturating_sub(texts.len()).max(1);
    let step = (train.len() / wanted).max(1);
    texts.extend(train.iter().step_by(step).take(wanted).map(|example| parse(&example.completion).embedding_text()));
    texts
}
