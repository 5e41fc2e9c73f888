//! What the world knows about a user's next session.
//!
//! In: each user's chance of every intent in the last, withheld session, and the people. Out: [`Oracle::ctcvr`].
//! Callers: [`super::World`]; who judges a ranker or a simulator.

use super::{interests, reason};

/// The people of a world.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum People {
    Interests(interests::Crowd),
    Reason(Box<reason::Crowd>),
}

/// Truth about the next session of every user.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Oracle {
    /// By user, then leaf; sums to 1 over the leaves.
    intents: Vec<Vec<f64>>,
    people: Option<People>,
}

impl Oracle {
    pub(super) fn new(intents: Vec<Vec<f64>>, people: People) -> Self {
        Oracle { intents, people: Some(people) }
    }

    /// P(click and conversion) if the item is shown in the next session: the expectation over what that session is about, given
    /// all that is latent and the session's domain. `None` where there is no such user.
    pub fn ctcvr(&self, user: usize, item: usize) -> Option<f64> {
        let intents = self.intents.get(user)?;
        Some(match self.people.as_ref()? {
            People::Interests(crowd) => crowd.ctcvr(user, item, intents),
            People::Reason(crowd) => crowd.ctcvr(user, item, intents),
        })
    }

    #[cfg(test)]
    pub(super) fn people(&self) -> Option<&People> {
        self.people.as_ref()
    }

    /// Chance of each leaf to be what the next session is about.
    pub fn intents(&self, user: usize) -> &[f64] {
        self.intents.get(user).map_or(&[], Vec::as_slice)
    }
}
