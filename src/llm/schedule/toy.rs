//! A stand-in for the graph: the next token depends on the row's whole text and nothing else.
//!
//! Its rows hold tokens where the real ones hold keys and values, filled exactly as the kernel fills them, so that a wrong
//! position, a wrong move or a forgotten slot changes the text.

use std::sync::mpsc;

use crate::llm::device::{Backend, Call, PoolShape};

/// Width of the logits.
pub const VOCABULARY: usize = 16;
/// What an unused slot holds.
const GARBAGE: u32 = 99;

/// Rows of tokens.
pub struct ToyBackend {
    rows: Vec<Vec<u32>>,
    prefix: Vec<u32>,
    logits: Vec<f32>,
    bucket: usize,
    /// Panics when it reads this token, fails when it reads the next, answers NaN behind the one after.
    pub poison: Option<u32>,
    /// A call that reads this token does not return before the other end is dropped.
    pub hang: Option<(u32, mpsc::Receiver<()>)>,
}

/// The token behind a text.
pub fn next_token(text: &[u32]) -> u32 {
    assert!(!text.contains(&GARBAGE), "a slot was read that nobody wrote: {text:?}");
    text.iter().fold(5_u32, |state, &token| state.wrapping_mul(31).wrapping_add(token) ^ (state >> 7))
        % VOCABULARY as u32
}

/// The logits behind a text: the next token is the most likely, the others follow at equal distances.
pub fn logits_behind(text: &[u32]) -> Vec<f32> {
    let best = next_token(text) as usize;
    (0..VOCABULARY).map(|token| -(((token + VOCABULARY - best) % VOCABULARY) as f32) * 0.5).collect()
}

impl ToyBackend {
    /// Rows full of garbage; decode calls cover a multiple of `bucket` rows.
    pub fn new(rows: usize, slots: usize, bucket: usize) -> Self {
        let rows = vec![vec![GARBAGE; slots]; rows];
        Self { rows, prefix: Vec::new(), logits: Vec::new(), bucket, poison: None, hang: None }
    }
}

impl Backend for ToyBackend {
    fn shape(&self) -> PoolShape {
        PoolShape { rows: self.rows.len(), slots: self.rows[0].len(), vocabulary: VOCABULARY }
    }

    fn run(&mut self, call: &Call) -> Result<&[f32], String> {
        let poison = |offset: u32| self.poison.map(|first| i64::from(first + offset));
        assert!(!call.input_ids.iter().any(|&id| Some(id) == poison(0)), "on purpose");
        if call.input_ids.iter().any(|&id| Some(id) == poison(1)) {
            return Err("on purpose".to_owned());
        }
        if let Some((token, gate)) = &self.hang
            && call.input_ids.contains(&i64::from(*token))
        {
            assert!(gate.recv().is_err(), "nothing is ever sent");
        }
        assert_eq!((call.input_ids.len(), call.seqlens.len()), (call.rows * call.width, call.rows));
        // What the kernel accepts (note onnx 3.1): a first prompt, a decode step, or one row that goes on.
        let is_first = call.width as i32 == call.total && call.width > 1 || call.total == 1;
        assert!(is_first || call.width == 1 || call.rows == 1, "several rows that go on: {call:?}");
        let mut starts = Vec::new();
        for row in 0..call.rows {
            let length = call.seqlens[row] as usize + 1;
            assert!(length as i32 <= call.total && length <= self.rows[0].len(), "{call:?}");
            let start = if is_first { 0 } else { length - call.width };
            let written = if is_first { call.width } else { length - start };
            for offset in 0..written {
                // Padding writes garbage behind the row's length, as the kernel does.
                let id = call.input_ids[row * call.width + offset] as u32;
                let is_padding = start + offset >= length;
                self.rows[call.first + row][start + offset] = if is_padding { GARBAGE } else { id };
            }
            starts.push(start);
        }
        self.logits.clear();
        for &index in &call.logits_indices {
            let (row, offset) = (index as usize / call.width, index as usize % call.width);
            let text = &self.rows[call.first + row][..=starts[row] + offset];
            // Rows that idle have whatever text: nobody looks at their logits.
            let is_idle = text.contains(&GARBAGE) && self.bucket > 1;
            let mut logits = if is_idle { vec![0.0; VOCABULARY] } else { logits_behind(text) };
            if text.last().map(|&id| i64::from(id)) == poison(2) {
                logits.fill(f32::NAN);
            }
            self.logits.extend(logits);
        }
        Ok(&self.logits)
    }

    fn copy_row(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), String> {
        assert_ne!(from, to);
        let copied = self.rows[from][..tokens].to_vec();
        self.rows[from].fill(GARBAGE);
        self.rows[to].fill(GARBAGE);
        self.rows[to][..tokens].copy_from_slice(&copied);
        Ok(())
    }

    fn share_row(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), String> {
        assert_ne!(from, to);
        let shared = self.rows[from][..tokens].to_vec();
        self.rows[to].fill(GARBAGE);
        self.rows[to][..tokens].copy_from_slice(&shared);
        Ok(())
    }

    fn swap_rows(&mut self, one: usize, other: usize, tokens: usize) -> Result<(), String> {
        assert_ne!(one, other);
        for row in [one, other] {
            self.rows[row][tokens..].fill(GARBAGE);
        }
        self.rows.swap(one, other);
        Ok(())
    }

    fn save_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String> {
        self.prefix = self.rows[row][..tokens].to_vec();
        Ok(())
    }

    fn load_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String> {
        self.rows[row].fill(GARBAGE);
        self.rows[row][..tokens].copy_from_slice(&self.prefix[..tokens]);
        Ok(())
    }

    fn decode_bucket(&self, rows: usize) -> usize {
        rows.next_multiple_of(self.bucket).min(self.rows.len())
    }

    fn has_fixed_steps(&self) -> bool {
        self.bucket > 1
    }
}
