//! Inner products of the rewards' own policy gradients: what POPO and min-norm know of a step.

use super::WeightingError;

/// Gradients g_k of each reward alone on a batch, of which half A and half B are disjoint sets of prompts (a group is never split).
#[derive(Debug, Clone, PartialEq)]
pub struct Products {
    /// ⟨g_i, g_j⟩ of the whole batch; its diagonal contains the batch's noise.
    pub whole: Vec<Vec<f64>>,
    /// ½(⟨g_iᴬ, g_jᴮ⟩ + ⟨g_iᴮ, g_jᴬ⟩): without that noise on average.
    pub across: Vec<Vec<f64>>,
}

impl Products {
    /// From the gradients of both halves, `[reward][parameter]`, each the mean over the half's prompts; the halves are equally large.
    pub fn of_halves(first: &[Vec<f64>], second: &[Vec<f64>]) -> Self {
        let count = first.len();
        let table = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..count).map(|row| (0..count).map(|column| of(row, column)).collect()).collect()
        };
        let across =
            table(&|row, column| 0.5 * (dot(&first[row], &second[column]) + dot(&second[row], &first[column])));
        let whole = table(&|row, column| {
            0.25 * (dot(&first[row], &first[column]) + dot(&second[row], &second[column])) + 0.5 * across[row][column]
        });
        Products { whole, across }
    }

    /// Whether all of them are numbers.
    pub fn is_finite(&self) -> bool {
        self.whole.iter().chain(&self.across).flatten().all(|product| product.is_finite())
    }

    /// ‖g_k‖ of the whole batch.
    pub fn norm(&self, reward: usize) -> f64 {
        self.whole[reward][reward].max(0.0).sqrt()
    }

    /// Cosine of two rewards' gradients; 0 where one is none.
    pub fn cosine(&self, one: usize, other: usize) -> f64 {
        let norms = self.norm(one) * self.norm(other);
        if norms > 0.0 { self.whole[one][other] / norms } else { 0.0 }
    }

    /// ‖Σ w_k g_k‖² by the halves (no noise on average, so it may be below 0) and the noise that the whole batch's has on top of it, both
    /// over the longest ‖g_k‖². Near a Pareto-stationary point the first goes to 0, the second does not.
    pub fn residual(&self, weights: &[f64]) -> (f64, f64) {
        let longest = (0..self.whole.len()).map(|reward| self.whole[reward][reward]).fold(0.0, f64::max);
        if longest == 0.0 {
            return (0.0, 0.0);
        }
        let (clean, whole) = (form(&self.across, weights), form(&self.whole, weights));
        (clean / longest, (whole - clean) / longest)
    }

    /// POPO's I_k = ⟨g_k, Σ_j g_j⟩ of the whole batch.
    pub fn indicators(&self) -> Vec<f64> {
        self.whole.iter().map(|row| row.iter().sum()).collect()
    }

    /// Refuses what is no number, and tables of another number of rewards.
    pub(super) fn checked(&self, rewards: usize, step: usize) -> Result<&Self, WeightingError> {
        for (what, table) in [("products", &self.whole), ("products across halves", &self.across)] {
            if table.len() != rewards || table.iter().any(|row| row.len() != rewards) {
                return Err(WeightingError::Rewards { what, expected: rewards, found: table.len() });
            }
            if table.iter().flatten().any(|product| !product.is_finite()) {
                return Err(WeightingError::Gradient { step });
            }
        }
        Ok(self)
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(one, other)| one * other).sum()
}

/// wᵀ·table·w.
fn form(table: &[Vec<f64>], weights: &[f64]) -> f64 {
    let row = |row: &Vec<f64>| row.iter().zip(weights).map(|(product, weight)| product * weight).sum::<f64>();
    table.iter().zip(weights).map(|(products, weight)| weight * row(products)).sum()
}
