//! One generated person: stage of life, interests that drift, taste in brands and prices.
//!
//! In: catalogue and the person's random stream. Out: [`Person`]. Caller: `life`.

use super::catalogue::Catalogue;
use crate::draw;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Stage of life, its age bands, its share.
const STAGES: [(&str, &[&str], f64); 6] = [
    ("student", &["18-24"], 0.2),
    ("young professional", &["25-34"], 0.2),
    ("first home", &["25-34", "35-44"], 0.15),
    ("new parent", &["25-34", "35-44"], 0.15),
    ("retired", &["55-64", "65+"], 0.15),
    ("settled", &["35-44", "45-54"], 0.15),
];
const REGIONS: [&str; 6] = ["north", "south", "east", "west", "coast", "capital"];
/// Weight of the strongest to the weakest interest at the start.
const START_WEIGHTS: [f64; 4] = [1.0, 0.16, 0.08, 0.05];
/// Chance per session that the strongest interest gives way to a new one.
const TURNOVER: f64 = 0.025;
/// Spread of the random walk of the weights (in log), per session.
const DRIFT: f64 = 0.12;

/// One latent interest.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaning {
    /// L2.
    pub group: usize,
    /// The L3 liked best there.
    pub leaf: usize,
    /// Not normalised.
    pub weight: f64,
}

/// Who somebody is.
#[derive(Debug, Clone, PartialEq)]
pub struct Person {
    /// Stage of life.
    pub stage: &'static str,
    /// What a profile event says.
    pub profile: BTreeMap<String, String>,
    /// Two to four; at any time the heaviest is the dominant one.
    pub leanings: Vec<Leaning>,
    /// Preferred brand by L1.
    pub brands: BTreeMap<String, String>,
    /// 0 = the cheapest on the shelf, 1 = the dearest.
    pub price_level: f64,
}

impl Person {
    /// Draws a person.
    pub fn new(catalogue: &Catalogue, random: &mut ChaCha8Rng) -> Self {
        let (stage, ages, _) = STAGES[draw::weighted(&STAGES.map(|(_, _, share)| share), random)];
        let profile = [
            ("age_band", draw::choice(ages, random).copied().unwrap_or_default()),
            ("life_stage", stage),
            ("region", draw::choice(&REGIONS, random).copied().unwrap_or_default()),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()));
        let mut person = Person {
            stage,
            profile: profile.into_iter().collect(),
            leanings: Vec::new(),
            brands: BTreeMap::new(),
            price_level: random.random(),
        };
        for weight in &START_WEIGHTS[..random.random_range(2..=4)] {
            person.lean(catalogue, *weight, random);
        }
        for leaf in &catalogue.leaves {
            let top = &leaf.categories[0];
            if !person.brands.contains_key(top) {
                let brand = draw::choice(&leaf.brands, random).cloned().unwrap_or_default();
                person.brands.insert(top.clone(), brand);
            }
        }
        person
    }

    /// A new interest, for people of some stages more likely one that fits it.
    fn lean(&mut self, catalogue: &Catalogue, weight: f64, random: &mut ChaCha8Rng) {
        let fresh = |group: &usize| self.leanings.iter().all(|leaning| leaning.group != *group);
        let all: Vec<usize> = (0..catalogue.groups.len()).filter(fresh).collect();
        let fitting: Vec<usize> =
            all.iter().copied().filter(|group| catalogue.groups[*group].stage.as_deref() == Some(self.stage)).collect();
        let pool = if !fitting.is_empty() && random.random_bool(0.3) { &fitting } else { &all };
        let Some(group) = draw::choice(pool, random).copied() else { return };
        let Some(leaf) = draw::choice(&catalogue.groups[group].leaves, random).copied() else { return };
        self.leanings.push(Leaning { group, leaf, weight });
    }

    /// The heaviest interest.
    pub fn dominant(&self) -> Option<&Leaning> {
        self.leanings.iter().max_by(|left, right| left.weight.total_cmp(&right.weight))
    }

    /// What a session does to the interests: a small random walk, rarely a new passion.
    pub fn drift(&mut self, catalogue: &Catalogue, random: &mut ChaCha8Rng) {
        for leaning in &mut self.leanings {
            leaning.weight = (leaning.weight * random.random_range(-DRIFT..DRIFT).exp()).clamp(0.03, 1.2);
        }
        if !random.random_bool(TURNOVER) {
            return;
        }
        for leaning in &mut self.leanings {
            leaning.weight *= 0.2;
        }
        if self.leanings.len() >= START_WEIGHTS.len() {
            self.leanings.remove(0);
        }
        self.lean(catalogue, 1.0, random);
    }

    /// How well an item suits this person apart from its category, 0–1.
    pub fn taste(&self, catalogue: &Catalogue, item: usize) -> f64 {
        let brand = f64::from(u8::from(self.likes_brand(catalogue, item)));
        let price = 1.0 - (catalogue.price_rank[item] - self.price_level).abs();
        0.5 * brand + 0.5 * price
    }

    /// Whether an item is of the brand preferred under its L1.
    pub fn likes_brand(&self, catalogue: &Catalogue, item: usize) -> bool {
        let entry = &catalogue.items[item];
        entry.categories.first().and_then(|top| self.brands.get(top)) == entry.brand.as_ref()
    }
}
