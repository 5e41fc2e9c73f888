//! The world `reason`: what its parts promise, and its oracle against draws.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::cause::{Act, DOMAINS, Facts, Ground, Held, Line, NOISE, WINDOW, holding};
use super::shelf::Role;
use super::*;
use crate::data::{ExampleSettings, Split, build_examples};
use crate::draw;
use crate::reason::{Cause, Checked, Reason, check, true_reason};
use crate::synth::tests::assert_calibrated;
use crate::synth::{Conflict, WorldKind, generate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use taiji::prompt::{PromptMode, PromptSchema, render};

fn settings(users: usize, seed: u64) -> SynthSettings {
    SynthSettings { kind: WorldKind::Reason, users, seed, ..SynthSettings::default() }
}

#[test]
fn the_oracle_is_the_mean_of_draws() {
    let settings = SynthSettings { conflict: Some(Conflict::Kept60), ..settings(400, 31) };
    let world = generate(&settings);
    let (catalogue, tables) = (Catalogue::new(settings.world_seed), Tables::new(settings.world_seed));
    let demand = demand::by_leaf(LEAF_COUNT, settings.demand_spread(), settings.world_seed);
    let lives: Vec<_> = (0..400).map(|index| life::live(&catalogue, &tables, &demand, index, settings.seed)).collect();
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut draws = Vec::new();
    while draws.len() < 400_000 {
        let user = random.random_range(0..lives.len());
        let lived = &lives[user];
        // The session anew, until it takes place where the last one did.
        let weights: Vec<f64> = lived.held.iter().map(Held::weight).collect();
        let chosen = lived.held[draw::weighted(&weights, &mut random)];
        if !random.random_bool(chosen.chance_of(lived.domain)) {
            continue;
        }
        let noise = random.random_range(0..LEAF_COUNT);
        let intent = if random.random_bool(NOISE) { noise } else { chosen.leaf };
        let wanted = lived.held[random.random_range(0..lived.held.len())].leaf;
        let item = match random.random_bool(0.5) {
            true => random.random_range(catalogue.shelf(wanted)),
            false => random.random_range(0..world.items.len()),
        };
        let (click, buy) = rates(&catalogue, &tables, &lived.person, &demand, item, intent);
        draws.push((world.ctcvr(user, item).unwrap(), random.random_bool(click) && random.random_bool(buy)));
    }
    assert_calibrated(draws);
}

fn purchase(leaf: usize) -> Line {
    Line { act: Act::Purchase, leaf, tier: 0 }
}

#[test]
fn causes_hold_as_their_facts_say() {
    let tables = Tables::new(1);
    let click = Line { act: Act::Click, ..purchase(0) };
    let cart = |tier| Line { act: Act::Cart, leaf: Role::Seasonal.of(2), tier };
    let season = tables.season[3][1];
    let find = |lines: &[Line], need: Option<usize>, budget: usize| {
        holding(&tables, &Facts { lines, need, hobby: 3, season: 1, stage: 2, budget })
    };
    let leaf_of = |held: &[Held], place: usize| held.iter().find(|one| one.place() == place).map(|one| one.leaf);

    // Nothing but a click: only the season is left, and it stays where its leaf was bought.
    assert_eq!(find(&[click], None, 0), [Held { ground: Ground::Season, leaf: season }]);
    assert_eq!(leaf_of(&find(&[purchase(season), click], Some(0), 0), 0), None);

    // Accessories in their order, of the newest durable thing that lacks one.
    let (durable, first, second) = (Role::Durable.of(4), Role::First.of(4), Role::Second.of(4));
    assert_eq!(leaf_of(&find(&[purchase(durable)], None, 0), 1), Some(first));
    assert_eq!(leaf_of(&find(&[purchase(first), purchase(durable)], None, 0), 1), Some(second));
    let done = [purchase(second), purchase(first), purchase(durable), purchase(Role::Durable.of(5))];
    assert_eq!(leaf_of(&find(&done, None, 0), 1), Some(Role::First.of(5)));

    // A consumable runs out after three lines, the oldest first, and not where it was bought again.
    let (gels, beans) = (Role::Consumable.of(0), Role::Consumable.of(1));
    assert_eq!(leaf_of(&find(&[click, click, purchase(gels)], None, 0), 3), None);
    let old = [click, click, click, purchase(gels), purchase(beans)];
    assert_eq!(leaf_of(&find(&old, None, 0), 3), Some(beans));
    let again = [purchase(beans), click, click, purchase(gels), purchase(beans)];
    assert_eq!(leaf_of(&find(&again, None, 0), 3), Some(gels));

    // Too dear for a low budget, and only until it was bought.
    let instead = tables.instead[2];
    for (tier, budget, leaf) in [(0, 0, cart(0).leaf), (1, 0, instead), (1, 1, cart(1).leaf)] {
        assert_eq!(leaf_of(&find(&[click, cart(tier)], None, budget), 4), Some(leaf));
        assert_eq!(leaf_of(&find(&[purchase(leaf), cart(tier)], None, budget), 4), None);
        assert_eq!(leaf_of(&find(&[cart(tier), purchase(leaf)], None, budget), 4), Some(leaf));
    }

    let need = tables.need[5][2];
    assert_eq!(leaf_of(&find(&[click], Some(5), 0), 2), Some(need));
    assert_eq!(leaf_of(&find(&[purchase(need)], Some(5), 0), 2), None);
}

/// What section 1 of the specification says was measured.
#[test]
fn sessions_look_as_specified() {
    let world = generate(&settings(2_000, 11));
    let sessions = 9.0 * 2_000.0;
    let count = |action: &str| world.events.iter().filter(|event| event.action == action).count() as f64;
    let per_session = |count: f64| count / sessions;
    let (impressions, clicks) = (per_session(count("impression")), per_session(count("click")));
    let clicked = world.labels.iter().filter(|label| label.clicked).count() as f64;
    let converted = world.labels.iter().filter(|label| label.converted).count() as f64;
    println!(
        "impressions {impressions:.2}, clicks {clicks:.2} a session; ctr {:.3}, cvr {:.4}",
        clicked / count("impression"),
        converted / clicked
    );
    assert!((6.9..7.9).contains(&impressions) && (1.4..1.9).contains(&clicks));
    assert!((0.19..0.25).contains(&(clicked / count("impression"))));
    assert!((0.025..0.05).contains(&(converted / clicked)));
    let searches = per_session(count("search"));
    assert!((searches - 5.0 / 9.0).abs() < 0.02, "{searches}");
    assert!((per_session(count("add_to_cart")) - 0.35).abs() < 0.02);
    // 2.5 in the basket, 6 sessions with .75, 2 sure; the last is withheld.
    let purchases = count("purchase") / 2_000.0;
    assert!((purchases - 9.0).abs() < 0.1, "{purchases}");
}

#[test]
fn every_reason_is_true_of_its_purchase_and_shown_by_the_prompt() {
    let world = generate(&settings(500, 12));
    let data = world.dataset();
    let mut causes = std::collections::BTreeMap::new();
    let mut examples =
        build_examples(&data, &ExampleSettings { max_per_user: 1, ..ExampleSettings::new(Split::Train) });
    for split in [Split::Validation, Split::Test] {
        examples.extend(build_examples(&data, &ExampleSettings::new(split)));
    }
    assert_eq!(examples.len(), 1_500);
    let schema =
        PromptSchema { max_engagements: 12, max_queries: 2, max_prompt_tokens: 10_000, ..PromptSchema::small() };
    let mut words = 0;
    for example in &examples {
        let text = true_reason(&example.reasons).unwrap();
        let all = Checked { evidence: true, decides: true, follows: true, arrives: true };
        assert_eq!(check(&text, &[], &example.reasons), all, "{text}");
        assert!(text.contains(&example.target.categories.join(" > ")), "{text}");
        words += text.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).count();
        let prompt = render(&schema, &example.prompt, PromptMode::Think, &|_| 0).text;
        let Reason::Decides { domain, cause, .. } = &example.reasons[0] else { panic!("{:?}", example.reasons) };
        let newest = prompt.lines().find(|line| line.contains(" > ")).unwrap();
        assert!(newest.ends_with(domain.as_str()), "{prompt}");
        let shown = match cause {
            Cause::Season { season, .. } => prompt.contains(&format!("season {season}")),
            Cause::Set { bought, also, .. } => {
                let has = |leaf: &str| {
                    prompt.lines().any(|line| line.starts_with("purchase") && line.contains(&format!("> {leaf}:")))
                };
                has(bought) && also.as_ref().is_none_or(|also| has(also))
            }
            Cause::Need { stage, need } => {
                prompt.contains(&format!("searches: {need}")) && prompt.contains(&format!("life_stage {stage}"))
            }
            Cause::Refill { bought } => {
                prompt.lines().any(|line| line.starts_with("purchase") && line.contains(&format!("> {bought}:")))
            }
            Cause::Cart { carted, tier, budget, .. } => {
                let line = prompt.lines().find(|line| line.starts_with("add_to_cart")).unwrap_or_default();
                line.contains(&format!("> {carted}: {tier}")) && prompt.contains(&format!("budget {budget}"))
            }
            Cause::Nothing => true,
        };
        assert!(shown, "{cause:?}\n{prompt}");
        let says =
            |word: &str| prompt.split(|letter: char| !letter.is_alphanumeric() && letter != '-').any(|one| one == word);
        assert!(!prompt.contains('$') && !super::person::HOBBIES.iter().any(|hobby| says(hobby)), "{prompt}");
        *causes.entry(cause.name()).or_insert(0) += 1;
    }
    println!("{causes:?}, {} words a reason", words as f64 / 1_500.0);
    assert!(causes.len() == 6 && causes.values().all(|count| *count > 90), "{causes:?}");
    assert!(WINDOW + 3 == schema.max_engagements && DOMAINS.len() == 5);
}

impl Crowd {
    /// The same people under another demand.
    pub(in crate::synth) fn with_demand(&self, spread: f64, world_seed: u64) -> Crowd {
        Crowd { demand: demand::by_leaf(LEAF_COUNT, spread, world_seed), ..self.clone() }
    }

    /// Chance of each item to be bought next.
    pub(in crate::synth) fn purchases(&self, user: usize, intents: &[f64]) -> Vec<f64> {
        let wishes = (0..LEAF_COUNT).flat_map(|leaf| {
            let weights = self.people[user].wishes(&self.catalogue, leaf);
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(move |weight| intents[leaf] * weight / total)
        });
        wishes.collect()
    }
}
