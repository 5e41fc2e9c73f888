//! What an answer is worth: one number a reward, each by itself.
//!
//! In: answers of a policy to prompts whose truth is known ([`Answered`]). Out: [`Rewards`], one value a reward and answer, and what was
//! counted on the way. Callers: `align`, `stages`. How several rewards become one advantage is `weighting`'s.
//!
//! ```text
//! answer ─► semantic (cosine with what was bought)  ─┐
//!        ─► simulated (CTCVR of the item it names)   ─┼─► gates, floor, cap ─► Rewards
//!        ─► category, format, length                 ─┘
//! ```
//!
//! The dual reward is Taiji's (arXiv 2606.03866, section 3.3): meaning and the recommender's own chances. Always the predicted chance, never
//! a drawn click. `slate` values a list of items; no prompt asks for one yet.

mod form;
mod semantic;
mod set;
mod settings;
mod simulated;
mod slate;
#[cfg(test)]
mod tests;

pub use form::{Category, Format, Length};
pub use semantic::Semantic;
pub use set::{RewardSet, Rewards};
pub use settings::{Gate, RewardKind, RewardSettings, Sources};
pub use simulated::{Scale, Simulated};
pub use slate::{SlateWeights, slate};

use crate::simulate::Telemetry;
use taiji::encode::EncodeError;
use taiji::event::Item;
use taiji::prompt::ParsedAnswer;
use thiserror::Error;

/// An answer of a policy and what is known of who was asked.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// Who was asked about.
    pub user_id: &'a str,
    /// What was bought next; `None` where it has no text.
    pub truth: Option<&'a Item>,
    /// What was written, special tokens spelled out.
    pub text: &'a str,
    /// Its parts.
    pub parsed: &'a ParsedAnswer,
    /// Tokens of it.
    pub tokens: usize,
}

/// One way to value answers.
pub trait Reward: Send {
    /// One an answer, in order. `None`: it does not apply, and the answer counts as its group's mean does.
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError>;

    /// What was counted since the start, where a simulator is asked.
    fn telemetry(&self) -> Option<&Telemetry> {
        None
    }
}

/// Why answers cannot be valued.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum RewardError {
    #[error("reward {reward} of answer {answer} is {value}: mend the reward, or what it reads")]
    NotFinite { reward: String, answer: usize, value: f64 },
    #[error("reward {reward}: {message}")]
    Setting { reward: String, message: String },
    #[error("user {user_id} is unknown to the simulator: make it of all users that are asked about")]
    Stranger { user_id: String },
    #[error("reward {reward} needs {what}: name a stage of that kind in from")]
    Missing { reward: String, what: &'static str },
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
