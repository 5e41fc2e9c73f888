//! The world `interests`: people whose latent interests drift, and who mostly buy what the session was about.
//!
//! In: [`SynthSettings`], demand. Out: [`World`]. The newest history line is a strong hint of what is bought next.
//! Caller: `synth::generate`.

mod catalogue;
mod life;
mod person;

use super::labels;
use super::oracle::{Oracle, People};
use super::{Rates, SynthSettings, World, demand};
use crate::data::Label;
use catalogue::Catalogue;
use person::Person;

/// Logit of a click, and of a conversion after it, where nothing matches.
const RATES: Rates = Rates { click: -2.6, conversion: -3.5 };
/// How far an item of the intent's L2 matches it.
const NEAR: f64 = 0.7;

/// Everybody and the shelf, as the oracle needs them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crowd {
    catalogue: Catalogue,
    people: Vec<Person>,
    demand: Vec<f64>,
}

/// Generates a world.
pub(super) fn generate(settings: &SynthSettings) -> World {
    let catalogue = Catalogue::new(settings.items, settings.world_seed);
    let demand = demand::by_leaf(catalogue.leaves.len(), settings.demand_spread(), settings.world_seed);
    let mean_events = settings.events as f64 / settings.users.max(1) as f64;
    let mut world = World::with_room(catalogue.items.clone(), settings);
    let (mut people, mut intents) = (Vec::new(), Vec::new());
    for index in 0..settings.users {
        let lived = life::live(&catalogue, &demand, index, mean_events, settings.seed);
        let user = &lived.record.user_id;
        let drawn: Vec<Label> = labels::draw(&lived.shown, &catalogue.items, user, index, settings.seed);
        world.add(lived.record, lived.events, drawn);
        people.push(lived.person);
        intents.push(lived.intents);
    }
    world.sort();
    world.oracle = Oracle::new(intents, People::Interests(Crowd { catalogue, people, demand }));
    world
}

/// The true chance of a click on an impression, and of a conversion after it, in a session about `intent`.
fn rates(catalogue: &Catalogue, person: &Person, demand: &[f64], item: usize, intent: usize) -> (f64, f64) {
    let leaf = catalogue.leaf_of[item];
    let parent = catalogue.leaves[leaf].parent;
    let matching = match () {
        () if leaf == intent => 1.0,
        () if parent == catalogue.leaves[intent].parent => NEAR,
        () => far(person, parent),
    };
    RATES.of(matching, person.taste(catalogue, item), demand[leaf])
}

/// How far an item matches that has nothing to do with the intent: by the interest in its L2.
fn far(person: &Person, parent: usize) -> f64 {
    let interest = person.leanings.iter().find(|leaning| leaning.group == parent);
    interest.map_or(0.0, |leaning| 0.6 * leaning.weight.min(1.0))
}

impl Crowd {
    /// Σ over the leaves of the chance of the intent times the chance of click and conversion under it.
    pub(super) fn ctcvr(&self, user: usize, item: usize, intents: &[f64]) -> f64 {
        let (catalogue, person) = (&self.catalogue, &self.people[user]);
        let leaf = catalogue.leaf_of[item];
        let parent = catalogue.leaves[leaf].parent;
        let near: f64 = catalogue.groups[parent].leaves.iter().map(|sibling| intents[*sibling]).sum();
        let taste = person.taste(catalogue, item);
        RATES.expected(
            [(1.0, intents[leaf]), (NEAR, near - intents[leaf]), (far(person, parent), 1.0 - near)],
            taste,
            self.demand[leaf],
        )
    }
}

#[cfg(test)]
mod tests;
