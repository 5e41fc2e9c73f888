//! One answer under way: the engine's pieces, with the stop token's text taken off the end.
//!
//! In: the engine and its requests. Out: [`Choice`]s, read piece by piece (`stream`) or to the end ([`collect`]).
//! Dropping a choice cancels its request, which is how a client that went away stops costing anything.

use super::OpenAiError;
use crate::llm::{Finish, GenerateRequest, Generation, LlmEngine, LlmError, Piece};
use futures::future::try_join_all;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its text; may be empty (half a character).
    pub text: String,
    /// Characters of the answer before it.
    pub offset: usize,
    /// Natural-log probability; absent unless asked for.
    pub logprob: Option<f64>,
}

/// What happens to an answer.
#[derive(Debug)]
pub enum Event {
    /// One more token.
    Token(Token),
    /// The end; [`Generation::text`] still has the stop token.
    End(Generation),
    /// It ends without an answer.
    Failed(LlmError),
}

/// One answer being written.
pub struct Choice {
    /// Its place among the request's answers.
    pub index: usize,
    pieces: mpsc::UnboundedReceiver<Piece>,
    stops: Arc<Vec<(u32, String)>>,
    offset: usize,
    ended: bool,
}

impl Choice {
    fn new(index: usize, pieces: mpsc::UnboundedReceiver<Piece>, stops: Arc<Vec<(u32, String)>>) -> Choice {
        Choice { index, pieces, stops, offset: 0, ended: false }
    }

    /// What happens next; `None` after the end.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if self.ended {
                return None;
            }
            let event = match self.pieces.recv().await {
                Some(Piece::Token { token, text, logprob }) => match self.visible(token, text, logprob) {
                    Some(token) => Event::Token(token),
                    None => continue,
                },
                Some(Piece::End(Ok(generation))) => Event::End(generation),
                Some(Piece::End(Err(error))) => Event::Failed(error),
                None => Event::Failed(LlmError::Closed),
            };
            self.ended = !matches!(event, Event::Token(_));
            return Some(event);
        }
    }

    /// A token without the text that only says where the answer ends. Such a token is the last one, so its text needs
    /// no holding back; what became readable with it (a half-finished stop string) stays.
    fn visible(&mut self, token: u32, mut text: String, logprob: Option<f64>) -> Option<Token> {
        if let Some((_, stop)) = self.stops.iter().find(|(id, _)| *id == token) {
            text.truncate(text.strip_suffix(stop.as_str()).map_or(text.len(), str::len));
            if text.is_empty() {
                return None;
            }
        }
        let offset = self.offset;
        self.offset += text.chars().count();
        Some(Token { text, offset, logprob })
    }
}

/// Queues all requests; if one is refused, none is kept. `stops`: tokens whose text ends an answer and is not shown.
pub async fn start(
    llm: &dyn LlmEngine,
    requests: Vec<GenerateRequest>,
    stops: Vec<(u32, String)>,
) -> Result<Vec<Choice>, OpenAiError> {
    let stops = Arc::new(stops);
    let mut choices = Vec::with_capacity(requests.len());
    for (index, request) in requests.into_iter().enumerate() {
        choices.push(Choice::new(index, llm.stream(request).await?, stops.clone()));
    }
    Ok(choices)
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Text without the stop token.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// What the engine says about it.
    pub generation: Generation,
}

/// Waits for all answers, in order; the first failure is the result and cancels the others.
pub async fn collect(choices: Vec<Choice>) -> Result<Vec<Answer>, OpenAiError> {
    let finish = async |mut choice: Choice| {
        let mut tokens = Vec::new();
        loop {
            match choice.next().await {
                Some(Event::Token(token)) => tokens.push(token),
                Some(Event::End(generation)) => {
                    let text = tokens.iter().map(|token| token.text.as_str()).collect();
                    return Ok(Answer { text, tokens, generation });
                }
                Some(Event::Failed(error)) => return Err(OpenAiError::Llm(error)),
                None => return Err(OpenAiError::Llm(LlmError::Closed)),
            }
        }
    };
    try_join_all(choices.into_iter().map(finish)).await
}

/// OpenAI's word for why an answer ended.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// Token counts of a request: prompts once, answers all.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompts.
    pub prompt: usize,
    /// Of these, out of the prefix cache.
    pub cached: usize,
    /// Tokens generated, stop tokens included.
    pub completion: usize,
}

impl Usage {
    /// Counts one answer; the prompt only for the first of its `n` answers.
    pub fn add(&mut self, generation: &Generation, index: usize, n: usize) {
        if index.is_multiple_of(n) {
            self.prompt += generation.prompt_tokens;
            self.cached += generation.cached_tokens;
        }
        self.completion += generation.new_tokens;
    }

    /// OpenAI's object.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STOP: (u32, &str) = (7, "</answer>");

    proptest! {
        /// Whatever the pieces are, their texts make up the answer, each at its offset, without the stop token's text;
        /// what became readable together with the stop token stays.
        #[test]
        fn pieces_make_up_the_answer(texts in prop::collection::vec("[a-zé</]{0,4}", 0..12), late in "[a-z]{0,3}") {
            let (sender, receiver) = mpsc::unbounded_channel();
            let tokens = texts.iter().map(|text| (1, text.clone()));
            for (token, text) in tokens.chain([(STOP.0, format!("{late}{}", STOP.1))]) {
                sender.send(Piece::Token { token, text, logprob: None }).expect("sent");
            }
            let generation = Generation {
                text: String::new(), tokens: vec![], logprobs: vec![], prompt_tokens: 3, cached_tokens: 0, new_tokens: 1,
                finish: Finish::Stop,
            };
            sender.send(Piece::End(Ok(generation))).expect("sent");
            let choice = Choice::new(0, receiver, Arc::new(vec![(STOP.0, STOP.1.to_string())]));
            let answer = futures::executor::block_on(collect(vec![choice])).expect("answer").remove(0);
            prop_assert_eq!(&answer.text, &(texts.concat() + &late));
            let characters: Vec<char> = answer.text.chars().collect();
            for token in &answer.tokens {
                let length = token.text.chars().count();
                let found: String = characters[token.offset..token.offset + length].iter().collect();
                prop_assert_eq!(&found, &token.text);
            }
        }
    }

    #[test]
    fn an_engine_that_goes_away_is_a_failure_and_not_an_end() {
        let (sender, receiver) = mpsc::unbounded_channel();
        drop(sender);
        let choice = Choice::new(0, receiver, Arc::default());
        let error = futures::executor::block_on(collect(vec![choice])).expect_err("failed");
        assert!(matches!(error, OpenAiError::Llm(LlmError::Closed)));
    }
}
