//! Requests → jobs, on the caller's thread: tokenising and checking cost the engine thread nothing.
//!
//! In: a request. Out: a [`Job`] with the way its answer will come, or what is wrong with the request. Called by `onnx`.

use std::sync::Arc;

use tokenizers::Tokenizer;
use tokio::sync::oneshot;

use super::generation::GenerationDefaults;
use super::sample::Sampler;
use super::sequence::{Answer, Job, Reply, Task};
use super::text::TextTail;
use super::{Beam, BeamRequest, GenerateRequest, LlmError, Priority, Prompt, Scored, beam};

/// A job and the way its answer will come.
pub type Prepared<T, J = Job> = (J, oneshot::Receiver<Result<T, LlmError>>);

/// What checking needs to know of the model.
pub struct Preparer {
    tokenizer: Arc<Tokenizer>,
    defaults: GenerationDefaults,
    slots: usize,
    vocabulary: usize,
    has_beams: bool,
}

impl Preparer {
    /// For a model with rows of `slots` tokens.
    pub fn new(
        tokenizer: Tokenizer,
        defaults: GenerationDefaults,
        slots: usize,
        vocabulary: usize,
        has_beams: bool,
    ) -> Self {
        Self { tokenizer: Arc::new(tokenizer), defaults, slots, vocabulary, has_beams }
    }

    /// Token ids of a text; special tokens are recognised where they are spelled out, none are added.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, LlmError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| LlmError::Invalid(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens kept.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, LlmError> {
        self.tokenizer.decode(tokens, false).map_err(|error| LlmError::Run(error.to_string()))
    }

    /// Most tokens of a prompt beside so many generated ones.
    pub fn prompt_limit(&self, max_new_tokens: usize) -> usize {
        self.slots.saturating_sub(max_new_tokens)
    }

    /// A generation; `streams` = its text is needed token by token.
    pub fn generate(&self, request: &GenerateRequest, reply: Reply, streams: bool) -> Result<Job, LlmError> {
        let tokens = self.tokens(&request.prompt)?;
        self.check(&tokens, request.max_new_tokens)?;
        self.check_ids("stop_tokens", &request.stop_tokens)?;
        let sampling = request.sampling.unwrap_or(self.defaults.sampling);
        let sampler = Sampler::new(sampling, &tokens).map_err(LlmError::Invalid)?;
        let (mut stop_tokens, mut stops) = (request.stop_tokens.clone(), request.stop.clone());
        if !request.ignore_stop {
            stop_tokens.extend(&self.defaults.stop_tokens);
            stops.extend(self.defaults.stop_strings.iter().cloned());
        }
        let tail = (streams || !stops.is_empty()).then(|| TextTail::new(self.tokenizer.clone(), stops));
        let task = Task::generate(request.max_new_tokens, sampler, stop_tokens, tail, request.logprobs, reply);
        Ok(Job::new(tokens, task, request.priority, request.deadline))
    }

    /// A score; no job where there is nothing to score, and the answer is there at once.
    pub fn score(
        &self,
        prompt: &[u32],
        continuation: &[u32],
        priority: Priority,
    ) -> Result<Prepared<Vec<Scored>, Option<Job>>, LlmError> {
        let (reply, answer): (Answer<Vec<Scored>>, _) = oneshot::channel();
        if continuation.is_empty() {
            drop(reply.send(Ok(Vec::new())));
            return Ok((None, answer));
        }
        self.check(prompt, continuation.len())?;
        self.check_ids("continuation", continuation)?;
        let task = Task::Score { from: prompt.len(), scores: Vec::new(), reply: Some(reply) };
        Ok((Some(Job::new([prompt, continuation].concat(), task, priority, None)), answer))
    }

    /// A beam search.
    pub fn beam(&self, request: BeamRequest) -> Result<Prepared<Vec<Beam>>, LlmError> {
        if !self.has_beams {
            let message = "the model has no graph.tree.onnx: export it with '--flavour gqa,tree,std'";
            return Err(LlmError::Invalid(message.to_owned()));
        }
        if request.width == 0 {
            return Err(LlmError::Invalid("width must be at least 1".to_owned()));
        }
        let tokens = self.tokens(&request.prompt)?;
        let more = beam::slots_needed(&request.trie, request.width, 0);
        self.check(&tokens, more)?;
        let (reply, answer) = oneshot::channel();
        let task = Task::Beam { width: request.width, trie: request.trie, reply: Some(reply) };
        Ok((Job::new(tokens, task, request.priority, request.deadline), answer))
    }

    fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, LlmError> {
        match prompt {
            Prompt::Text(text) => self.tokenize(text),
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
        }
    }

    fn check(&self, prompt: &[u32], more: usize) -> Result<(), LlmError> {
        if prompt.is_empty() {
            return Err(LlmError::Invalid("the prompt has no tokens: it must have one".to_owned()));
        }
        let limit = self.prompt_limit(more);
        if prompt.len() > limit {
            return Err(LlmError::PromptTooLong { tokens: prompt.len(), limit });
        }
        self.check_ids("prompt", prompt)
    }

    fn check_ids(&self, field: &str, tokens: &[u32]) -> Result<(), LlmError> {
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(token) => {
                Err(LlmError::Invalid(format!("{field}: token id {token} is not below {}", self.vocabulary)))
            }
            None => Ok(()),
        }
    }
}
