//! Rewards of form and path: what needs neither encoder nor simulator.

use super::{Answered, Reward, RewardError};
use taiji::prompt::split_answer;

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

/// Share of the levels of what was bought next that the answer's path has right, from the broadest on; `None` where it has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Category;

impl Reward for Category {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let plain = |level: &str| level.trim().to_lowercase();
        let value = |answer: &Answered<'_>| {
            let wanted = answer.truth.map(|item| item.categories.as_slice()).filter(|levels| !levels.is_empty())?;
            let (path, _) = split_answer(&answer.parsed.answer);
            let right = path.iter().zip(wanted).take_while(|(one, other)| plain(one) == plain(other)).count();
            Some(right as f64 / wanted.len() as f64)
        };
        Ok(answers.iter().map(value).collect())
    }
}
