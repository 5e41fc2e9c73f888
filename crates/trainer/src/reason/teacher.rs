//! The rule teacher of a world whose purchases have causes: true reasons, and at a set rate wrong ones that are plausible.
//!
//! In: the reasons of a purchase (the true one first, then the other causes that held). Out: text, and whether it is the true
//! one. It stands in for an LLM that is told the answer and may rationalise it. Caller: the stage that writes reasons.

use super::cause::written;
use super::{Cause, Reason};
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
    /// One or the other, alike.
    Either,
}

/// How the rule teacher writes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleTeacher {
    /// Share of the examples, 0–1, in which it blames another cause, where another one held.
    pub wrong: f64,
    /// Which.
    pub blame: Blame,
    /// Where that leads.
    pub path: WrongPath,
    /// Whether it knows what was bought. One that does not takes any cause that holds, in `wrong` of the examples the blamed one,
    /// and writes what follows from it.
    #[serde(default = "yes")]
    pub told: bool,
}

fn yes() -> bool {
    true
}

/// What a teacher's reason is worth: for judging, never for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Planted {
    /// Names the true cause.
    True,
    /// Names another and ends at what was bought.
    WrongRight,
    /// Names another and ends where that leads.
    WrongOwn,
}

/// What the teacher wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// Evidence and conclusion.
    pub text: String,
    /// What it is worth.
    pub planted: Planted,
}

impl RuleTeacher {
    /// Writes a reason; `None` where the purchase has no known cause (data of another world).
    pub fn write(&self, reasons: &[Reason], random: &mut impl Rng) -> Option<Lesson> {
        let text = true_reason(reasons)?;
        let errs = random.random_bool(self.wrong.clamp(0.0, 1.0));
        let truth = Lesson { text, planted: Planted::True };
        if !self.told {
            return Some(self.guess(reasons, errs, random).unwrap_or(truth));
        }
        Some(errs.then(|| wrong_reason(reasons, self.blame, self.path, random)).flatten().unwrap_or(truth))
    }

    /// Any cause that holds; `None` where chance alone is left.
    fn guess(&self, reasons: &[Reason], blames: bool, random: &mut impl Rng) -> Option<Lesson> {
        let held = reasons.iter().enumerate().filter_map(|(place, reason)| match reason {
            Reason::Decides { domain, cause, path } if cause.name().is_some() => Some((place, domain, cause, path)),
            _ => None,
        });
        let held: Vec<_> = held.collect();
        let searched = held.iter().find(|(_, _, cause, _)| is_search(cause));
        let blamed = searched.filter(|_| blames && self.blame == Blame::Search);
        let (place, domain, cause, path) = blamed.or_else(|| draw::choice(&held, random))?;
        let planted = if *place == 0 { Planted::True } else { Planted::WrongOwn };
        Some(Lesson { text: written(cause, domain, path), planted })
    }
}

fn is_search(cause: &Cause) -> bool {
    matches!(cause, Cause::Need { .. })
}

/// The true reason in its wording; `None` where the purchase has no known cause.
pub fn true_reason(reasons: &[Reason]) -> Option<String> {
    let Reason::Decides { domain, cause, path } = reasons.first()? else { return None };
    Some(written(cause, domain, path))
}

/// The true wording of another cause that held and leads to another leaf; `None` where the blamed one did not.
pub fn wrong_reason(reasons: &[Reason], blame: Blame, ending: WrongPath, random: &mut impl Rng) -> Option<Lesson> {
    let Reason::Decides { cause: truth, path: bought, .. } = reasons.first()? else { return None };
    let others: Vec<_> = reasons[1..]
        .iter()
        .filter_map(|reason| match reason {
            Reason::Decides { domain, cause, path } => Some((domain, cause, path)),
            _ => None,
        })
        .filter(|(_, cause, path)| *cause != truth && *path != bought)
        .filter(|(_, cause, _)| blame == Blame::Uniform || is_search(cause))
        .collect();
    let (domain, cause, own) = draw::choice(&others, random)?;
    let is_rationalised = match ending {
        WrongPath::Right => true,
        WrongPath::Own => false,
        WrongPath::Either => random.random_bool(0.5),
    };
    let path = if is_rationalised { bought } else { own };
    let planted = if is_rationalised { Planted::WrongRight } else { Planted::WrongOwn };
    Some(Lesson { text: written(cause, domain, path), planted })
}
