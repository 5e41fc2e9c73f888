//! One cause decides a purchase: the facts it takes, what follows from them, and the path of the leaf, in one fixed wording.
//!
//! In: [`Cause`], domain, path. Out: text whose evidence can be checked word for word (`check`). Callers: `wording`, `teacher`,
//! `check`; the world `reason` makes the causes.

use serde::{Deserialize, Serialize};

/// What makes a user buy, with the facts that the prompt shows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Cause {
    /// A hobby, which clicked lines show, and the season of the profile.
    Season {
        /// The two L1 of the hobby.
        tops: [String; 2],
        /// Its name, which no prompt has.
        hobby: String,
        /// Of the profile.
        season: String,
    },
    /// Something durable was bought and an accessory of it is missing.
    Set {
        /// Leaf of the durable thing.
        bought: String,
        /// Leaf of the first accessory where it was bought, too.
        also: Option<String>,
        /// Leaf of the accessory that is missing.
        missing: String,
    },
    /// The newest search and the profile's stage of life.
    Need {
        /// Of the profile.
        stage: String,
        /// What was searched for.
        need: String,
    },
    /// Something that runs out was bought long ago.
    Refill {
        /// Its leaf.
        bought: String,
    },
    /// The newest thing put in the cart, and whether the budget allows it.
    Cart {
        /// Its leaf.
        carted: String,
        /// Of its title.
        tier: String,
        /// Of the profile.
        budget: String,
        /// Whether the one fits the other.
        fits: bool,
    },
    /// Chance.
    Nothing,
}

/// Between the evidence and the path.
pub(super) const THEREFORE: &str = "so next comes";

impl Cause {
    /// Its name in the text; `None` for chance.
    pub fn name(&self) -> Option<&'static str> {
        Some(match self {
            Cause::Season { .. } => "season",
            Cause::Set { .. } => "set",
            Cause::Need { .. } => "need",
            Cause::Refill { .. } => "refill",
            Cause::Cart { .. } => "cart",
            Cause::Nothing => return None,
        })
    }

    /// What decides, and the facts; ends with a full stop that stands alone, as all its marks do.
    pub(super) fn evidence(&self, domain: &str) -> String {
        let Some(name) = self.name() else { return "nothing here decides .".to_string() };
        format!("on {domain} the {name} decides . {} .", self.facts())
    }

    fn facts(&self) -> String {
        match self {
            Cause::Season { tops: [one, other], hobby, season } => {
                format!("{one} and {other} lines show a {hobby} hobby and it is {season}")
            }
            Cause::Set { bought, also: None, missing } => format!("{bought} bought and {missing} not yet"),
            Cause::Set { bought, also: Some(also), missing } => {
                format!("{bought} bought and {also} bought but {missing} not yet")
            }
            Cause::Need { stage, need } => format!("a {stage} searched for {need}"),
            Cause::Refill { bought } => format!("{bought} was bought longest ago and not since"),
            Cause::Cart { carted, tier, budget, fits } => {
                let verdict = if *fits { "fits" } else { "misses" };
                format!("{carted} {tier} carted for a {budget} budget : it {verdict}")
            }
            Cause::Nothing => String::new(),
        }
    }
}

/// Evidence and conclusion.
pub(super) fn written(cause: &Cause, domain: &str, path: &[String]) -> String {
    format!("{} {THEREFORE} {} .", cause.evidence(domain), path.join(" > "))
}
