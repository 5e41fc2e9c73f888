//! Why a user did something, and how that is said: of generated worlds and of real data alike.
//!
//! In: [`Reason`]s. Out: reasoning for the completions; where each purchase has one cause ([`Cause`]) also plausible wrong ones
//! and a check of what somebody wrote. Callers: `data` (examples), `synth` (which knows the true reasons), the stages `reason`, `score`,
//! `filter` and `answers`.
//!
//! Reasoning written backwards from the truth (RUPR) and filtered by perplexity (ORFT):
//!
//! ```text
//! Origin (prompt, true next item) ─ teacher ─► texts ─ pairs: tags, leaks, repeats ─► Group ─ score ─► Scores ─ choose ─► form ─► SFT
//! ```

mod cause;
mod check;
pub mod choose;
mod derived;
pub mod endpoint;
mod form;
mod pairs;
mod score;
mod teacher;
mod wording;

pub use cause::Cause;
pub use check::{Checked, check};
pub use derived::derived_lesson;
pub use form::Form;
pub use pairs::{Group, Origin, Refusal, Refusals, sift};
pub use score::{Scorer, Scores};
pub use teacher::{Blame, Lesson, Planted, RuleTeacher, WrongPath, true_reason, wrong_reason};
pub use wording::{MAX_WORDS, reasoning};

use serde::{Deserialize, Serialize};

/// Why a user bought something, as structured data; `reasoning` turns it into language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// The interest shows in the latest engagements.
    Repeated {
        /// Broadest first, as deep as the interest goes.
        categories: Vec<String>,
        /// Latest engagements in it.
        count: usize,
        /// Latest engagements looked at.
        of: usize,
    },
    /// A search was made just before.
    Search {
        /// As typed.
        query: String,
    },
    /// Goes with something bought recently.
    Complement {
        /// Lowest category of what was bought.
        bought: String,
    },
    /// The time of the year.
    Season {
        /// For example "gift season".
        season: String,
    },
    /// The user's stage of life.
    LifeStage {
        /// For example "new parent".
        stage: String,
    },
    /// A brand bought or clicked before.
    Brand {
        /// Its name.
        brand: String,
    },
    /// Chooses by price.
    Price {
        /// Towards the cheap end of the shelf, or else the dear one.
        low: bool,
    },
    /// Put in the cart or clicked, and not bought yet.
    Unfinished {
        /// Lowest category of the item.
        category: String,
    },
    /// Words that the target's title shares with earlier titles (data without known reasons).
    SharedWords {
        /// Most telling first.
        words: Vec<String>,
        /// Earlier items that have at least one of them.
        count: usize,
    },
    /// What was engaged with last (data without known reasons): who the user is, before why the target follows.
    Lately {
        /// First words of the newest titles, newest first.
        titles: Vec<String>,
    },
    /// One cause decides, or would have: the first of a purchase's reasons did, the others held as well.
    Decides {
        /// Where it happens.
        domain: String,
        /// With its facts.
        cause: Cause,
        /// Of the leaf that follows, broadest first.
        path: Vec<String>,
    },
    /// Nothing before points there.
    New,
}

/// Whether it is known what decided: the first reason is the cause.
pub fn has_cause(reasons: &[Reason]) -> bool {
    matches!(reasons.first(), Some(Reason::Decides { .. }))
}
