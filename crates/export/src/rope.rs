//! Rotary position embedding: its settings, the frequencies they give, and the tables of a graph.
//!
//! In: `config.json`. Out: [`Rope`], frequencies for those who turn queries and keys themselves, and two weights
//! [positions, hd/2]. Called by `decoder`, and by the trainer. Sources: RoFormer (arXiv 2104.09864); linear scaling (arXiv
//! 2306.15595); YaRN (arXiv 2309.00071, section 3.4); Llama 3.1's stretched waves as transformers computes them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ExportError;
use super::checkpoint::Weight;
use super::config::Config;

/// How positions turn queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed to reach further than the model was trained.
    pub scaling: RopeScaling,
}

/// Change of the frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All divided by this factor.
    Linear(f64),
    /// Low frequencies are slowed down.
    Llama3(Llama3Rope),
    /// Low frequencies are slowed down, and scores sharpened.
    Yarn(YarnRope),
}

/// Settings of `rope_type: llama3`.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct Llama3Rope {
    /// Frequencies below the band are divided by this.
    pub factor: f32,
    /// Waves longer than original positions / this are below the band.
    pub low_freq_factor: f32,
    /// Waves shorter than original positions / this stay as they are.
    pub high_freq_factor: f32,
    /// Positions the model was first trained on.
    pub original_max_position_embeddings: f32,
}

/// Settings of `rope_type: yarn`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnRope {
    /// Frequencies below the band are divided by this.
    pub factor: f64,
    /// Waves that turn this often in the original positions stay as they are.
    pub beta_fast: f64,
    /// Waves that turn less often than this are below the band.
    pub beta_slow: f64,
    /// Positions the model was first trained on.
    pub original_positions: f64,
    /// Cosines and sines are multiplied by this.
    pub attention_factor: f64,
}

/// Keys of `type: yarn` as the file has them.
#[derive(Deserialize)]
struct YarnSettings {
    factor: f64,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
}

impl Config {
    /// Rotary settings from either layout; what is not known is refused by key.
    pub fn rope(&self) -> Result<Rope, ExportError> {
        let mut scaling = RopeScaling::Default;
        let layouts = [("rope_parameters", &self.rope_parameters), ("rope_scaling", &self.rope_scaling)];
        for (key, settings) in layouts {
            let Some(settings) = settings else { continue };
            let Value::Object(settings) = settings else {
                return Err(self.setting(key, "is not an object".to_owned()));
            };
            let found = self.scaling(key, settings)?;
            if found != RopeScaling::Default {
                scaling = found;
            }
        }
        let newer = self.rope_parameters.as_ref().and_then(|settings| settings.get("rope_theta"));
        let theta = newer.and_then(Value::as_f64).or(self.rope_theta);
        let theta = theta.filter(|theta| theta.is_finite() && *theta > 1.0).ok_or_else(|| {
            self.setting("rope_theta", "is not given as a number above 1, here or in rope_parameters".to_owned())
        })?;
        Ok(Rope { theta, scaling })
    }

    /// One layout's scaling.
    fn scaling(&self, key: &str, settings: &Map<String, Value>) -> Result<RopeScaling, ExportError> {
        let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str);
        let wrong = |error: serde_json::Error| self.setting(key, error.to_string());
        let all = || Value::Object(settings.clone());
        let (scaling, known): (_, &[&str]) = match kind {
            None | Some("default") => (RopeScaling::Default, &[]),
            Some("linear") => match settings.get("factor").and_then(Value::as_f64) {
                Some(factor) => (RopeScaling::Linear(factor), &["factor"]),
                None => return Err(self.setting(key, "of type linear lacks factor".to_owned())),
            },
            Some("llama3") => {
                let read = Llama3Rope::deserialize(all()).map_err(wrong)?;
                let known = &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
                (RopeScaling::Llama3(read), known)
            }
            Some("yarn") => {
                let read = YarnSettings::deserialize(all()).map_err(wrong)?;
                let known =
                    &["factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor"];
                (RopeScaling::Yarn(read.with_defaults(self.max_position_embeddings)), known)
            }
            Some(other) => {
                let message = format!("of type '{other}' cannot be computed: default, linear, llama3 and yarn can");
                return Err(self.setting(key, message));
            }
        };
        for (name, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
            let whole_head = name == "partial_rotary_factor" && value.as_f64() == Some(1.0);
            let is_known =
                ["rope_type", "type", "rope_theta"].contains(&name.as_str()) || known.contains(&name.as_str());
            if !is_known && !whole_head {
                let message =
                    format!("is {value}, which is not known for a rope of type {}", kind.unwrap_or("default"));
                return Err(self.setting(&format!("{key}.{name}"), message));
            }
        }
        let factor = settings.get("factor").and_then(Value::as_f64);
        if factor.is_some_and(|factor| !factor.is_finite() || factor < 1.0) {
            return Err(self.setting(&format!("{key}.factor"), "must be a number from 1".to_owned()));
        }
        Ok(scaling)
    }
}

impl YarnSettings {
    fn with_defaults(self, max_positions: usize) -> YarnRope {
        YarnRope {
            factor: self.factor,
            beta_fast: self.beta_fast.unwrap_or(32.0),
            beta_slow: self.beta_slow.unwrap_or(1.0),
            original_positions: self.original_max_position_embeddings.unwrap_or(max_positions as f64),
            attention_factor: self.attention_factor.unwrap_or(0.1 * self.factor.max(1.0).ln() + 1.0),
        }
    }
}

impl Rope {
    /// Frequencies of a head's hd/2 pairs, in f32 as the reference has them: at high positions the rounding matters.
    pub fn frequencies(&self, head: usize) -> Vec<f32> {
        let plain = (0..head / 2).map(|index| (1.0 / self.theta.powf(2.0 * index as f64 / head as f64)) as f32);
        match self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear(factor) => plain.map(|frequency| (f64::from(frequency) / factor) as f32).collect(),
            RopeScaling::Llama3(settings) => plain.map(|frequency| settings.stretched(frequency)).collect(),
            RopeScaling::Yarn(settings) => {
                let (low, high) = settings.band(self.theta, head);
                let mixed = |(index, frequency)| settings.mixed(frequency, index, low, high);
                plain.enumerate().map(mixed).collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn amplitude(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn(settings) => settings.attention_factor,
            RopeScaling::Default | RopeScaling::Linear(_) | RopeScaling::Llama3(_) => 1.0,
        }
    }
}

impl Llama3Rope {
    /// Long waves slowed down by the factor, short ones kept, those between mixed.
    pub(crate) fn stretched(&self, frequency: f32) -> f32 {
        let wave = std::f32::consts::TAU / frequency;
        let original = self.original_max_position_embeddings;
        if wave > original / self.low_freq_factor {
            return frequency / self.factor;
        }
        if wave < original / self.high_freq_factor {
            return frequency;
        }
        let kept = (original / wave - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - kept) * frequency / self.factor + kept * frequency
    }
}

impl YarnRope {
    /// Pairs of the head between which frequencies are mixed.
    fn band(&self, theta: f64, head: usize) -> (f64, f64) {
        let pair = |turns: f64| {
            let wave = self.original_positions / (turns * std::f64::consts::TAU);
            head as f64 * wave.ln() / (2.0 * theta.ln())
        };
        let (low, high) = (pair(self.beta_fast).floor().max(0.0), pair(self.beta_slow).ceil().min(head as f64 - 1.0));
        // Of one pair only: the step from kept to slowed is there.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }

    /// Pairs before the band kept, those behind it slowed down by the factor, those in it mixed.
    fn mixed(&self, frequency: f32, index: usize, low: f64, high: f64) -> f32 {
        let slowed = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
        let frequency = f64::from(frequency);
        (frequency / self.factor * slowed + frequency * (1.0 - slowed)) as f32
    }
}

/// Names of the tables in the graph, and what makes each.
pub fn tables(rope: &Rope, positions: usize, head: usize) -> [(&'static str, impl FnOnce() -> Weight); 2] {
    let (frequencies, amplitude) = (rope.frequencies(head), rope.amplitude());
    let table = |function: fn(f64) -> f64| {
        let frequencies = frequencies.clone();
        move || Weight {
            shape: vec![positions, frequencies.len()],
            values: (0..positions)
                .flat_map(|position| frequencies.iter().map(move |&frequency| position as f32 * frequency))
                .map(|angle| (amplitude * function(f64::from(angle))) as f32)
                .collect(),
        }
    };
    [("rope.cos", table(f64::cos)), ("rope.sin", table(f64::sin))]
}
