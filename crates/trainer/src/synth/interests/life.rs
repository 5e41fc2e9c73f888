//! One person's sessions → events, with the true reason of every purchase.
//!
//! A session has an intent (a lowest category and why): perhaps a search, some impressions with clicks, perhaps a
//! purchase. The purchase of the last session is withheld: it is the `next_purchase` of the latent truth.
//! In: catalogue, demand, index of the user, seed. Out: [`Lived`]. Caller: `interests`.

use super::catalogue::{Catalogue, Group};
use super::person::Person;
use super::rates;
use crate::data::{Interest, Latent, NextPurchase, UserRecord};
use crate::draw;
use crate::reason::Reason;
use crate::synth::labels::Shown;
use crate::synth::{JOIN_DAYS, SESSION_GAP_DAYS, START_MS, round};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use taiji::event::{Domain, Event};

const DAY_MS: f64 = 86_400_000.0;
/// Chance that a session ends in a purchase.
const PURCHASE: f64 = 0.7;
/// Chance that a session begins with a search.
const SEARCH: f64 = 0.35;
/// Where the purchase goes: what the session was about, its L2, the dominant interest, anywhere.
pub(super) const PURCHASE_WEIGHTS: [f64; 4] = [0.66, 0.12, 0.15, 0.07];
/// Latest engagements that a reason looks at.
const WINDOW: usize = 10;
/// Chance that a session after a purchase is about what goes with it.
const COMPLEMENT: f64 = 0.1;
/// What a session is about otherwise: an interest, the season, the stage of life, anything.
const INTENT_WEIGHTS: [f64; 4] = [0.88, 0.05, 0.04, 0.03];
/// Chance that an interest's session is about its favourite leaf; else about any leaf of the L2.
const FAVOURITE: f64 = 0.55;

/// Why a session happens.
enum Cause {
    Interest,
    Complement(usize),
    Season(&'static str),
    Stage,
    Explore,
}

struct Intent {
    leaf: usize,
    cause: Cause,
}

/// One user's life and what the labels and the oracle are made of.
pub struct Lived {
    /// With the latent truth.
    pub record: UserRecord,
    /// By time.
    pub events: Vec<Event>,
    /// Every impression.
    pub shown: Vec<Shown>,
    /// As the last session met them.
    pub person: Person,
    /// Chance of each leaf to be what the last session is about.
    pub intents: Vec<f64>,
}

/// A life in progress.
#[derive(Clone)]
struct Life<'a> {
    catalogue: &'a Catalogue,
    /// By leaf, added to the logit of cvr.
    demand: &'a [f64],
    person: Person,
    user_id: String,
    random: ChaCha8Rng,
    now_ms: i64,
    events: Vec<Event>,
    /// Items engaged with, oldest first.
    engaged: Vec<usize>,
    /// Leaf of the latest purchase, forgotten after two sessions.
    bought: Option<(usize, usize)>,
    purchases: BTreeMap<String, Vec<Reason>>,
    session: usize,
    shown: Vec<Shown>,
    intents: Vec<f64>,
}

/// Lives user `index`: about `mean_events` events, more or fewer by lot.
pub fn live(catalogue: &Catalogue, demand: &[f64], index: usize, mean_events: f64, seed: u64) -> Lived {
    let (mut life, budget) = begin(catalogue, demand, index, mean_events, seed);
    let next_purchase = loop {
        life.session += 1;
        let last = life.events.len() + 8 >= budget;
        let next_purchase = life.session(last);
        if last {
            break next_purchase;
        }
    };
    life.finish(next_purchase)
}

/// A life before its first session, and about how many events it will have.
fn begin<'a>(
    catalogue: &'a Catalogue,
    demand: &'a [f64],
    index: usize,
    mean_events: f64,
    seed: u64,
) -> (Life<'a>, usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index as u64);
    let person = Person::new(catalogue, &mut random);
    let budget = (mean_events * random.random_range(0.5..1.5)).max(1.0) as usize;
    let now_ms = START_MS + (random.random::<f64>() * JOIN_DAYS * DAY_MS) as i64;
    let mut life = Life {
        catalogue,
        demand,
        person,
        user_id: format!("u{seed}-{index}"),
        random,
        now_ms,
        events: Vec::new(),
        engaged: Vec::new(),
        bought: None,
        purchases: BTreeMap::new(),
        session: 0,
        shown: Vec::new(),
        intents: Vec::new(),
    };
    life.introduce();
    (life, budget)
}

impl Life<'_> {
    /// The profile event at the start.
    fn introduce(&mut self) {
        let context = self.person.profile.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        self.push("profile", None, None, context);
    }

    /// One session; in the last one the purchase is not made but returned.
    fn session(&mut self, last: bool) -> Option<NextPurchase> {
        self.now_ms += (draw::exponential(SESSION_GAP_DAYS, &mut self.random) * DAY_MS) as i64 + 60_000;
        self.person.drift(self.catalogue, &mut self.random);
        if last {
            self.intents = self.intent_chances();
        }
        let intent = self.intent();
        let domains = [Domain::Shop, Domain::Video, Domain::App, Domain::Live, Domain::Ad];
        let domain = domains[draw::weighted(&[0.4, 0.25, 0.2, 0.1, 0.05], &mut self.random)];
        let query = self.random.random_bool(SEARCH).then(|| self.search(&intent));
        let clicked = self.browse(&intent, domain);
        if !last && !self.random.random_bool(PURCHASE) {
            return None;
        }
        let item = self.choose(&intent, &clicked);
        let reasons = self.reasons(item, &intent, query, &clicked);
        if last {
            return Some(NextPurchase { item_id: self.catalogue.items[item].id.clone(), reasons });
        }
        self.push("purchase", Some(item), Some(Domain::Shop), BTreeMap::new());
        if let Some(event) = self.events.last() {
            self.purchases.insert(event.event_id.clone(), reasons);
        }
        self.bought = Some((self.catalogue.leaf_of[item], self.session));
        None
    }

    /// What this session is about.
    fn intent(&mut self) -> Intent {
        let catalogue = self.catalogue;
        if let Some((leaf, when)) = self.lately_bought() {
            if self.random.random_bool(COMPLEMENT) {
                self.bought = None;
                return Intent { leaf: catalogue.leaves[leaf].complement, cause: Cause::Complement(leaf) };
            }
            self.bought = Some((leaf, when));
        }
        match draw::weighted(&INTENT_WEIGHTS, &mut self.random) {
            1 => {
                let season = *draw::choice(seasons(self.now_ms), &mut self.random).unwrap_or(&"winter");
                let leaf = self.leaf_of_groups(|group| group.season.as_deref() == Some(season));
                Intent { leaf, cause: Cause::Season(season) }
            }
            2 => {
                let stage = self.person.stage;
                if catalogue.groups.iter().all(|group| group.stage.as_deref() != Some(stage)) {
                    return Intent { leaf: self.leaf_of_groups(|_| true), cause: Cause::Explore };
                }
                Intent { leaf: self.leaf_of_groups(|group| group.stage.as_deref() == Some(stage)), cause: Cause::Stage }
            }
            3 => Intent { leaf: self.leaf_of_groups(|_| true), cause: Cause::Explore },
            _ => {
                let weights: Vec<f64> = self.person.leanings.iter().map(|leaning| leaning.weight).collect();
                let leaning = &self.person.leanings[draw::weighted(&weights, &mut self.random)];
                let favourite = self.random.random_bool(FAVOURITE);
                let leaves = &catalogue.groups[leaning.group].leaves;
                let other = draw::choice(leaves, &mut self.random).copied().unwrap_or(leaning.leaf);
                Intent { leaf: if favourite { leaning.leaf } else { other }, cause: Cause::Interest }
            }
        }
    }

    /// Leaf of a purchase that is not forgotten yet, and the session of it.
    fn lately_bought(&self) -> Option<(usize, usize)> {
        self.bought.filter(|(_, when)| self.session <= when + 2)
    }

    /// Chance of each leaf in what [`Life::intent`] draws next; tested against its draws.
    fn intent_chances(&self) -> Vec<f64> {
        let catalogue = self.catalogue;
        let mut chances = vec![0.0; catalogue.leaves.len()];
        let mut rest = 1.0;
        if let Some((leaf, _)) = self.lately_bought() {
            chances[catalogue.leaves[leaf].complement] += COMPLEMENT;
            rest -= COMPLEMENT;
        }
        let [interest, season, stage, explore] = INTENT_WEIGHTS.map(|weight| weight * rest);
        let now = seasons(self.now_ms);
        for name in now {
            let fits = |group: &Group| group.season.as_deref() == Some(*name);
            spread(catalogue, &mut chances, season / now.len() as f64, fits);
        }
        let own = |group: &Group| group.stage.as_deref() == Some(self.person.stage);
        let fits_none = !catalogue.groups.iter().any(own);
        spread(catalogue, &mut chances, stage, |group| fits_none || own(group));
        spread(catalogue, &mut chances, explore, |_| true);
        let total: f64 = self.person.leanings.iter().map(|leaning| leaning.weight).sum();
        for leaning in &self.person.leanings {
            let chance = interest * leaning.weight / total;
            chances[leaning.leaf] += chance * FAVOURITE;
            let leaves = &catalogue.groups[leaning.group].leaves;
            for leaf in leaves {
                chances[*leaf] += chance * (1.0 - FAVOURITE) / leaves.len() as f64;
            }
        }
        chances
    }

    /// A leaf of one of the groups that fit, all groups alike.
    fn leaf_of_groups(&mut self, fits: impl Fn(&Group) -> bool) -> usize {
        let groups: Vec<_> = self.catalogue.groups.iter().filter(|group| fits(group)).collect();
        let group = draw::choice(&groups, &mut self.random);
        group.and_then(|group| draw::choice(&group.leaves, &mut self.random)).copied().unwrap_or(0)
    }

    /// Types a query for the intent.
    fn search(&mut self, intent: &Intent) -> String {
        let leaf = &self.catalogue.leaves[intent.leaf];
        let noun = draw::choice(&leaf.nouns, &mut self.random).cloned().unwrap_or_default();
        let query = match self.random.random_range(0..3) {
            0 => noun,
            1 => leaf.categories[2].to_lowercase(),
            _ => format!("{} {noun}", draw::choice(&leaf.attributes, &mut self.random).cloned().unwrap_or_default()),
        };
        let context = [("query".to_string(), json!(query))].into_iter().collect();
        self.push("search", None, Some(Domain::Search), context);
        query
    }

    /// Impressions with clicks and what follows a click; returns what was clicked.
    fn browse(&mut self, intent: &Intent, domain: Domain) -> Vec<usize> {
        let catalogue = self.catalogue;
        let mut clicked = Vec::new();
        for _ in 0..self.random.random_range(2..=5) {
            let parent = catalogue.leaves[intent.leaf].parent;
            let leaf = match draw::weighted(&[0.72, 0.16, 0.12], &mut self.random) {
                0 => intent.leaf,
                1 => draw::choice(&catalogue.groups[parent].leaves, &mut self.random).copied().unwrap_or(intent.leaf),
                _ => self.random.random_range(0..catalogue.leaves.len()),
            };
            let Some(item) = draw::choice(&catalogue.leaves[leaf].items, &mut self.random).copied() else { continue };
            let (click, buy) = rates(catalogue, &self.person, self.demand, item, intent.leaf);
            let truth = [("ctr", click), ("cvr", buy)].map(|(name, rate)| (name.to_string(), json!(round(rate))));
            self.push("impression", Some(item), Some(domain), truth.into_iter().collect());
            let clicks = self.random.random_bool(click);
            self.shown.push(Shown { item, ts_ms: self.now_ms, session: self.session, clicked: clicks, cvr: buy });
            if !clicks {
                continue;
            }
            self.push("click", Some(item), Some(domain), BTreeMap::new());
            clicked.push(item);
            let follow_up = ["", "long_view", "like", "add_to_cart", "share"];
            let action = follow_up[draw::weighted(&[0.72, 0.1, 0.08, 0.08, 0.02], &mut self.random)];
            if !action.is_empty() {
                self.push(action, Some(item), Some(domain), BTreeMap::new());
            }
        }
        clicked
    }

    /// What is bought: often something clicked, else what suits best on the shelf.
    fn choose(&mut self, intent: &Intent, clicked: &[usize]) -> usize {
        let catalogue = self.catalogue;
        let siblings = &catalogue.groups[catalogue.leaves[intent.leaf].parent].leaves;
        let leaf = match draw::weighted(&PURCHASE_WEIGHTS, &mut self.random) {
            1 => draw::choice(siblings, &mut self.random).copied().unwrap_or(intent.leaf),
            2 => self.person.dominant().map_or(intent.leaf, |leaning| leaning.leaf),
            3 => self.leaf_of_groups(|_| true),
            _ => intent.leaf,
        };
        let seen: Vec<usize> = clicked.iter().copied().filter(|item| catalogue.leaf_of[*item] == leaf).collect();
        if !seen.is_empty() && self.random.random_bool(0.5) {
            return draw::choice(&seen, &mut self.random).copied().unwrap_or(0);
        }
        let shelf = &catalogue.leaves[leaf].items;
        let weights: Vec<f64> = shelf.iter().map(|item| (3.0 * self.person.taste(catalogue, *item)).exp()).collect();
        shelf.get(draw::weighted(&weights, &mut self.random)).copied().unwrap_or(0)
    }

    /// Why this item: what the world knows, as far as the history can show it.
    fn reasons(&self, item: usize, intent: &Intent, query: Option<String>, clicked: &[usize]) -> Vec<Reason> {
        let catalogue = self.catalogue;
        let leaf = catalogue.leaf_of[item];
        let mut reasons = Vec::new();
        reasons.extend(self.repeated(leaf));
        let on_intent = leaf == intent.leaf;
        if on_intent {
            reasons.extend(query.map(|query| Reason::Search { query }));
            match &intent.cause {
                Cause::Complement(bought) => {
                    reasons.push(Reason::Complement { bought: catalogue.leaves[*bought].categories[2].clone() });
                }
                Cause::Season(season) => reasons.push(Reason::Season { season: season.to_string() }),
                Cause::Stage => reasons.push(Reason::LifeStage { stage: self.person.stage.to_string() }),
                Cause::Interest | Cause::Explore => {}
            }
        }
        if clicked.contains(&item) {
            reasons.push(Reason::Unfinished { category: catalogue.leaves[leaf].categories[2].clone() });
        }
        let brand = catalogue.items[item].brand.clone().filter(|_| self.person.likes_brand(catalogue, item));
        let known = |brand: &String| self.recent().any(|seen| catalogue.items[seen].brand.as_ref() == Some(brand));
        reasons.extend(brand.filter(known).map(|brand| Reason::Brand { brand }));
        let rank = catalogue.price_rank[item];
        if self.person.price_level < 0.2 && rank < 0.3 || self.person.price_level > 0.8 && rank > 0.7 {
            reasons.push(Reason::Price { low: rank < 0.5 });
        }
        if reasons.is_empty() {
            reasons.push(Reason::New);
        }
        reasons
    }

    /// The deepest category of a leaf that the latest engagements show at least twice, or its L1 at least once.
    fn repeated(&self, leaf: usize) -> Option<Reason> {
        let path = &self.catalogue.leaves[leaf].categories;
        let of = self.recent().count();
        let shown = |depth: usize| {
            let same = |item: &usize| self.catalogue.items[*item].categories[..depth] == path[..depth];
            self.recent().filter(same).count()
        };
        let depth = (1..=path.len()).rev().find(|depth| shown(*depth) >= if *depth == 1 { 1 } else { 2 })?;
        Some(Reason::Repeated { categories: path[..depth].to_vec(), count: shown(depth), of })
    }

    fn recent(&self) -> impl Iterator<Item = usize> {
        self.engaged.iter().rev().take(WINDOW).copied()
    }

    /// Adds an event some seconds after the one before.
    fn push(&mut self, action: &str, item: Option<usize>, domain: Option<Domain>, context: BTreeMap<String, Value>) {
        self.now_ms += self.random.random_range(2_000..60_000);
        if let Some(item) = item.filter(|_| action != "impression") {
            self.engaged.push(item);
        }
        self.events.push(Event {
            event_id: format!("{}-{:05}", self.user_id, self.events.len()),
            user_id: self.user_id.clone(),
            item_id: item.map(|item| self.catalogue.items[item].id.clone()),
            action: action.to_string(),
            ts_ms: self.now_ms,
            value: item.filter(|_| action == "purchase").and_then(|item| self.catalogue.items[item].price),
            domain,
            request_id: None,
            context,
        });
    }

    fn finish(mut self, next_purchase: Option<NextPurchase>) -> Lived {
        let person = self.person.clone();
        self.person.leanings.sort_by(|left, right| right.weight.total_cmp(&left.weight));
        let total: f64 = self.person.leanings.iter().map(|leaning| leaning.weight).sum();
        let interests: Vec<Interest> = self
            .person
            .leanings
            .iter()
            .map(|leaning| Interest {
                categories: self.catalogue.leaves[leaning.leaf].categories.clone(),
                weight: round(leaning.weight / total),
            })
            .collect();
        let tops = interests.iter().filter_map(|interest| interest.categories.first());
        let mut brands: Vec<String> = tops.filter_map(|top| self.person.brands.get(top)).cloned().collect();
        brands.dedup();
        let latent = Latent {
            brands,
            interests,
            price_level: round(self.person.price_level),
            purchases: self.purchases,
            next_purchase,
        };
        let record = UserRecord { user_id: self.user_id, profile: self.person.profile, latent: Some(latent) };
        Lived { record, events: self.events, shown: self.shown, person, intents: self.intents }
    }
}

/// Adds `weight` to the leaves of the groups that fit, all groups alike, and in a group all leaves alike.
fn spread(catalogue: &Catalogue, chances: &mut [f64], weight: f64, fits: impl Fn(&Group) -> bool) {
    let groups: Vec<_> = catalogue.groups.iter().filter(|group| fits(group)).collect();
    if groups.is_empty() {
        chances[0] += weight; // as `leaf_of_groups` does
    }
    for group in &groups {
        for leaf in &group.leaves {
            chances[*leaf] += weight / (groups.len() * group.leaves.len()) as f64;
        }
    }
}

/// The seasons of a moment; the calendar of 365 days is exact enough for shopping.
fn seasons(now_ms: i64) -> &'static [&'static str] {
    let day = ((now_ms - START_MS) as f64 / DAY_MS) as i64 % 365;
    match day {
        0..31 => &["new year", "winter"],
        31..59 => &["winter"],
        59..151 => &["spring"],
        151..212 => &["summer"],
        212..258 => &["summer", "back to school"],
        258..304 => &["back to school"],
        _ => &["gift season", "winter"],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_chances_of_intents_are_those_of_the_draws() {
        const DRAWS: usize = 20_000;
        let catalogue = Catalogue::new(2_000, 1);
        let demand = vec![0.0; catalogue.leaves.len()];
        let mut after_a_purchase = 0;
        for index in 0..12 {
            let (mut life, _) = begin(&catalogue, &demand, index, 60.0, 5);
            for session in 1..5 {
                life.session = session;
                life.session(false);
            }
            life.session = 5;
            after_a_purchase += usize::from(life.lately_bought().is_some());
            let chances = life.intent_chances();
            assert!((chances.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let mut counts = vec![0.0; chances.len()];
            for draw in 0..DRAWS {
                let mut copy = life.clone();
                copy.random.set_stream((1 << 40) + draw as u64);
                counts[copy.intent().leaf] += 1.0;
            }
            let misfit = counts.iter().zip(&chances).map(|(count, chance)| {
                let expected = chance * DRAWS as f64;
                if expected == 0.0 {
                    f64::from(u8::from(*count > 0.0)) * 1e6
                } else {
                    (count - expected).powi(2) / expected
                }
            });
            let (misfit, freedom) =
                (misfit.sum::<f64>(), chances.iter().filter(|chance| **chance > 0.0).count() as f64);
            assert!(misfit < freedom + 5.0 * (2.0 * freedom).sqrt(), "user {index}: {misfit} of {freedom}");
        }
        assert!(after_a_purchase > 3);
    }
}
