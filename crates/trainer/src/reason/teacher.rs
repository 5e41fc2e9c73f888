//! The rule teacher of a world whose purchases have causes: true reasons, and at a set rate wrong ones that are plausible.
//!
//! In: the reasons of a purchase (the true one first, then the other causes that held). Out: text, and whether it is the true
//! one. It stands in for an LLM that is told the answer and may rationalise it. Caller: the stage that writes reasons.

use super::Reason;
use super::cause::written;
use crate::draw;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Which cause a wrong reason names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// Any other that held, all alike.
    Uniform,
    /// Always the search: a biased teacher.
    Search,
}

/// Where a wrong reason ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrongPath {
    /// At what was bought: rationalised.
    Right,
    /// At what would follow from it.
    Own,
}

/// How the rule teacher writes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RuleTeacher {
    /// Share of the examples, 0–1, in which it blames another cause, where another one held.
    pub wrong: f64,
    /// Which.
    pub blame: Blame,
    /// Where that leads.
    pub path: WrongPath,
}

/// What the teacher wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// Evidence and conclusion.
    pub text: String,
    /// Names the true cause.
    pub is_true: bool,
}

impl RuleTeacher {
    /// Writes a reason; `None` where the purchase has no known cause (data of another world).
    pub fn write(&self, reasons: &[Reason], random: &mut impl Rng) -> Option<Lesson> {
        let text = true_reason(reasons)?;
        let is_wrong = random.random_bool(self.wrong.clamp(0.0, 1.0));
        let wrong = is_wrong.then(|| wrong_reason(reasons, self.blame, self.path, random)).flatten();
        Some(match wrong {
            Some(text) => Lesson { text, is_true: false },
            None => Lesson { text, is_true: true },
        })
    }
}

/// The true reason in its wording; `None` where the purchase has no known cause.
pub fn true_reason(reasons: &[Reason]) -> Option<String> {
    let Reason::Decides { domain, cause, path } = reasons.first()? else { return None };
    Some(written(cause, domain, path))
}

/// The true wording of another cause that held and leads to another leaf; `None` where the blamed one did not.
pub fn wrong_reason(reasons: &[Reason], blame: Blame, ending: WrongPath, random: &mut impl Rng) -> Option<String> {
    let Reason::Decides { cause: truth, path: bought, .. } = reasons.first()? else { return None };
    let others: Vec<_> = reasons[1..]
        .iter()
        .filter_map(|reason| match reason {
            Reason::Decides { domain, cause, path } => Some((domain, cause, path)),
            _ => None,
        })
        .filter(|(_, cause, path)| *cause != truth && *path != bought)
        .filter(|(_, cause, _)| blame == Blame::Uniform || cause.name() == Some("need"))
        .collect();
    let (domain, cause, own) = draw::choice(&others, random)?;
    let path = match ending {
        WrongPath::Right => bought,
        WrongPath::Own => own,
    };
    Some(written(cause, domain, path))
}
