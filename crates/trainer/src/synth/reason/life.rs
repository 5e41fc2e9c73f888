//! One person's nine sessions → events, with the cause of every purchase.
//!
//! A session: perhaps a search, perhaps a cart line, then the causes that hold now and the one that decides, impressions with
//! clicks, perhaps a purchase. The last session's purchase is withheld: it is the `next_purchase` of the latent truth.
//! In: shelf, tables, demand, index of the user, seed. Out: [`Lived`]. Caller: `reason`.

use super::catalogue::{Catalogue, LEAF_COUNT, Tables, path};
use super::cause::{Act, DOMAINS, Facts, Held, Line, NOISE, WINDOW, chance_reason, holding};
use super::person::{NEEDS, Person};
use super::rates;
use super::shelf::{LEAVES, Role, TOPS};
use crate::data::{Interest, Latent, NextPurchase, UserRecord};
use crate::draw;
use crate::reason::Reason;
use crate::synth::labels::{Shown, request_id};
use crate::synth::{JOIN_DAYS, SESSION_GAP_DAYS, START_MS, round};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use taiji::event::{Domain, Event};

const DAY_MS: f64 = 86_400_000.0;
/// Sessions of a person; the last `SURE` end in a purchase for certain.
const SESSIONS: usize = 9;
const SURE: usize = 3;
/// Chance that an earlier session does.
const PURCHASE: f64 = 0.75;
/// Chance of a search; a person's first session has one always.
const SEARCH: f64 = 0.5;
/// Chance of a cart line.
const CART: f64 = 0.35;
/// Most clicks of a session, and most impressions until they are made.
const MOST_CLICKS: usize = 3;
const MOST_IMPRESSIONS: usize = 12;
/// Leaf of an impression: the intent, one of the hobby's, any.
const IMPRESSION_WEIGHTS: [f64; 3] = [0.06, 0.65, 0.29];

/// One user's life and what the labels and the oracle are made of.
pub(super) struct Lived {
    /// With the latent truth.
    pub record: UserRecord,
    /// By time.
    pub events: Vec<Event>,
    /// Every impression.
    pub shown: Vec<Shown>,
    /// The same all the time.
    pub person: Person,
    /// The causes that held in the last session.
    pub held: Vec<Held>,
    /// Where that took place.
    pub domain: Domain,
}

/// What a session is about.
struct Session {
    number: usize,
    intent: usize,
    domain: Domain,
    held: Vec<Held>,
    reasons: Vec<Reason>,
}

/// A life in progress.
struct Life<'a> {
    catalogue: &'a Catalogue,
    tables: &'a Tables,
    demand: &'a [f64],
    person: Person,
    user_id: String,
    random: ChaCha8Rng,
    now_ms: i64,
    events: Vec<Event>,
    /// Oldest first.
    lines: Vec<Line>,
    need: Option<usize>,
    purchases: BTreeMap<String, Vec<Reason>>,
    shown: Vec<Shown>,
}

/// Lives user `index`.
pub(super) fn live(catalogue: &Catalogue, tables: &Tables, demand: &[f64], index: usize, seed: u64) -> Lived {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(index as u64);
    let person = Person::new(tables, &mut random);
    let now_ms = START_MS + (random.random::<f64>() * JOIN_DAYS * DAY_MS) as i64;
    let mut life = Life {
        catalogue,
        tables,
        demand,
        person,
        user_id: format!("u{seed}-{index}"),
        random,
        now_ms,
        events: Vec::new(),
        lines: Vec::new(),
        need: None,
        purchases: BTreeMap::new(),
        shown: Vec::new(),
    };
    let profile = life.person.profile();
    life.push("profile", None, None, profile.iter().map(|(name, value)| (name.clone(), json!(value))).collect(), 0);
    life.basket();
    for number in 1..SESSIONS {
        life.pause();
        let session = life.session(number);
        if number > SESSIONS - SURE || life.random.random_bool(PURCHASE) {
            life.buy(session);
        }
    }
    life.pause();
    let last = life.session(SESSIONS);
    life.finish(last)
}

impl Life<'_> {
    /// What everybody has bought before the first session: a consumable, something durable, perhaps another consumable.
    fn basket(&mut self) {
        let mut roles = vec![Role::Consumable, Role::Durable];
        if self.random.random_bool(0.5) {
            roles.push(Role::Consumable);
        }
        draw::shuffle(&mut roles, &mut self.random);
        for role in roles {
            let leaf = draw::choice(&role.leaves(), &mut self.random).copied().unwrap_or_default();
            let item = self.person.choose(self.catalogue, leaf, &mut self.random);
            let domain = draw::choice(&DOMAINS, &mut self.random).copied();
            self.line(Act::Purchase, item, domain, 0);
        }
    }

    /// Some days pass.
    fn pause(&mut self) {
        self.now_ms += (draw::exponential(SESSION_GAP_DAYS, &mut self.random) * DAY_MS) as i64 + 60_000;
    }

    /// One session without its purchase.
    fn session(&mut self, number: usize) -> Session {
        let searches = self.random.random_bool(SEARCH) || self.need.is_none();
        if searches {
            self.need = Some(self.random.random_range(0..NEEDS.len()));
        }
        let cart = self.random.random_bool(CART).then(|| self.cart_item());
        let session = self.decide(number, cart);
        if let Some(need) = self.need.filter(|_| searches) {
            let context = [("query".to_string(), json!(NEEDS[need]))].into_iter().collect();
            self.push("search", None, Some(session.domain), context, number);
        }
        if let Some(item) = cart {
            self.line(Act::Cart, item, Some(session.domain), number);
        }
        let clicks = self.browse(&session);
        if clicks == 0 && cart.is_none() {
            // The newest line always shows the session's domain; this click came from no impression of ours.
            let leaf = self.hobby_leaf();
            let item = self.any_item(leaf);
            self.line(Act::Click, item, Some(session.domain), number);
        }
        session
    }

    /// Something seasonal, as dear as chance has it.
    fn cart_item(&mut self) -> usize {
        let leaf = draw::choice(&Role::Seasonal.leaves(), &mut self.random).copied().unwrap_or_default();
        let tier = usize::from(self.random.random_bool(0.5));
        let fitting: Vec<usize> =
            self.catalogue.shelf(leaf).filter(|item| self.catalogue.makes[*item].tier == tier).collect();
        draw::choice(&fitting, &mut self.random).copied().unwrap_or_default()
    }

    /// Which causes hold, the cart line included, which of them decides, and where the session takes place.
    fn decide(&mut self, number: usize, cart: Option<usize>) -> Session {
        let carted = cart.map(|item| self.as_line(Act::Cart, item));
        let lines: Vec<Line> = carted.into_iter().chain(self.lines.iter().rev().copied()).take(WINDOW).collect();
        let Person { hobby, season, stage, budget, .. } = self.person;
        let held = holding(self.tables, &Facts { lines: &lines, need: self.need, hobby, season, stage, budget });
        let weights: Vec<f64> = held.iter().map(Held::weight).collect();
        let chosen = draw::weighted(&weights, &mut self.random);
        let is_noise = self.random.random_bool(NOISE);
        let intent = if is_noise { self.random.random_range(0..LEAF_COUNT) } else { held[chosen].leaf };
        let chances: Vec<f64> = DOMAINS.iter().map(|domain| held[chosen].chance_of(*domain)).collect();
        let domain = DOMAINS[draw::weighted(&chances, &mut self.random)];
        let reason = |one: &Held| one.reason(self.tables, &self.person, domain);
        let first = if is_noise { chance_reason(domain, intent) } else { reason(&held[chosen]) };
        let others = held.iter().enumerate().filter(|(place, _)| is_noise || *place != chosen);
        let reasons = std::iter::once(first).chain(others.map(|(_, one)| reason(one))).collect();
        Session { number, intent, domain, held, reasons }
    }

    /// Impressions until one to three clicks are made; returns how many were.
    fn browse(&mut self, session: &Session) -> usize {
        let wanted = self.random.random_range(1..=MOST_CLICKS);
        let mut clicks = 0;
        for _ in 0..MOST_IMPRESSIONS {
            let leaf = match draw::weighted(&IMPRESSION_WEIGHTS, &mut self.random) {
                0 => session.intent,
                1 => self.hobby_leaf(),
                _ => self.random.random_range(0..LEAF_COUNT),
            };
            let item = self.any_item(leaf);
            let (click, buy) = rates(self.catalogue, self.tables, &self.person, self.demand, item, session.intent);
            let truth = [("ctr", click), ("cvr", buy)].map(|(name, rate)| (name.to_string(), json!(round(rate))));
            let id = self.catalogue.items[item].id.clone();
            self.push("impression", Some(id), Some(session.domain), truth.into_iter().collect(), session.number);
            let clicked = self.random.random_bool(click);
            self.shown.push(Shown { item, ts_ms: self.now_ms, session: session.number, clicked, cvr: buy });
            if clicked {
                self.line(Act::Click, item, Some(session.domain), session.number);
                clicks += 1;
            }
            if clicks == wanted {
                break;
            }
        }
        clicks
    }

    fn hobby_leaf(&mut self) -> usize {
        let tops = self.tables.hobby_tops[self.person.hobby];
        tops[self.random.random_range(0..tops.len())] * LEAVES + self.random.random_range(0..LEAVES)
    }

    fn any_item(&mut self, leaf: usize) -> usize {
        self.random.random_range(self.catalogue.shelf(leaf))
    }

    /// The purchase of a session, by taste.
    fn buy(&mut self, session: Session) {
        let item = self.person.choose(self.catalogue, session.intent, &mut self.random);
        self.line(Act::Purchase, item, Some(session.domain), session.number);
        if let Some(event) = self.events.last() {
            self.purchases.insert(event.event_id.clone(), session.reasons);
        }
    }

    fn as_line(&self, act: Act, item: usize) -> Line {
        Line { act, leaf: self.catalogue.leaf_of(item), tier: self.catalogue.makes[item].tier }
    }

    /// Something that becomes a line of the history.
    fn line(&mut self, act: Act, item: usize, domain: Option<Domain>, session: usize) {
        let action = match act {
            Act::Click => "click",
            Act::Cart => "add_to_cart",
            Act::Purchase => "purchase",
        };
        self.push(action, Some(self.catalogue.items[item].id.clone()), domain, BTreeMap::new(), session);
        self.lines.push(self.as_line(act, item));
    }

    /// Adds an event some seconds after the one before.
    fn push(
        &mut self,
        action: &str,
        item_id: Option<String>,
        domain: Option<Domain>,
        context: BTreeMap<String, Value>,
        session: usize,
    ) {
        self.now_ms += self.random.random_range(2_000..60_000);
        self.events.push(Event {
            event_id: format!("{}-{:05}", self.user_id, self.events.len()),
            user_id: self.user_id.clone(),
            item_id,
            action: action.to_string(),
            ts_ms: self.now_ms,
            value: None,
            domain,
            request_id: (session > 0).then(|| request_id(&self.user_id, session)),
            context,
        });
    }

    fn finish(mut self, last: Session) -> Lived {
        let item = self.person.choose(self.catalogue, last.intent, &mut self.random);
        let next_purchase = NextPurchase { item_id: self.catalogue.items[item].id.clone(), reasons: last.reasons };
        let tops = self.tables.hobby_tops[self.person.hobby];
        let interests = tops.map(|top| Interest { categories: path(top * LEAVES)[..1].to_vec(), weight: 0.5 }).to_vec();
        let latent = Latent {
            interests,
            brands: tops.map(|top| TOPS[top].brands[self.person.brands[top]].to_string()).to_vec(),
            price_level: self.person.budget as f64,
            purchases: self.purchases,
            next_purchase: Some(next_purchase),
        };
        let record = UserRecord { user_id: self.user_id, profile: self.person.profile(), latent: Some(latent) };
        let (held, domain) = (last.held, last.domain);
        Lived { record, events: self.events, shown: self.shown, person: self.person, held, domain }
    }
}
