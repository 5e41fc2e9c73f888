//! Prompt input → the facts a rule may use; nothing latent.
//!
//! In: [`PromptInput`] of this world's users. Out: [`Shown`]. Callers: the rules beside it.

use super::super::catalogue::{LEAF_COUNT, path};
use super::super::cause::{Act, DOMAINS, Line};
use super::super::person::{BUDGETS, NEEDS, SEASONS, STAGES};
use super::super::shelf::TIERS;
use std::collections::HashMap;
use std::sync::LazyLock;
use taiji::prompt::{PromptInput, PromptItem};

/// Lines and searches of a prompt.
pub(in crate::synth::reason) const LINES: usize = 12;
const SEARCHES: usize = 2;

static LEAVES: LazyLock<HashMap<String, usize>> =
    LazyLock::new(|| (0..LEAF_COUNT).map(|leaf| (path(leaf)[2].clone(), leaf)).collect());

/// What a prompt shows.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::synth::reason) struct Shown {
    /// Newest first, at most 12.
    pub lines: Vec<Line>,
    /// Domain of each line, a place in `DOMAINS`.
    pub domains: Vec<usize>,
    /// Newest first, at most 2.
    pub needs: Vec<usize>,
    pub season: usize,
    pub stage: usize,
    pub budget: usize,
}

/// One fact that can be taken from another user.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(in crate::synth::reason) enum Fact {
    Domain,
    Bought,
    Searches,
    Clicked,
    Carted,
    Stage,
    Season,
    Budget,
}

#[cfg(test)]
impl Fact {
    pub(in crate::synth::reason) const ALL: [Fact; 8] = [
        Fact::Domain,
        Fact::Bought,
        Fact::Searches,
        Fact::Clicked,
        Fact::Carted,
        Fact::Stage,
        Fact::Season,
        Fact::Budget,
    ];
}

/// The leaf of a path, if it is one of this world's.
pub(in crate::synth::reason) fn leaf_of(categories: &[String]) -> Option<usize> {
    LEAVES.get(categories.get(2)?).copied()
}

impl Shown {
    /// `None` for a prompt of another world, or one without a line or a search.
    pub(in crate::synth::reason) fn read(prompt: &PromptInput) -> Option<Self> {
        let place = |list: &[&str], name: &str| list.iter().position(|one| *one == name);
        let profile = |list: &[&str], name: &str| {
            let (_, value) = prompt.profile.iter().find(|(attribute, _)| attribute == name)?;
            place(list, value)
        };
        let line = |item: &PromptItem| {
            let act = match item.action.as_str() {
                "click" => Act::Click,
                "add_to_cart" => Act::Cart,
                "purchase" => Act::Purchase,
                _ => return None,
            };
            let tier = place(&TIERS, item.title.split(' ').next()?)?;
            Some(Line { act, leaf: leaf_of(&item.categories)?, tier })
        };
        let domains = DOMAINS.map(|domain| domain.as_str());
        let lines = || prompt.engagements.iter().take(LINES);
        let shown = Shown {
            lines: lines().map(line).collect::<Option<_>>()?,
            domains: lines().map(|item| place(&domains, item.domain.as_deref()?)).collect::<Option<_>>()?,
            needs: prompt.queries.iter().take(SEARCHES).map(|query| place(&NEEDS, query)).collect::<Option<_>>()?,
            season: profile(&SEASONS, "season")?,
            stage: profile(&STAGES, "life_stage")?,
            budget: profile(&BUDGETS, "budget")?,
        };
        (!shown.lines.is_empty() && !shown.needs.is_empty()).then_some(shown)
    }

    /// Lines of before the session's clicks, as far as the prompt tells: clicks at the top in the newest line's domain are its.
    pub(in crate::synth::reason) fn before_clicks(&self) -> &[Line] {
        let own = |place: &usize| self.lines[*place].act == Act::Click && self.domains[*place] == self.domains[0];
        let clicks = (0..self.lines.len().min(3)).take_while(own).count();
        &self.lines[clicks..]
    }

    /// The same with one fact of another user. Leaves are replaced line by line; without any to take, the lines go.
    #[cfg(test)]
    pub(in crate::synth::reason) fn with(&self, fact: Fact, other: &Shown) -> Shown {
        let mut mixed = self.clone();
        match fact {
            Fact::Domain => mixed.domains = vec![other.domains[0]; self.domains.len()],
            Fact::Bought => mixed.replace(Act::Purchase, other),
            Fact::Clicked => mixed.replace(Act::Click, other),
            Fact::Carted => mixed.replace(Act::Cart, other),
            Fact::Searches => mixed.needs = other.needs.clone(),
            Fact::Stage => mixed.stage = other.stage,
            Fact::Season => mixed.season = other.season,
            Fact::Budget => mixed.budget = other.budget,
        }
        mixed
    }

    #[cfg(test)]
    fn replace(&mut self, act: Act, other: &Shown) {
        let pool: Vec<Line> = other.lines.iter().filter(|line| line.act == act).copied().collect();
        for (taken, line) in self.lines.iter_mut().filter(|line| line.act == act).enumerate() {
            match pool.get(taken % pool.len().max(1)) {
                Some(found) => *line = *found,
                None => line.act = Act::Click,
            }
        }
    }
}
