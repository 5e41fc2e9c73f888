//! Host-side bookkeeping of one batch: which tokens go into the next graph call, and what its logits mean.
//!
//! In: prompts as token ids. Out: a [`Step`] per graph call, at the end one [`Written`] per row. Pure: `pool` runs the
//! steps, `onnx` drives. Rows stand at their own positions; a row that is done idles (id 0 at slot 0, no logits).

use super::Finish;
use super::sample::greedy;

/// A prompt to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
    /// Upper bound of generated tokens, at least one.
    pub max_new_tokens: usize,
}

/// One graph call: host inputs of the contract (see `graph`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Token ids, [rows, width], padded on the right with 0.
    pub input_ids: Vec<i64>,
    /// Tokens per row in this call.
    pub width: usize,
    /// Per row: tokens in the row after the call, minus 1.
    pub seqlens: Vec<i32>,
    /// Longest row after the call.
    pub total: i32,
    /// Flat positions at which logits are wanted.
    pub logits_indices: Vec<i64>,
    /// The row behind each entry of `logits_indices`.
    pub wanted_rows: Vec<usize>,
}

/// What one row wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Generated token ids, the stop token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Sum of the log-probabilities.
    pub logprob: f64,
}

struct Row {
    prompt: Prompt,
    written: Written,
    done: bool,
}

/// A batch from prefill to its last row's end.
pub struct Batch {
    rows: Vec<Row>,
    /// Rows of the graph call; those behind `rows` are padding.
    bucket: usize,
}

/// Rows of the graph call for so many prompts: the next power of two, so that few buffers serve all sizes.
pub fn bucket(rows: usize) -> usize {
    rows.next_power_of_two()
}

impl Batch {
    /// Begins a batch.
    pub fn new(prompts: Vec<Prompt>) -> Self {
        let written = || Written { tokens: Vec::new(), finish: Finish::Length, logprob: 0.0 };
        let bucket = bucket(prompts.len());
        Self {
            rows: prompts.into_iter().map(|prompt| Row { prompt, written: written(), done: false }).collect(),
            bucket,
        }
    }

    /// Rows of every graph call of this batch.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    /// The call that reads all prompts.
    pub fn prefill(&self) -> Step {
        let width = self.rows.iter().map(|row| row.prompt.tokens.len()).max().unwrap_or(1);
        let mut step = Step::empty(self.bucket, width);
        step.total = width as i32;
        for (index, row) in self.rows.iter().enumerate() {
            let tokens = &row.prompt.tokens;
            let cells = &mut step.input_ids[index * width..][..tokens.len()];
            cells.iter_mut().zip(tokens).for_each(|(cell, &token)| *cell = i64::from(token));
            step.seqlens[index] = tokens.len() as i32 - 1;
            step.want(index, index * width + tokens.len() - 1);
        }
        step
    }

    /// The next call, one token per row that is not done; `None` when all are.
    pub fn decode(&self) -> Option<Step> {
        let mut step = Step::empty(self.bucket, 1);
        for (index, row) in self.rows.iter().enumerate() {
            let Some(&last) = row.written.tokens.last().filter(|_| !row.done) else {
                continue;
            };
            // The last token is not in the buffer yet: it is what this call feeds.
            let past = row.prompt.tokens.len() + row.written.tokens.len() - 1;
            step.input_ids[index] = i64::from(last);
            step.seqlens[index] = past as i32;
            step.total = step.total.max(past as i32 + 1);
            step.want(index, index);
        }
        (!step.wanted_rows.is_empty()).then_some(step)
    }

    /// Takes the logits of a step, [wanted rows, vocabulary]: every wanted row gets a token. The error names the row
    /// whose logits are unusable.
    pub fn accept(&mut self, step: &Step, logits: &[f32], stop: &[u32]) -> Result<(), String> {
        let vocabulary = logits.len() / step.wanted_rows.len().max(1);
        for (&index, row_logits) in step.wanted_rows.iter().zip(logits.chunks(vocabulary.max(1))) {
            let row = &mut self.rows[index];
            let (token, logprob) =
                greedy(row_logits).ok_or_else(|| format!("the logits of row {index} are not finite"))?;
            row.written.tokens.push(token);
            row.written.logprob += logprob;
            if stop.contains(&token) {
                row.written.finish = Finish::Stop;
                row.done = true;
            }
            row.done |= row.written.tokens.len() >= row.prompt.max_new_tokens;
        }
        Ok(())
    }

    /// What every row wrote, in the order of the prompts.
    pub fn finish(self) -> Vec<Written> {
        self.rows.into_iter().map(|row| row.written).collect()
    }
}

impl Step {
    /// One row read at once, with logits in front of every token from `from` (at least 1) on.
    pub fn scoring(tokens: &[u32], from: usize) -> Self {
        // The last token is only predicted, never read.
        let width = tokens.len() - 1;
        let mut step = Self::empty(1, width);
        step.input_ids.iter_mut().zip(tokens).for_each(|(cell, &token)| *cell = i64::from(token));
        step.seqlens[0] = width as i32 - 1;
        step.total = width as i32;
        (from - 1..width).for_each(|position| step.want(0, position));
        step
    }

    fn empty(rows: usize, width: usize) -> Self {
        Self {
            input_ids: vec![0; rows * width],
            width,
            seqlens: vec![0; rows],
            total: 1,
            logits_indices: Vec::with_capacity(rows),
            wanted_rows: Vec::with_capacity(rows),
        }
    }

    fn want(&mut self, row: usize, position: usize) {
        self.logits_indices.push(position as i64);
        self.wanted_rows.push(row);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const VOCABULARY: usize = 16;
    const STOP: u32 = 7;

    /// A stand-in for the graph: the next token depends on the row's whole text and nothing else.
    fn next_token(text: &[u32]) -> u32 {
        text.iter().fold(5_u32, |state, &token| state.wrapping_mul(31).wrapping_add(token)) % VOCABULARY as u32
    }

    /// Runs a batch on a pretended buffer that is filled exactly as the kernel would fill it.
    fn run(prompts: Vec<Prompt>) -> Vec<Written> {
        let mut batch = Batch::new(prompts);
        let rows = batch.bucket();
        let mut buffer = vec![vec![99_u32; 64]; rows];
        let mut step = batch.prefill();
        let mut first = true;
        loop {
            assert_eq!((step.input_ids.len(), step.seqlens.len()), (rows * step.width, rows));
            for (row, slots) in buffer.iter_mut().enumerate() {
                let length = step.seqlens[row] as usize + 1;
                assert!(length as i32 <= step.total);
                let start = if first { 0 } else { length - 1 };
                for (offset, slot) in (start..length).enumerate() {
                    slots[slot] = step.input_ids[row * step.width + offset] as u32;
                }
            }
            let mut logits = vec![0.0; step.wanted_rows.len() * VOCABULARY];
            for (entry, &row) in step.wanted_rows.iter().enumerate() {
                let length = step.seqlens[row] as usize + 1;
                let inside = if first { length - 1 } else { 0 };
                assert_eq!(step.logits_indices[entry] as usize, row * step.width + inside);
                logits[entry * VOCABULARY + next_token(&buffer[row][..length]) as usize] = 9.0;
            }
            batch.accept(&step, &logits, &[STOP]).unwrap();
            first = false;
            match batch.decode() {
                Some(next) => step = next,
                None => return batch.finish(),
            }
        }
    }

    fn expected(prompt: &Prompt) -> (Vec<u32>, Finish) {
        let mut text = prompt.tokens.clone();
        for _ in 0..prompt.max_new_tokens {
            let token = next_token(&text);
            text.push(token);
            if token == STOP {
                return (text[prompt.tokens.len()..].to_vec(), Finish::Stop);
            }
        }
        (text[prompt.tokens.len()..].to_vec(), Finish::Length)
    }

    proptest! {
        #[test]
        fn every_row_writes_what_it_would_write_alone(
            prompts in prop::collection::vec((prop::collection::vec(0_u32..16, 1..20), 1_usize..20), 1..9)
        ) {
            let prompts: Vec<Prompt> =
                prompts.into_iter().map(|(tokens, max_new_tokens)| Prompt { tokens, max_new_tokens }).collect();
            for (written, prompt) in run(prompts.clone()).into_iter().zip(&prompts) {
                prop_assert_eq!((written.tokens, written.finish), expected(prompt));
            }
        }
    }

    #[test]
    fn unusable_logits_are_an_error() {
        let mut batch = Batch::new(vec![Prompt { tokens: vec![1], max_new_tokens: 2 }]);
        let step = batch.prefill();
        assert!(batch.accept(&step, &[f32::NAN; VOCABULARY], &[STOP]).is_err());
    }
}
