//! Beam searches: one level of those that run, between the others' steps.

use std::time::Instant;

use super::Schedule;
use crate::llm::LlmError;
use crate::llm::beam::{BeamDriver, BeamSearch};
use crate::llm::device::Backend;
use crate::llm::measure::{Ended, Step};
use crate::llm::sequence::{Next, Sequence, Task};

impl<B: Backend> Schedule<B> {
    pub(super) fn search(&mut self) {
        if self.driver.is_idle() || self.waits_for_more() {
            return;
        }
        let started = Instant::now();
        let ended = match self.backend.beams() {
            Some(device) => self.driver.step(device),
            None => {
                let failed = std::mem::take(&mut self.searching);
                self.driver.clear();
                return self.fail(failed, "the model has no graph for beams");
            }
        };
        self.measures.step(Step::Beam, started);
        for end in ended {
            let Some(index) = self.searching.iter().position(|sequence| sequence.row == end.row) else { continue };
            let mut sequence = self.searching.swap_remove(index);
            self.measures.ended(match &end.result {
                Ok(_) => Ended::Done,
                Err(LlmError::NoLegalToken { .. }) => Ended::NoLegalToken,
                Err(_) => Ended::Failed,
            });
            sequence.job.answer_beams(end.result);
        }
    }

    /// Whether searches that could begin wait for one whose prompt is read with the next piece: they share graph calls where
    /// the device can. The wait is bounded by the rows.
    fn waits_for_more(&mut self) -> bool {
        let comes = self.staged.first().is_some_and(|sequence| {
            let rest = sequence.to_read();
            matches!(sequence.job.task, Task::Beam { .. }) && rest <= self.piece(sequence.past, rest)
        });
        comes
            && self.driver.is_between_batches()
            && self.backend.beams().is_some_and(|device| device.scratch_rows(1) > 1)
    }
}

/// Chooses the first level by the logits behind the prompt and hands the search to the driver.
pub(super) fn begin(driver: &mut BeamDriver, sequence: &mut Sequence, logits: &[f32]) -> Next {
    let Task::Beam { width, trie, .. } = &sequence.job.task else { return Next::Failed };
    let started = BeamSearch::new(trie.clone(), *width, sequence.job.tokens.len())
        .and_then(|mut search| search.start(logits).map(|()| search));
    match started {
        Ok(search) => {
            driver.push(sequence.row, search);
            Next::Continue
        }
        Err(error) => {
            let next = match error {
                LlmError::NoLegalToken { .. } => Next::NoLegalToken,
                _ => Next::Failed,
            };
            sequence.job.fail(error);
            next
        }
    }
}
