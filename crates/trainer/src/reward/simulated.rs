//! ID reward: the simulator's chance of click and conversion of the item that the answer names. No item, no reward: 0, and counted.

use super::{Answered, Reward, RewardError};
use crate::simulate::{CategoryGrounder, Simulator, Telemetry};
use serde::{Deserialize, Serialize};

/// How a chance becomes a reward. Nothing is cut off at the top: what an aligned policy answers lies there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The chance itself.
    Raw,
    /// Brought to 0 to 1 between the lowest and the highest of the simulator's table (Taiji's min-max).
    #[default]
    MinmaxRaw,
    /// Its logarithm, brought to 0 to 1 between the 0.5th percentile and the highest: rare items are told apart, but what is learned is the
    /// mean logarithm, not the mean chance.
    MinmaxLog,
}

/// See the module.
pub struct Simulated {
    simulator: Simulator,
    grounder: CategoryGrounder,
    scale: Scale,
    /// Of the scaled chance.
    bounds: [f64; 2],
    telemetry: Telemetry,
}

impl Simulated {
    /// Of a simulator and the catalogue it was loaded with.
    pub fn new(simulator: Simulator, grounder: CategoryGrounder, scale: Scale) -> Result<Self, RewardError> {
        let bounds = match scale {
            Scale::Raw => [0.0, 1.0],
            Scale::MinmaxRaw => simulator.percentiles([0.0, 1.0]),
            Scale::MinmaxLog => simulator.percentiles([0.005, 1.0]).map(logarithm),
        };
        if bounds[0].is_nan() || bounds[0] >= bounds[1] {
            let message = format!("all chances of the simulator are alike ({bounds:?}): there is nothing to learn");
            return Err(RewardError::Setting { reward: "simulated".into(), message });
        }
        Ok(Self { simulator, grounder, scale, bounds, telemetry: Telemetry::default() })
    }

    fn scaled(&self, chance: f64) -> f64 {
        let value = if self.scale == Scale::MinmaxLog { logarithm(chance) } else { chance };
        let [low, high] = self.bounds;
        ((value - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// A chance of 0 stands for one in a thousand millions.
fn logarithm(chance: f64) -> f64 {
    chance.max(1e-9).log10()
}

impl Reward for Simulated {
    fn values(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Option<f64>>, RewardError> {
        let mut values = Vec::with_capacity(answers.len());
        for answer in answers {
            let stranger = || RewardError::Stranger { user_id: answer.user_id.to_string() };
            let row = self.simulator.row(answer.user_id).ok_or_else(stranger)?;
            let known = self.grounder.ground(&answer.parsed.answer).map(|item| self.simulator.look_up(row, item));
            self.telemetry.count(known.map(|known| known.level));
            values.push(Some(known.map_or(0.0, |known| self.scaled(known.ctcvr))));
        }
        Ok(values)
    }

    fn telemetry(&self) -> Option<&Telemetry> {
        Some(&self.telemetry)
    }
}
