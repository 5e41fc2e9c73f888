//! Generated worlds: people, a shelf of items, what happened, and the truth behind it (DESIGN 8, `synth`).
//!
//! In: [`SynthSettings`]. Out: [`World`], on disk `items.jsonl`, `users.jsonl` (with the latent truth), `events.jsonl` (by time)
//! and `labels.jsonl` (clicks and conversions by impression); same settings, same bytes. `data` reads the files back and makes
//! examples of them. Two worlds: `interests` (what is bought next mostly shows in the newest line) and `reason` (it follows from
//! facts in different places of the prompt). Callers: `taiji-trainer synth`, the demo recipe, tests.

mod demand;
mod interests;
mod labels;
mod oracle;
mod reason;

pub use demand::Conflict;
pub use oracle::Oracle;
pub use reason::{Guess, Rules};

use crate::data::{DataError, Dataset, Label, UserRecord, write_jsonl};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::path::Path;
use taiji::event::{Event, Item};

/// The world-seed unless told otherwise: bundles and load tests then share items and categories.
pub const DEFAULT_WORLD_SEED: u64 = 20_260_603;

/// 2024-01-01.
const START_MS: i64 = 1_704_067_200_000;
/// People join during this many days.
const JOIN_DAYS: f64 = 300.0;
/// Mean days between sessions.
const SESSION_GAP_DAYS: f64 = 5.0;

/// Which world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WorldKind {
    /// Interests drift, and most is bought of what the session was about.
    #[default]
    Interests,
    /// Each purchase has a cause that takes facts from different places of the prompt.
    Reason,
}

/// How large a world, and which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthSettings {
    /// Which.
    pub kind: WorldKind,
    /// People.
    pub users: usize,
    /// Items, at least one for each lowest category, whatever is asked. The world `reason` has 1,980, always.
    pub items: usize,
    /// Events, about: a user's last session is not cut short. In the world `reason` everybody has nine sessions.
    pub events: usize,
    /// Decides users and events.
    pub seed: u64,
    /// Decides items, categories and what follows from what.
    pub world_seed: u64,
    /// What advertisers want; `None` = the world's own default (`interests`: no demand, `reason`: 80).
    pub conflict: Option<Conflict>,
}

impl Default for SynthSettings {
    fn default() -> Self {
        SynthSettings {
            kind: WorldKind::Interests,
            users: 4_000,
            items: 2_000,
            events: 260_000,
            seed: 1,
            world_seed: DEFAULT_WORLD_SEED,
            conflict: None,
        }
    }
}

impl SynthSettings {
    /// Standard deviation of the demand over the leaves. Measured: docs/results.md.
    fn demand_spread(&self) -> f64 {
        use Conflict::{Kept60, Kept80, Kept94};
        match (self.kind, self.conflict) {
            (_, Some(Conflict::None)) | (WorldKind::Interests, None) => 0.0,
            // Without any demand it keeps 88 % only, and with all the demand in the world 64 %.
            (WorldKind::Interests, Some(Kept94)) => 0.0,
            (WorldKind::Interests, Some(Kept80)) => 0.35,
            (WorldKind::Interests, Some(Kept60)) => 1.8,
            (WorldKind::Reason, Some(Kept94)) => 0.52,
            (WorldKind::Reason, Some(Kept80) | None) => 0.75,
            (WorldKind::Reason, Some(Kept60)) => 1.17,
        }
    }
}

/// Everything that was generated.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// The shelf.
    pub items: Vec<Item>,
    /// Profiles and latent truth.
    pub users: Vec<UserRecord>,
    /// By time; impressions carry their true `ctr` and `cvr` in the context.
    pub events: Vec<Event>,
    /// One an impression, by time.
    pub labels: Vec<Label>,
    /// The truth about what comes next; users and items as above.
    pub oracle: Oracle,
}

impl World {
    fn with_room(items: Vec<Item>, settings: &SynthSettings) -> World {
        World {
            items,
            users: Vec::with_capacity(settings.users),
            events: Vec::with_capacity(settings.events),
            labels: Vec::new(),
            oracle: Oracle::default(),
        }
    }

    fn add(&mut self, record: UserRecord, mut events: Vec<Event>, mut labels: Vec<Label>) {
        self.users.push(record);
        self.events.append(&mut events);
        self.labels.append(&mut labels);
    }

    /// Puts everybody's events and labels in the order of time.
    fn sort(&mut self) {
        self.events.sort_by(|left, right| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id)));
        // Stable: a user's impressions stay in order, since each is later than the one before.
        self.labels.sort_by(|left, right| (left.ts_ms, &left.user_id).cmp(&(right.ts_ms, &right.user_id)));
    }

    /// The true P(click and conversion) of an item in the user's next session ([`Oracle::ctcvr`]); both are indices.
    pub fn ctcvr(&self, user: usize, item: usize) -> Option<f64> {
        self.oracle.ctcvr(user, item)
    }

    /// The world as the trainer would read it back from disk.
    pub fn dataset(&self) -> Dataset {
        Dataset::from_records(
            self.items.clone(),
            self.users.clone(),
            self.events.iter().cloned(),
            &taiji::event::ActionTable::default(),
        )
    }
}

/// Generates a world. Each user has a random stream of their own, so more users leave the first ones as they were.
pub fn generate(settings: &SynthSettings) -> World {
    match settings.kind {
        WorldKind::Interests => interests::generate(settings),
        WorldKind::Reason => reason::generate(settings),
    }
}

/// Writes the four files into a folder, which is created.
pub fn write(world: &World, folder: &Path) -> Result<(), DataError> {
    std::fs::create_dir_all(folder).map_err(|source| DataError::Io { path: folder.display().to_string(), source })?;
    write_jsonl(&folder.join("items.jsonl"), &world.items)?;
    write_jsonl(&folder.join("users.jsonl"), &world.users)?;
    write_jsonl(&folder.join("events.jsonl"), &world.events)?;
    write_jsonl(&folder.join("labels.jsonl"), &world.labels)?;
    Ok(())
}

/// What a rate's logit is made of beside match, taste and demand.
struct Rates {
    click: f64,
    conversion: f64,
}

impl Rates {
    /// (ctr, cvr) for how far the item matches the intent, how much it is to the user's taste, and its demand.
    fn of(&self, matching: f64, taste: f64, demand: f64) -> (f64, f64) {
        let sigmoid = |score: f64| 1.0 / (1.0 + (-score).exp());
        let click = sigmoid(self.click + 2.8 * matching + 1.2 * taste);
        (click, sigmoid(self.conversion + 2.0 * matching + 1.5 * taste + demand))
    }

    /// Expected ctr · cvr over (match, its chance).
    fn expected(&self, matches: [(f64, f64); 3], taste: f64, demand: f64) -> f64 {
        let joint = |(matching, chance): (f64, f64)| {
            let (click, conversion) = self.of(matching, taste, demand);
            chance * click * conversion
        };
        matches.into_iter().map(joint).sum()
    }
}

/// Four decimals: enough for a truth, and short on disk.
fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests;
