//! Prompt input → the facts a reader may use; nothing latent.

use super::super::catalogue::{LEAF_COUNT, path};
use super::super::cause::{Act, DOMAINS, Line};
use super::super::person::{BUDGETS, NEEDS, SEASONS, STAGES};
use super::super::shelf::TIERS;
use std::collections::HashMap;
use std::sync::LazyLock;
use taiji::prompt::PromptInput;

static LEAVES: LazyLock<HashMap<String, usize>> =
    LazyLock::new(|| (0..LEAF_COUNT).map(|leaf| (path(leaf)[2].clone(), leaf)).collect());

/// What a prompt shows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shown {
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
#[derive(Debug, Clone, Copy)]
pub(super) enum Fact {
    Domain,
    Bought,
    Searches,
    Clicked,
    Carted,
    Stage,
    Season,
    Budget,
}

impl Fact {
    pub(super) const ALL: [Fact; 8] = [
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

pub(super) fn leaf_of(categories: &[String]) -> usize {
    LEAVES[&categories[2]]
}

impl Shown {
    pub(super) fn read(prompt: &PromptInput) -> Self {
        let place = |list: &[&str], name: &str| list.iter().position(|one| *one == name).unwrap();
        let profile = |name: &str| &prompt.profile.iter().find(|(attribute, _)| attribute == name).unwrap().1;
        let line = |item: &taiji::prompt::PromptItem| Line {
            act: match item.action.as_str() {
                "click" => Act::Click,
                "add_to_cart" => Act::Cart,
                "purchase" => Act::Purchase,
                other => panic!("{other}"),
            },
            leaf: leaf_of(&item.categories),
            tier: place(&TIERS, item.title.split(' ').next().unwrap()),
        };
        let domains = DOMAINS.map(|domain| domain.as_str());
        Shown {
            lines: prompt.engagements.iter().take(12).map(line).collect(),
            domains: prompt.engagements.iter().map(|item| place(&domains, item.domain.as_ref().unwrap())).collect(),
            needs: prompt.queries.iter().take(2).map(|query| place(&NEEDS, query)).collect(),
            season: place(&SEASONS, profile("season")),
            stage: place(&STAGES, profile("life_stage")),
            budget: place(&BUDGETS, profile("budget")),
        }
    }

    /// Lines of before the session's clicks, as far as the prompt tells: clicks at the top in the newest line's domain are its.
    pub(super) fn before_clicks(&self) -> &[Line] {
        let own = |place: &usize| self.lines[*place].act == Act::Click && self.domains[*place] == self.domains[0];
        let clicks = (0..self.lines.len().min(3)).take_while(own).count();
        &self.lines[clicks..]
    }

    /// The same with one fact of another user. Leaves are replaced line by line; without any to take, the lines go.
    pub(super) fn with(&self, fact: Fact, other: &Shown) -> Shown {
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
