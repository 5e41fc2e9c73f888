//! `synth`: a generated world.

use super::settings::{Context, KeyError, read, value};
use super::source::{SOURCE_FILE, Source};
use crate::stage::{Artefact, Inputs, STAGE_FILE, Stage, StageError, read_json, write_json};
use crate::synth::{self, Conflict, DEFAULT_WORLD_SEED, SynthSettings, World, WorldKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// As the options of `taiji-trainer synth`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    world: WorldKind,
    users: usize,
    items: Option<usize>,
    events: Option<usize>,
    seed: u64,
    #[serde(default = "default_world_seed")]
    world_seed: u64,
    conflict: Option<Conflict>,
}

fn default_world_seed() -> u64 {
    DEFAULT_WORLD_SEED
}

/// Events a user, about, unless told otherwise.
const EVENTS_PER_USER: usize = 65;

struct Synth {
    settings: SynthSettings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let read: Settings = read(table)?;
    let fixed = [("items", read.items), ("events", read.events)].into_iter().find(|(_, given)| given.is_some());
    if let (WorldKind::Reason, Some((key, _))) = (read.world, fixed) {
        return Err(KeyError::new(key, "the world reason decides that itself: leave it out"));
    }
    Ok(Arc::new(Synth { settings: read.full(), value: value(&read)? }))
}

impl Settings {
    fn full(&self) -> SynthSettings {
        SynthSettings {
            kind: self.world,
            users: self.users,
            items: self.items.unwrap_or(SynthSettings::default().items),
            events: self.events.unwrap_or(self.users * EVENTS_PER_USER),
            seed: self.seed,
            world_seed: self.world_seed,
            conflict: self.conflict,
        }
    }
}

/// The generated world of which a data folder holds the files, with the truth that no file says. Refuses other data.
pub(super) fn world_of(data: &Path) -> Result<World, StageError> {
    let made: Value = read_json(&data.join(STAGE_FILE))?;
    if made["kind"] != "synth" {
        let message = "only a generated world knows the truth: give data of kind synth".to_string();
        return Err(StageError::Setting { key: "from", message });
    }
    let settings = Settings::deserialize(&made["settings"])?;
    Ok(synth::generate(&settings.full()))
}

impl Stage for Synth {
    fn kind(&self) -> &'static str {
        "synth"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn output(&self) -> Artefact {
        Artefact::Data
    }

    fn run(&self, _: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        synth::write(&synth::generate(&self.settings), folder)?;
        write_json(&folder.join(SOURCE_FILE), &Source::Synth { seed: self.settings.seed })
    }
}
