//! A generated world: people with latent interests, a shelf of items, and what happened (DESIGN 8, `synth`).
//!
//! In: [`SynthSettings`]. Out: [`World`], on disk `items.jsonl`, `users.jsonl` (with the latent truth) and
//! `events.jsonl` (by time); same settings, same bytes. `data` reads the files back and makes examples of them.
//! Callers: `taiji-trainer synth`, the demo recipe, tests.

mod catalogue;
mod life;
mod person;

use crate::data::{DataError, Dataset, UserRecord, write_jsonl};
use catalogue::Catalogue;
use std::path::Path;
use taiji::event::{Event, Item};

/// The world-seed unless told otherwise: bundles and load tests then share items and categories.
pub const DEFAULT_WORLD_SEED: u64 = 20_260_603;

/// How large a world, and which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthSettings {
    /// People.
    pub users: usize,
    /// Items; at least one for each lowest category, whatever is asked.
    pub items: usize,
    /// Events, about: a user's last session is not cut short.
    pub events: usize,
    /// Decides users and events.
    pub seed: u64,
    /// Decides items and categories.
    pub world_seed: u64,
}

impl Default for SynthSettings {
    fn default() -> Self {
        SynthSettings { users: 4_000, items: 2_000, events: 260_000, seed: 1, world_seed: DEFAULT_WORLD_SEED }
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
}

impl World {
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
    let catalogue = Catalogue::new(settings.items, settings.world_seed);
    let events_per_user = settings.events as f64 / settings.users.max(1) as f64;
    let mut users = Vec::with_capacity(settings.users);
    let mut events = Vec::with_capacity(settings.events);
    for index in 0..settings.users {
        let (record, mut lived) = life::live(&catalogue, index, events_per_user, settings.seed);
        users.push(record);
        events.append(&mut lived);
    }
    events.sort_by(|left, right| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id)));
    World { items: catalogue.items, users, events }
}

/// Writes the three files into a folder, which is created.
pub fn write(world: &World, folder: &Path) -> Result<(), DataError> {
    std::fs::create_dir_all(folder).map_err(|source| DataError::Io { path: folder.display().to_string(), source })?;
    write_jsonl(&folder.join("items.jsonl"), &world.items)?;
    write_jsonl(&folder.join("users.jsonl"), &world.users)?;
    write_jsonl(&folder.join("events.jsonl"), &world.events)?;
    Ok(())
}

#[cfg(test)]
mod tests;
