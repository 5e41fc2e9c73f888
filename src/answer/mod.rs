//! From what a user did to what is said of them: render → generate → parse → ground → embed → codes. It stands once: what a bundle
//! is judged by and what it is served with cannot differ.
//!
//! In: [`PromptInput`]s. Out: [`Answer`]s. Callers: `refresh` (one user at a time, many at once), the trainer (users of an index,
//! held-out users).

mod input;
#[cfg(test)]
mod tests;

pub use input::{Engagement, history_input, plain, prompt_input};

use crate::catalogue::{Catalogue, Grounding};
use crate::encode::{EncodeError, Encoder};
use crate::llm::{GenerateRequest, Generation, LlmEngine, LlmError, Priority};
use crate::prompt::{ParsedAnswer, PromptInput, PromptMode, PromptSchema, RenderedPrompt, parse, render};
use crate::quantize::{PqCodebook, QuantizeError};
use futures::future::try_join_all;
use std::sync::Arc;
use std::time::Instant;
use thiserror::Error;

/// Why there is no answer.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum AnswerError {
    #[error(transparent)]
    Llm(#[from] LlmError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    #[error("the encoder's task was cancelled or panicked: {0}")]
    Task(String),
}

/// What was found for one user.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// As generated.
    pub text: String,
    /// Reasoning and answer.
    pub parsed: ParsedAnswer,
    /// What the answer talks about.
    pub grounding: Grounding,
    /// Of answer and reasoning; norm 1.
    pub vector: Vec<f32>,
    /// Of the vector, one a slot of the codebook.
    pub codes: Vec<u16>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub new_tokens: usize,
}

/// A text as vector and codes.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// Norm 1.
    pub vector: Vec<f32>,
    /// One a slot of the codebook.
    pub codes: Vec<u16>,
}

/// The parts of one bundle that make answers.
#[derive(Clone, Copy)]
pub struct Answering<'a> {
    /// What the prompt looks like.
    pub schema: &'a PromptSchema,
    /// Whether to reason before the answer.
    pub mode: PromptMode,
    /// Writes reasoning and answer.
    pub llm: &'a dyn LlmEngine,
    /// Text → vector.
    pub encoder: &'a Arc<dyn Encoder>,
    /// Vector → codes.
    pub codebook: &'a PqCodebook,
    /// What answers may be grounded to.
    pub catalogue: &'a Catalogue,
}

impl Answering<'_> {
    /// Prompt of an input, cut to the schema's limit as the LLM counts tokens.
    pub fn prompt(&self, input: &PromptInput) -> RenderedPrompt {
        render(self.schema, input, self.mode, &|text| self.llm.count_tokens(text))
    }

    /// What the LLM writes after each prompt, in order. The prompts are queued at once, the shorter ones first: less padding.
    /// After `deadline` what is not written yet is given up.
    pub async fn generate(
        &self,
        prompts: &[String],
        priority: Priority,
        deadline: Option<Instant>,
    ) -> Result<Vec<Generation>, AnswerError> {
        let mut order: Vec<usize> = (0..prompts.len()).collect();
        order.sort_by_key(|&place| prompts[place].len());
        let generations = order.iter().map(|&place| {
            let request = GenerateRequest::new(prompts[place].clone(), self.schema.max_new_tokens);
            self.llm.generate(GenerateRequest { priority, deadline, ..request })
        });
        let mut placed: Vec<(usize, Generation)> =
            order.iter().copied().zip(try_join_all(generations).await?).collect();
        placed.sort_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, generation)| generation).collect())
    }

    /// Parser, grounding, encoder and quantiser over what was generated, in order.
    pub async fn complete(&self, generations: Vec<Generation>) -> Result<Vec<Answer>, AnswerError> {
        let parsed: Vec<ParsedAnswer> =
            generations.iter().map(|generation| parse(&generation.text, self.mode)).collect();
        let embedded = self.embed(parsed.iter().map(ParsedAnswer::embedding_text).collect()).await?;
        let answers = generations.into_iter().zip(parsed).zip(embedded);
        let answer = |((generation, parsed), embedded): ((Generation, ParsedAnswer), Embedded)| Answer {
            grounding: self.catalogue.ground(&parsed.answer),
            text: generation.text,
            parsed,
            vector: embedded.vector,
            codes: embedded.codes,
            prompt_tokens: generation.prompt_tokens,
            new_tokens: generation.new_tokens,
        };
        Ok(answers.map(answer).collect())
    }

    /// Encoder and quantiser, in order. The encoder blocks, so it runs beside the async threads.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Embedded>, AnswerError> {
        let encoder = self.encoder.clone();
        let encode = move || encoder.encode(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let vectors =
            tokio::task::spawn_blocking(encode).await.map_err(|error| AnswerError::Task(error.to_string()))??;
        let embedded = |vector: Vec<f32>| -> Result<Embedded, AnswerError> {
            Ok(Embedded { codes: self.codebook.encode(&vector)?, vector })
        };
        vectors.into_iter().map(embedded).collect()
    }

    /// All of it for many inputs, in order; for the trainer, which waits for nothing else.
    pub async fn answer(&self, inputs: &[PromptInput]) -> Result<Vec<Answer>, AnswerError> {
        let prompts: Vec<String> = inputs.iter().map(|input| self.prompt(input).text).collect();
        let generations = self.generate(&prompts, Priority::Background, None).await?;
        self.complete(generations).await
    }
}
