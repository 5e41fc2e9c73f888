//! Arms and seeds: one recipe → several sets of entries that differ in some settings and share what does not differ.

use super::base::merge;
use super::read::{Entry, Given};
use super::{Recipe, RecipeError};
use crate::model::DeviceKind;
use crate::stages::{has_device, is_seeded};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fmt;

/// `[experiment]`
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Rows go to `docs/experiments/<name>/`.
    pub name: String,
    /// Each arm runs at each seed.
    pub seeds: Vec<u64>,
    /// The stages that take the seed; all others are shared by the seeds.
    pub seeded: Vec<String>,
    /// How often at each seed: several alignments of one checkpoint, say.
    #[serde(default = "one")]
    pub runs: u64,
    /// The stages that take a seed of their own in each run; all others are shared by the runs.
    #[serde(default)]
    pub run_seeded: Vec<String>,
    /// The stage whose figures are the row; what it does not need is not run.
    pub result: String,
}

fn one() -> u64 {
    1
}

/// Which arm, at which seed, and which of its runs, where there are several.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    pub arm: String,
    pub seed: u64,
    /// From 1.
    pub run: Option<u64>,
}

impl fmt::Display for Trial {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.arm, self.seed)?;
        self.run.map_or(Ok(()), |run| write!(out, ".{run}"))
    }
}

/// One set of entries to run.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Of an experiment.
    pub trial: Option<Trial>,
    /// Name of the bundle.
    pub name: String,
    /// With overrides and seeds.
    pub entries: Vec<Entry>,
}

impl Variant {
    /// Before stages' names in messages; empty without arms.
    pub fn label(&self) -> String {
        self.trial.as_ref().map(|trial| format!("{trial}/")).unwrap_or_default()
    }
}

impl Recipe {
    /// Names of arms and their stages, and what an experiment names.
    pub(super) fn check_arms(&self) -> Result<(), RecipeError> {
        let refuse = |message: String| Err(RecipeError::File { file: self.file.clone(), message });
        for (arm, stages) in &self.arms {
            self.check_name("an arm's name", arm)?;
            if let Some(stage) = stages.keys().find(|stage| !self.has(stage)) {
                return refuse(format!("arms.{arm}.{stage}: there is no stage of this name"));
            }
        }
        let Some(experiment) = &self.experiment else {
            return match self.arms.is_empty() {
                true => Ok(()),
                false => refuse("[arms] needs [experiment]: name, seeds, seeded, result".into()),
            };
        };
        self.check_name("experiment.name", &experiment.name)?;
        if experiment.seeds.is_empty() {
            return refuse("experiment.seeds is empty: give at least one".into());
        }
        if !self.has(&experiment.result) {
            return refuse(format!("experiment.result: there is no stage {}", experiment.result));
        }
        if experiment.runs == 0 || (experiment.runs > 1) == experiment.run_seeded.is_empty() {
            return refuse("experiment: runs and run_seeded are given together; runs at 2 or more".into());
        }
        let wrong = |name: &&String| !self.entries.iter().any(|entry| entry.name == **name && is_seeded(&entry.kind));
        for (key, names) in [("seeded", &experiment.seeded), ("run_seeded", &experiment.run_seeded)] {
            if let Some(name) = names.iter().find(wrong) {
                return refuse(format!("experiment.{key}: there is no stage {name} with a seed"));
            }
        }
        match experiment.run_seeded.iter().find(|name| experiment.seeded.contains(name)) {
            Some(name) => refuse(format!("experiment.run_seeded: {name} stands in seeded, too: one of both")),
            None => Ok(()),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name)
    }

    /// What the recipe asks for, in order: one variant, or one an arm and seed. `arms`: only these, empty = all.
    pub(super) fn variants(&self, given: &Given, arms: &[String]) -> Result<Vec<Variant>, RecipeError> {
        let refuse = |message: String| RecipeError::File { file: self.file.clone(), message };
        let Some(experiment) = &self.experiment else {
            if let Some(arm) = arms.first() {
                return Err(refuse(format!("--arm {arm}: the recipe has no [experiment]")));
            }
            let mut entries = self.entries.clone();
            put_on(given.device, &mut entries);
            self.seed(&mut entries, given)?;
            let name = given.seed.map_or(self.name.clone(), |seed| format!("{}-seed{seed}", self.name));
            return Ok(vec![Variant { trial: None, name, entries }]);
        };
        if given.seed.is_some() || !given.seeds.is_empty() {
            return Err(refuse("--seed: the seeds of an experiment stand in its recipe".into()));
        }
        if let Some(arm) = arms.iter().find(|arm| !self.arms.contains_key(*arm)) {
            return Err(refuse(format!("--arm {arm}: there is no such arm")));
        }
        let mut variants = Vec::new();
        for (arm, overrides) in self.arms.iter().filter(|(arm, _)| arms.is_empty() || arms.contains(arm)) {
            let mut entries = self.entries.clone();
            for entry in &mut entries {
                if let Some(settings) = overrides.get(&entry.name) {
                    self.override_entry(entry, settings)?;
                }
            }
            put_on(given.device, &mut entries);
            for (seed, run) in
                experiment.seeds.iter().flat_map(|seed| (1..=experiment.runs).map(move |run| (*seed, run)))
            {
                let mut seeded = entries.clone();
                for entry in &mut seeded {
                    if experiment.seeded.contains(&entry.name) {
                        entry.settings.insert("seed".into(), seed_value(seed));
                    }
                    if experiment.run_seeded.contains(&entry.name) {
                        // Different for every seed and run.
                        entry.settings.insert(
                            "seed".into(),
                            seed_value(seed.wrapping_mul(experiment.runs).wrapping_add(run - 1)),
                        );
                    }
                }
                let trial = Trial { arm: arm.clone(), seed, run: (experiment.runs > 1).then_some(run) };
                variants.push(Variant { name: format!("{}-{trial}", self.name), trial: Some(trial), entries: seeded });
            }
        }
        Ok(variants)
    }

    fn override_entry(&self, entry: &mut Entry, settings: &toml::Table) -> Result<(), RecipeError> {
        let mut settings = settings.clone();
        if let Some(from) = settings.remove("from") {
            entry.from = self.parents(&entry.name, from)?;
        }
        match settings.keys().find(|key| matches!(key.as_str(), "name" | "kind")) {
            Some(key) => Err(self.key(&entry.name, key, "an arm cannot change it")),
            None => {
                merge(&mut entry.settings, settings);
                Ok(())
            }
        }
    }

    /// Seeds of the command line.
    fn seed(&self, entries: &mut [Entry], given: &Given) -> Result<(), RecipeError> {
        for name in given.seeds.keys() {
            if !entries.iter().any(|entry| entry.name == *name && is_seeded(&entry.kind)) {
                let message = format!("--seed {name}=…: there is no stage of this name with a seed");
                return Err(RecipeError::File { file: self.file.clone(), message });
            }
        }
        for entry in entries.iter_mut().filter(|entry| is_seeded(&entry.kind)) {
            let own = given.seeds.get(&entry.name).copied();
            if let Some(seed) = own.or(given.seed.map(|seed| drawn(seed, &entry.name))) {
                entry.settings.insert("seed".into(), seed_value(seed));
            }
        }
        Ok(())
    }
}

/// The device of the command line, for the stages that have one.
fn put_on(device: Option<DeviceKind>, entries: &mut [Entry]) {
    let Some(device) = device else { return };
    for entry in entries.iter_mut().filter(|entry| has_device(&entry.kind)) {
        entry.settings.insert("device".into(), device.name().into());
    }
}

/// The seed of a stage under `--seed`: two stages never share one, so held-out users are not those of training.
fn drawn(seed: u64, stage: &str) -> u64 {
    let hash = Sha256::digest(format!("{seed}/{stage}"));
    hash.iter().take(4).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// TOML has signed numbers only; a seed above them would not fit a recipe either.
fn seed_value(seed: u64) -> toml::Value {
    toml::Value::Integer((seed & i64::MAX as u64) as i64)
}
