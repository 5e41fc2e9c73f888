//! Several rewards of the same answers, each gated, bounded, checked and counted by itself.

use super::{Answered, Reward, RewardError};
use crate::simulate::Telemetry;

/// A reward with what is done to its values.
struct Member {
    name: String,
    reward: Box<dyn Reward>,
    gated: bool,
    bounds: [f64; 2],
    /// Another reward, and the least of it without which an answer is worth 0 here.
    gate: Option<(Box<dyn Reward>, f64)>,
}

/// Rewards in an order.
#[derive(Default)]
pub struct RewardSet {
    members: Vec<Member>,
}

/// Values of some answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewards {
    /// `[reward][answer]`
    pub values: Vec<Vec<f64>>,
    /// Answers of each reward to which it does not apply; their value is the mean of their group.
    pub not_applied: Vec<usize>,
}

impl RewardSet {
    /// Adds a reward. `gated`: an answer without the exact format is worth 0; `bounds`: lowest and highest value.
    pub fn with(mut self, name: impl Into<String>, reward: Box<dyn Reward>, gated: bool, bounds: [f64; 2]) -> Self {
        self.members.push(Member { name: name.into(), reward, gated, bounds, gate: None });
        self
    }

    /// Of the reward that was added last: answers of which `reward` says less than `least` are worth 0 (RecGPT-V2's multiplicative gate,
    /// arXiv 2512.14503). Where it does not apply the gate is open.
    pub fn behind(mut self, reward: Box<dyn Reward>, least: f64) -> Self {
        if let Some(last) = self.members.last_mut() {
            last.gate = Some((reward, least));
        }
        self
    }

    /// Names, in order.
    pub fn names(&self) -> Vec<&str> {
        self.members.iter().map(|member| member.name.as_str()).collect()
    }

    /// Counts of the simulator, where one is asked.
    pub fn telemetry(&self) -> Option<&Telemetry> {
        self.members.iter().find_map(|member| member.reward.telemetry())
    }

    /// Values of answers, those to a prompt together, `group` each: [`Self::each`], with a group's mean where a reward does not apply.
    pub fn values(&mut self, answers: &[Answered<'_>], group: usize) -> Result<Rewards, RewardError> {
        let each = self.each(answers)?;
        Ok(Rewards {
            not_applied: each.iter().map(|of| of.iter().filter(|value| value.is_none()).count()).collect(),
            values: each.iter().map(|of| of.chunks(group).flat_map(filled).collect()).collect(),
        })
    }

    /// `[reward][answer]`, gated and bounded; `None` where the reward does not apply. A value that is no number is an error that names its
    /// reward.
    pub fn each(&mut self, answers: &[Answered<'_>]) -> Result<Vec<Vec<Option<f64>>>, RewardError> {
        let mut values = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            let found = member.reward.values(answers)?;
            if let Some((answer, value)) =
                found.iter().enumerate().find(|(_, value)| value.is_some_and(|one| !one.is_finite()))
            {
                let value = value.unwrap_or(f64::NAN);
                return Err(RewardError::NotFinite { reward: member.name.clone(), answer, value });
            }
            let shut: Vec<bool> = match &mut member.gate {
                None => vec![false; answers.len()],
                Some((gate, least)) => {
                    let said = gate.values(answers)?;
                    said.iter().map(|value| value.is_some_and(|value| value.is_nan() || value < *least)).collect()
                }
            };
            let bounded = |(value, at): (Option<f64>, usize)| match value {
                Some(_) if shut[at] || (member.gated && !answers[at].parsed.format_ok) => {
                    Some(0.0f64.clamp(member.bounds[0], member.bounds[1]))
                }
                value => value.map(|value| value.clamp(member.bounds[0], member.bounds[1])),
            };
            values.push(found.into_iter().zip(0..).map(bounded).collect());
        }
        Ok(values)
    }
}

/// Values of a group; where the reward does not apply the mean of the others, 0 if there is none.
fn filled(group: &[Option<f64>]) -> Vec<f64> {
    let known: Vec<f64> = group.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    group.iter().map(|value| value.unwrap_or(mean)).collect()
}
