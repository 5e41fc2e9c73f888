//! One token for every decoding row, and what becomes of rows that are done.

use std::time::Instant;

use super::{Schedule, grow};
use crate::llm::device::{Backend, Call};
use crate::llm::measure::Step;
use crate::llm::sequence::{Next, Sequence};

impl<B: Backend> Schedule<B> {
    pub(super) fn decode(&mut self) {
        if self.decoding.is_empty() {
            return;
        }
        let call = self.decode_call();
        let started = Instant::now();
        let logits = match self.backend.run(&call) {
            Ok(logits) => logits,
            Err(message) => {
                let failed = std::mem::take(&mut self.decoding);
                return self.fail(failed, &message);
            }
        };
        let mut next = Vec::with_capacity(self.decoding.len());
        for (sequence, row) in self.decoding.iter_mut().zip(logits.chunks(self.shape.vocabulary)) {
            sequence.past += 1;
            next.push(grow(sequence, row, &self.measures));
        }
        self.measures.step(Step::Decode, started);
        self.retire(0, &next);
    }

    /// The newest token of every decoding row; rows behind them, where the backend wants a fixed number, idle.
    fn decode_call(&self) -> Call {
        let rows = self.backend.decode_bucket(self.decoding.len());
        let mut call = Call { first: 0, rows, width: 1, total: 1, ..Call::default() };
        for row in 0..rows {
            let (token, past) = match self.decoding.get(row) {
                Some(sequence) => (sequence.last_token(), sequence.past),
                // Behind what its owner holds, where its owner writes next anyhow.
                None => (0, self.used(row).min(self.shape.slots - 1)),
            };
            call.input_ids.push(i64::from(token));
            call.seqlens.push(past as i32);
            call.total = call.total.max(past as i32 + 1);
            call.logits_indices.push(row as i64);
        }
        if self.backend.has_fixed_steps() {
            call.total = self.shape.slots as i32; // any upper bound is right (note onnx 3.1)
        }
        call
    }

    /// Takes those that are done out of the decoding rows from `first` on.
    pub(super) fn retire(&mut self, first: usize, next: &[Next]) {
        for (offset, next) in next.iter().enumerate().rev() {
            let Some(ended) = next.ended() else { continue };
            // A failed move may have taken several away.
            if first + offset < self.decoding.len() {
                self.measures.ended(ended);
                self.take_decoding(first + offset);
            }
        }
    }

    /// Removes a decoding row; the last one moves into the hole.
    pub(super) fn take_decoding(&mut self, index: usize) -> Sequence {
        let taken = self.decoding.swap_remove(index);
        if let Some(moved) = self.decoding.get(index)
            && let Err(message) = self.backend.copy_row(self.decoding.len(), index, moved.past)
        {
            let lost = self.decoding.split_off(index);
            self.fail(lost, &message);
        }
        taken
    }
}
