//! The world `reason`: each purchase has a cause that takes facts from different places of the prompt.
//!
//! In: [`SynthSettings`] (users, seed, world-seed, conflict). Out: [`World`]. The profile, the newest search, old purchases, the
//! cart, the clicked lines and the domain of the newest line decide together; no one of them suffices, and copying the newest
//! line is right one time in five. `world_test` holds it to that. Caller: `synth::generate`.

mod catalogue;
mod cause;
mod life;
mod person;
mod rules;
mod shelf;

pub use rules::{Guess, Rules};

use super::labels;
use super::oracle::{Oracle, People};
use super::{Rates, SynthSettings, World, demand};
use catalogue::{Catalogue, LEAF_COUNT, Tables};
use person::Person;
use shelf::LEAVES;

/// Logit of a click, and of a conversion after it, where nothing matches.
const RATES: Rates = Rates { click: -2.6, conversion: -5.0 };
/// How far an item of the intent's L1 matches it.
const NEAR: f64 = 0.5;
/// How far one of the hobby's L1 matches any intent.
const HOBBY: f64 = 0.3;

/// Everybody and the shelf, as the oracle needs them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crowd {
    catalogue: Catalogue,
    tables: Tables,
    people: Vec<Person>,
    demand: Vec<f64>,
}

/// Generates a world.
pub(super) fn generate(settings: &SynthSettings) -> World {
    let (catalogue, tables) = (Catalogue::new(settings.world_seed), Tables::new(settings.world_seed));
    let demand = demand::by_leaf(LEAF_COUNT, settings.demand_spread(), settings.world_seed);
    let mut world = World::with_room(catalogue.items.clone(), settings);
    let (mut people, mut intents) = (Vec::new(), Vec::new());
    for index in 0..settings.users {
        let lived = life::live(&catalogue, &tables, &demand, index, settings.seed);
        let drawn = labels::draw(&lived.shown, &catalogue.items, &lived.record.user_id, index, settings.seed);
        world.add(lived.record, lived.events, drawn);
        people.push(lived.person);
        intents.push(cause::intents(&lived.held, lived.domain));
    }
    world.sort();
    world.oracle = Oracle::new(intents, People::Reason(Box::new(Crowd { catalogue, tables, people, demand })));
    world
}

/// How far an item matches that has nothing to do with the intent.
fn far(tables: &Tables, person: &Person, leaf: usize) -> f64 {
    if tables.hobby_tops[person.hobby].contains(&(leaf / LEAVES)) { HOBBY } else { 0.0 }
}

/// The true chance of a click on an impression, and of a conversion after it, in a session about `intent`.
fn rates(
    catalogue: &Catalogue,
    tables: &Tables,
    person: &Person,
    demand: &[f64],
    item: usize,
    intent: usize,
) -> (f64, f64) {
    let leaf = catalogue.leaf_of(item);
    let matching = match () {
        () if leaf == intent => 1.0,
        () if leaf / LEAVES == intent / LEAVES => NEAR,
        () => far(tables, person, leaf),
    };
    RATES.of(matching, person.taste(catalogue, item), demand[leaf])
}

impl Crowd {
    /// Σ over the leaves of the chance of the intent times the chance of click and conversion under it.
    pub(super) fn ctcvr(&self, user: usize, item: usize, intents: &[f64]) -> f64 {
        let (catalogue, person) = (&self.catalogue, &self.people[user]);
        let leaf = catalogue.leaf_of(item);
        let first = leaf / LEAVES * LEAVES;
        let near: f64 = intents[first..first + LEAVES].iter().sum();
        let matches =
            [(1.0, intents[leaf]), (NEAR, near - intents[leaf]), (far(&self.tables, person, leaf), 1.0 - near)];
        RATES.expected(matches, person.taste(catalogue, item), self.demand[leaf])
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world_test;
