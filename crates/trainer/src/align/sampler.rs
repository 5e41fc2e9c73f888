//! Roll-outs through the ONNX engine: the trainer's weights are exported and opened, all answers to a prompt come from one prefill.
//!
//! Sampled at temperature 1 without cuts: log-probabilities that the engine reports are those of the policy that drew.

use super::AlignError;
use crate::model::{Decoder, DeviceKind, save_merged};
use crate::models::export_for_engine;
use crate::nn::FileError;
use crate::nn::tensor_file::write_atomically;
use crate::sft::tokenizer::TOKENIZER_FILE;
use std::path::{Path, PathBuf};
use taiji::llm::{Finish, GenerateRequest, LlmOptions, OnnxLlm, Sampling};
use taiji::onnx::Provider;
use taiji_export::Precision;

/// An answer of the policy.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RollOut {
    /// With the token that ended it.
    pub(super) tokens: Vec<u32>,
    /// Of each token, as the sampler's engine says.
    pub(super) log_likelihoods: Vec<f64>,
    /// As text, special tokens spelled out.
    pub(super) text: String,
    /// It did not end.
    pub(super) truncated: bool,
}

/// What the engine must have room for.
pub(super) struct Room {
    /// Answers at once.
    pub(super) rows: usize,
    /// Tokens of the longest prompt.
    pub(super) prompt: usize,
    /// Most tokens of an answer.
    pub(super) answer: usize,
}

/// The engine with the newest weights that it was given.
pub(super) struct Sampler {
    /// Checkpoint and graphs lie here while the run goes on.
    folder: PathBuf,
    tokenizer: String,
    options: LlmOptions,
    precision: Precision,
    /// Most tokens of an answer.
    longest: usize,
    llm: Option<OnnxLlm>,
}

impl Sampler {
    /// On a GPU in bf16, as the trainer computes there.
    pub(super) fn new(folder: PathBuf, tokenizer: String, room: Room, threads: usize, device: DeviceKind) -> Self {
        let (provider, precision) = match device {
            DeviceKind::Cuda => (Provider::Cuda { device: 0, memory_limit: 0, graphs: false }, Precision::Bf16),
            DeviceKind::Cpu | DeviceKind::Plain => (Provider::Cpu, Precision::F32),
        };
        let options = LlmOptions {
            threads,
            max_rows: room.rows,
            max_len: room.prompt + room.answer,
            queue_limit: room.rows,
            queue_tokens: usize::MAX,
            // No prompt is read in pieces: twins share the row of the first.
            prefill_chunk: room.prompt,
            provider,
            ..LlmOptions::default()
        };
        Self { folder, tokenizer, options, precision, longest: room.answer, llm: None }
    }

    /// Gives the engine the decoder's weights.
    pub(super) fn sync(&mut self, decoder: &Decoder) -> Result<(), AlignError> {
        // The old session first: two need not fit.
        self.llm = None;
        let (checkpoint, graphs) = (self.folder.join("checkpoint"), self.folder.join("graphs"));
        remove(&graphs)?;
        save_merged(decoder, &checkpoint)?;
        let tokenizer = checkpoint.join(TOKENIZER_FILE);
        if !tokenizer.exists() {
            write_atomically(&tokenizer, self.tokenizer.as_bytes())?;
        }
        export_for_engine(&checkpoint, &graphs, self.precision)?;
        self.llm = Some(OnnxLlm::load(&graphs, self.options.clone())?);
        Ok(())
    }

    /// Whether there is an engine at all.
    pub(super) fn is_ready(&self) -> bool {
        self.llm.is_some()
    }

    /// `group` answers to each prompt, those to one together. The n-th answer of a draw is the same whatever else is asked.
    pub(super) fn roll_out(
        &self,
        prompts: &[(u64, &[u32])],
        group: usize,
        seed: u64,
        step: u64,
    ) -> Result<Vec<RollOut>, AlignError> {
        let Some(llm) = &self.llm else { return Ok(Vec::new()) };
        let request = |draw: u64, tokens: &[u32], number: u64| GenerateRequest {
            sampling: Some(Sampling { temperature: 1.0, seed: mixed([seed, draw, number]), ..Sampling::GREEDY }),
            logprobs: true,
            ..GenerateRequest::tokens(tokens.to_vec(), self.longest)
        };
        let requests: Vec<GenerateRequest> = prompts
            .iter()
            .flat_map(|(draw, tokens)| (0..group as u64).map(move |number| request(*draw, tokens, number)))
            .collect();
        let roll_out = |generation: Result<taiji::llm::Generation, _>| {
            let generation = generation.map_err(|source| AlignError::Sampler { step, source })?;
            Ok(RollOut {
                truncated: generation.finish == Finish::Length,
                tokens: generation.tokens,
                log_likelihoods: generation.logprobs,
                text: generation.text,
            })
        };
        llm.generate_all(&requests).into_iter().map(roll_out).collect()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.llm = None;
        // What is left of it is no part of the result; the next run writes over it.
        let _ = remove(&self.folder);
    }
}

fn remove(folder: &Path) -> Result<(), FileError> {
    match folder.exists() {
        true => std::fs::remove_dir_all(folder).map_err(FileError::io(folder)),
        false => Ok(()),
    }
}

/// One seed of several numbers (splitmix64 of each after the other).
fn mixed(numbers: [u64; 3]) -> u64 {
    numbers.into_iter().fold(0x9e37_79b9_7f4a_7c15, |state, number| {
        let mut value = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    })
}
