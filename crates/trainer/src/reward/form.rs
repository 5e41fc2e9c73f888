//! Rewards of form: what needs no truth.

use super::{Answered, Reward, RewardError};

/// 1 where the format is exact, else 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Format;

impl Reward for Format {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        Ok(answers.iter().map(|answer| Some(f64::from(u8::from(answer.parsed.format_ok)))).collect())
    }
}

/// 0 up to `free` tokens, then falling straight to -1 at `most` (DAPO's soft punishment of the overlong, arXiv 2503.14476 eq. 13).
#[derive(Debug, Clone, Copy)]
pub struct Length {
    /// Tokens that cost nothing.
    pub free: usize,
    /// Tokens from which it is -1.
    pub most: usize,
}

impl Reward for Length {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let width = self.most.saturating_sub(self.free).max(1) as f64;
        let value = |answer: &Answered<'_>| -(answer.tokens.saturating_sub(self.free) as f64 / width).min(1.0);
        Ok(answers.iter().map(|answer| Some(value(answer))).collect())
    }
}
