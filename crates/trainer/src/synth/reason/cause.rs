//! Which causes hold for a person now, and which of them decides.
//!
//! In: [`Facts`], all of which the prompt shows (the hobby through clicked lines). Out: [`Held`]. Callers: `life`, the oracle, and
//! the test's reader, which takes its facts from prompts.

use super::catalogue::{LEAF_COUNT, Tables, leaf_name, path};
use super::person::{BUDGETS, HOBBIES, NEEDS, Person, SEASONS, STAGES};
use super::shelf::{LEAVES, Role, TIERS, TOPS};
use crate::reason::{Cause, Reason};
use taiji::event::Domain;

/// Newest lines that facts are looked for in: of the 12 that a prompt shows, 3 may be pushed out by the session's clicks.
pub(super) const WINDOW: usize = 9;
/// Chance that the purchase follows no cause.
pub(super) const NOISE: f64 = 0.1;
/// Chance that the session takes place in the domain of its cause; else in one of the other four.
pub(super) const OWN_DOMAIN: f64 = 0.88;
/// Lines that must have come after a consumable for it to run out.
const RUNS_OUT: usize = 3;

/// What a history line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    pub act: Act,
    pub leaf: usize,
    /// Index into `TIERS`.
    pub tier: usize,
}

/// The action of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Click,
    Cart,
    Purchase,
}

/// What causes are made of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Facts<'a> {
    /// Newest first, at most [`WINDOW`].
    pub lines: &'a [Line],
    /// The newest search.
    pub need: Option<usize>,
    pub hobby: usize,
    pub season: usize,
    pub stage: usize,
    pub budget: usize,
}

/// A cause and what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ground {
    Season,
    /// The durable thing bought, and whether its first accessory was, too.
    Set {
        bought: usize,
        also: bool,
    },
    Need(usize),
    Refill,
    Cart {
        carted: usize,
        tier: usize,
    },
}

/// A cause that holds and the leaf it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    pub ground: Ground,
    pub leaf: usize,
}

/// Domains in the order of the causes.
pub(super) const DOMAINS: [Domain; 5] = [Domain::Video, Domain::Live, Domain::Search, Domain::App, Domain::Shop];

impl Held {
    /// Place among the causes.
    pub(super) fn place(&self) -> usize {
        match self.ground {
            Ground::Season => 0,
            Ground::Set { .. } => 1,
            Ground::Need(_) => 2,
            Ground::Refill => 3,
            Ground::Cart { .. } => 4,
        }
    }

    /// How often it decides, beside others that hold.
    pub(super) fn weight(&self) -> f64 {
        [1.2, 1.2, 0.8, 3.0, 0.8][self.place()]
    }

    /// Chance that a session of this cause takes place in a domain.
    pub(super) fn chance_of(&self, domain: Domain) -> f64 {
        match DOMAINS[self.place()] == domain {
            true => OWN_DOMAIN,
            false => (1.0 - OWN_DOMAIN) / (DOMAINS.len() - 1) as f64,
        }
    }

    /// As a reason, with the leaf's path.
    pub(super) fn reason(&self, tables: &Tables, person: &Person, domain: Domain) -> Reason {
        let name = |leaf: usize| leaf_name(leaf).to_string();
        let cause = match self.ground {
            Ground::Season => Cause::Season {
                tops: tables.hobby_tops[person.hobby].map(|top| TOPS[top].name.to_string()),
                hobby: HOBBIES[person.hobby].to_string(),
                season: SEASONS[person.season].to_string(),
            },
            Ground::Set { bought, also } => Cause::Set {
                bought: name(bought),
                also: also.then(|| name(Role::First.of(bought / LEAVES))),
                missing: name(self.leaf),
            },
            Ground::Need(need) => {
                Cause::Need { stage: STAGES[person.stage].to_string(), need: NEEDS[need].to_string() }
            }
            Ground::Refill => Cause::Refill { bought: name(self.leaf) },
            Ground::Cart { carted, tier } => Cause::Cart {
                carted: name(carted),
                tier: TIERS[tier].to_string(),
                budget: BUDGETS[person.budget].to_string(),
                fits: carted == self.leaf,
            },
        };
        Reason::Decides { domain: domain.as_str().to_string(), cause, path: path(self.leaf) }
    }
}

/// Purchases that no cause explains.
pub(super) fn chance_reason(domain: Domain, leaf: usize) -> Reason {
    Reason::Decides { domain: domain.as_str().to_string(), cause: Cause::Nothing, path: path(leaf) }
}

/// The causes that hold; the season, whatever was bought, where none does.
pub(super) fn holding(tables: &Tables, facts: &Facts) -> Vec<Held> {
    let season = Held { ground: Ground::Season, leaf: tables.season[facts.hobby][facts.season] };
    let all = [
        Some(season).filter(|held| !facts.has_bought(held.leaf)),
        facts.set(),
        facts.need(tables),
        facts.refill(),
        facts.cart(tables),
    ];
    let held: Vec<Held> = all.into_iter().flatten().collect();
    if held.is_empty() { vec![season] } else { held }
}

impl Facts<'_> {
    fn purchases(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let bought = self.lines.iter().enumerate().filter(|(_, line)| line.act == Act::Purchase);
        bought.map(|(age, line)| (age, line.leaf))
    }

    fn has_bought(&self, leaf: usize) -> bool {
        self.purchases().any(|(_, bought)| bought == leaf)
    }

    /// The newest durable thing bought that lacks an accessory.
    fn set(&self) -> Option<Held> {
        self.purchases().filter(|(_, leaf)| Role::Durable.is(*leaf)).find_map(|(_, bought)| {
            let accessories = [Role::First, Role::Second].map(|role| role.of(bought / LEAVES));
            let missing = accessories.into_iter().find(|leaf| !self.has_bought(*leaf))?;
            Some(Held { ground: Ground::Set { bought, also: missing != accessories[0] }, leaf: missing })
        })
    }

    fn need(&self, tables: &Tables) -> Option<Held> {
        let need = self.need?;
        let leaf = tables.need[need][self.stage];
        Some(Held { ground: Ground::Need(need), leaf }).filter(|_| !self.has_bought(leaf))
    }

    /// The consumable whose last purchase is oldest.
    fn refill(&self) -> Option<Held> {
        let mut last: Vec<(usize, usize)> = Vec::new();
        for (age, leaf) in self.purchases().filter(|(_, leaf)| Role::Consumable.is(*leaf)) {
            if last.iter().all(|(_, known)| *known != leaf) {
                last.push((age, leaf));
            }
        }
        let (_, leaf) = last.into_iter().filter(|(age, _)| *age >= RUNS_OUT).max()?;
        Some(Held { ground: Ground::Refill, leaf })
    }

    /// The newest line of the cart, or what is bought instead of it.
    fn cart(&self, tables: &Tables) -> Option<Held> {
        let age = self.lines.iter().position(|line| line.act == Act::Cart)?;
        let Line { leaf: carted, tier, .. } = self.lines[age];
        if !Role::Seasonal.is(carted) {
            return None;
        }
        let is_too_dear = tier == 1 && self.budget == 0;
        let leaf = if is_too_dear { tables.instead[carted / LEAVES] } else { carted };
        let bought_since = self.purchases().any(|(when, bought)| when < age && bought == leaf);
        (!bought_since).then_some(Held { ground: Ground::Cart { carted, tier }, leaf })
    }
}

/// Chance of each leaf to be what a session in `domain` is about, given what holds.
pub(super) fn intents(held: &[Held], domain: Domain) -> Vec<f64> {
    let shares: Vec<f64> = held.iter().map(|one| one.weight() * one.chance_of(domain)).collect();
    let total: f64 = shares.iter().sum();
    let mut chances = vec![NOISE / LEAF_COUNT as f64; LEAF_COUNT];
    for (one, share) in held.iter().zip(shares) {
        chances[one.leaf] += (1.0 - NOISE) * share / total;
    }
    chances
}
