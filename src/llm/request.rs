//! What callers ask of the engine and what they get: the engine's vocabulary, without behaviour.
//!
//! Used by every caller of [`super::LlmEngine`]; `refresh` and `train` generate text, `admin` (OpenAI port) streams it,
//! the SCID stages ask for beams over a [`super::trie::Trie`].

use std::sync::Arc;
use std::time::Instant;

use super::trie::Trie;

/// Prompt: text, tokenised as it stands (special tokens spelled out, none added), or token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Full prompt text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Who goes first. Within a class the oldest goes first; a lower class waits as long as a higher one has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Somebody waits for the answer (synchronous refresh).
    Synchronous,
    /// Somebody waits, but not on the request path (OpenAI port).
    Interactive,
    /// Nobody waits: refreshes of the due queue, the trainer.
    #[default]
    Background,
}

impl Priority {
    /// All classes, the most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Synchronous, Priority::Interactive, Priority::Background];

    /// Label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Priority::Synchronous => "synchronous",
            Priority::Interactive => "interactive",
            Priority::Background => "background",
        }
    }
}

/// How the next token is chosen. Applied in this order: repetition penalty, temperature, top-k, top-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 = greedy (the highest logit, the lowest id among equals); above 0 logits are divided by it.
    pub temperature: f32,
    /// Only the k most likely tokens; 0 = all.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens whose probability reaches this; 1 = all.
    pub top_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer (CTRL, 2019); 1 = none.
    pub repetition_penalty: f32,
    /// Same seed, same prompt: same text, whatever else is in the batch.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token each time.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

/// One prompt to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// Upper bound of generated tokens; 0 generates nothing.
    pub max_new_tokens: usize,
    /// `None` = as `generation.json` of the model says (greedy where it says nothing).
    pub sampling: Option<Sampling>,
    /// Strings that end the text; they are cut off. Beside the model's own stop tokens and strings.
    pub stop: Vec<String>,
    /// Tokens that end the text; kept as its last token. Beside the model's own.
    pub stop_tokens: Vec<u32>,
    /// The model's own stop tokens and strings do not end the text (load tests).
    pub ignore_stop: bool,
    /// Fill [`Generation::logprobs`] and those of the pieces.
    pub logprobs: bool,
    /// Who goes first.
    pub priority: Priority,
    /// After this instant the request is given up with [`super::LlmError::Deadline`], waiting or running.
    pub deadline: Option<Instant>,
}

impl GenerateRequest {
    /// Continues a text, as `generation.json` says, in the background.
    pub fn new(prompt: impl Into<String>, max_new_tokens: usize) -> Self {
        Self::with(Prompt::Text(prompt.into()), max_new_tokens)
    }

    /// Continues token ids.
    pub fn tokens(prompt: Vec<u32>, max_new_tokens: usize) -> Self {
        Self::with(Prompt::Tokens(prompt), max_new_tokens)
    }

    fn with(prompt: Prompt, max_new_tokens: usize) -> Self {
        Self {
            prompt,
            max_new_tokens,
            sampling: None,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_stop: false,
            logprobs: false,
            priority: Priority::default(),
            deadline: None,
        }
    }
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token (`</answer>`, end of text) or stop string was produced.
    Stop,
    /// The token budget ran out.
    Length,
}

/// What the LLM wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Generated text, special tokens kept (the parser needs the tags), the stop token included, a stop string not.
    pub text: String,
    /// Generated token ids, the stop token or the tokens of the stop string included.
    pub tokens: Vec<u32>,
    /// Natural-log probability of each token under the model itself (before penalty, temperature and cuts); empty
    /// unless asked for.
    pub logprobs: Vec<f64>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens that came out of the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub new_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// One event of a stream. Dropping the receiver cancels the request.
#[derive(Debug)]
pub enum Piece {
    /// A token, with the text that became readable by it (may be empty: half a character, or the start of a stop string).
    Token {
        /// Token id.
        token: u32,
        /// Text since the last piece.
        text: String,
        /// Natural-log probability, if asked for.
        logprob: Option<f64>,
    },
    /// The last event: the whole, or why it failed.
    End(Result<Generation, super::LlmError>),
}

/// What a model says of a token that stands in a given text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// Natural-log probability, given everything before it.
    pub logprob: f64,
    /// It is what the model itself would write greedily.
    pub is_best: bool,
}

/// Beam search over the token sequences of a trie.
#[derive(Debug, Clone)]
pub struct BeamRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// Beams kept at every level, and most answers; at least 1.
    pub width: usize,
    /// The sequences that exist; the request keeps this one even if the engine's is swapped meanwhile.
    pub trie: Arc<Trie>,
    /// Who goes first.
    pub priority: Priority,
    /// As in [`GenerateRequest`].
    pub deadline: Option<Instant>,
}

/// One sequence that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Beam {
    /// Item the trie has at the end of the sequence.
    pub item: u32,
    /// The sequence.
    pub tokens: Vec<u32>,
    /// Sum of the tokens' natural-log probabilities, each under the whole vocabulary.
    pub score: f64,
}
