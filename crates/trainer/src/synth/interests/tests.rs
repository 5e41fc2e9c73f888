//! The oracle of the world `interests` against draws.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::draw;
use crate::synth::tests::assert_calibrated;
use crate::synth::{Conflict, generate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[test]
fn the_oracle_is_the_mean_of_draws() {
    for conflict in [Conflict::None, Conflict::Kept60] {
        let world = generate(&SynthSettings {
            users: 400,
            events: 26_000,
            seed: 31,
            conflict: Some(conflict),
            ..SynthSettings::default()
        });
        let Some(People::Interests(crowd)) = world.oracle.people() else { panic!("another world") };
        let mut random = ChaCha8Rng::seed_from_u64(8);
        let mut draws = Vec::new();
        for _ in 0..400_000 {
            let user = random.random_range(0..world.users.len());
            let intents = world.oracle.intents(user);
            let leaf = draw::weighted(intents, &mut random);
            // Half of what is shown comes from leaves that people want, so that the upper buckets are not empty.
            let item = match random.random_bool(0.5) {
                true => *draw::choice(&crowd.catalogue.leaves[leaf].items, &mut random).unwrap(),
                false => random.random_range(0..world.items.len()),
            };
            let intent = draw::weighted(intents, &mut random);
            let (click, buy) = rates(&crowd.catalogue, &crowd.people[user], &crowd.demand, item, intent);
            draws.push((world.ctcvr(user, item).unwrap(), random.random_bool(click) && random.random_bool(buy)));
        }
        assert_calibrated(draws);
    }
}

impl Crowd {
    /// The same people under another demand.
    pub(in crate::synth) fn with_demand(&self, spread: f64, world_seed: u64) -> Crowd {
        Crowd { demand: demand::by_leaf(self.catalogue.leaves.len(), spread, world_seed), ..self.clone() }
    }

    /// Chance of each item to be bought next; that half of the purchases are of something clicked is left out.
    pub(in crate::synth) fn purchases(&self, user: usize, intents: &[f64]) -> Vec<f64> {
        let (catalogue, person) = (&self.catalogue, &self.people[user]);
        let [own, sibling, dominant, any] = life::PURCHASE_WEIGHTS;
        let mut chances = vec![0.0; catalogue.leaves.len()];
        for (leaf, chance) in intents.iter().enumerate() {
            chances[leaf] += own * chance;
            let siblings = &catalogue.groups[catalogue.leaves[leaf].parent].leaves;
            siblings.iter().for_each(|other| chances[*other] += sibling * chance / siblings.len() as f64);
        }
        chances[person.dominant().unwrap().leaf] += dominant;
        for group in &catalogue.groups {
            let share = any / (catalogue.groups.len() * group.leaves.len()) as f64;
            group.leaves.iter().for_each(|leaf| chances[*leaf] += share);
        }
        let mut by_item = vec![0.0; catalogue.items.len()];
        for (leaf, chance) in chances.into_iter().enumerate() {
            let shelf = &catalogue.leaves[leaf].items;
            let weight = |item: usize| (3.0 * person.taste(catalogue, item)).exp();
            let total: f64 = shelf.iter().map(|item| weight(*item)).sum();
            shelf.iter().for_each(|item| by_item[*item] = chance * weight(*item) / total);
        }
        by_item
    }
}
