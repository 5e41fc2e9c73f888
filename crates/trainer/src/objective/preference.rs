//! Softmax-DPO: one chosen answer against several rejected ones (arXiv 2406.09215, eq. 8); with one rejected it is DPO.

use std::ops::Range;

use super::{Evaluation, Objective, ObjectiveError, check_normaliser, same_rows};

/// Value and derivatives of one group.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftmaxDpoTerm {
    /// -log σ(-z), z = log Σ e^(β·(rejected - chosen)).
    pub value: f64,
    /// With respect to the chosen answer: -β·σ(z).
    pub chosen: f64,
    /// With respect to each rejected answer: β·softmax·σ(z).
    pub rejected: Vec<f64>,
}

/// One chosen answer against `rejected` ones, each given as log policy - log reference, summed over its tokens. Without
/// difference the value is ln(1 + rejected).
pub fn softmax_dpo(beta: f64, chosen: f64, rejected: &[f64]) -> SoftmaxDpoTerm {
    let scores: Vec<f64> = rejected.iter().map(|margin| beta * (margin - chosen)).collect();
    let shift = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - shift).exp()).sum();
    let z = shift + sum.ln();
    let sigma = 1.0 / (1.0 + (-z).exp());
    let share = |score: &f64| beta * sigma * (score - shift).exp() / sum;
    // log(1 + e^z) without overflow.
    let value = z.max(0.0) + (-z.abs()).exp().ln_1p();
    SoftmaxDpoTerm { value, chosen: -beta * sigma, rejected: scores.iter().map(share).collect() }
}

/// Rows of one prompt's answers, as ranges of the batch's learned rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    /// Rows of the chosen answer.
    pub chosen: Range<usize>,
    /// Rows of each rejected answer; at least one.
    pub rejected: Vec<Range<usize>>,
}

/// Σ over preferences of [`softmax_dpo`] / normaliser.
#[derive(Debug, Clone)]
pub struct SoftmaxDpo {
    /// Strength of the pull towards the reference.
    pub beta: f64,
    /// Who is preferred to whom.
    pub preferences: Vec<Preference>,
    /// The reference's log-likelihood of every row.
    pub reference: Vec<f64>,
    /// What the sum is divided by: the number of preferences, usually.
    pub normaliser: f64,
}

impl Objective for SoftmaxDpo {
    fn evaluate(&self, log_likelihoods: &[f64]) -> Result<Evaluation, ObjectiveError> {
        same_rows("reference", &self.reference, log_likelihoods)?;
        let normaliser = check_normaliser(self.normaliser)?;
        let margins: Vec<f64> =
            log_likelihoods.iter().zip(&self.reference).map(|(policy, base)| policy - base).collect();
        let mut evaluation = Evaluation { value: 0.0, derivatives: vec![0.0; margins.len()] };
        for preference in &self.preferences {
            let (chosen, rejected) = preference.margins(&margins)?;
            let term = softmax_dpo(self.beta, chosen, &rejected);
            evaluation.value += term.value / normaliser;
            let slopes = std::iter::once(&term.chosen).chain(&term.rejected);
            for (rows, slope) in preference.answers().zip(slopes) {
                evaluation.derivatives[rows.clone()]
                    .iter_mut()
                    .for_each(|derivative| *derivative += slope / normaliser);
            }
        }
        Ok(evaluation)
    }
}

impl Preference {
    /// The chosen answer's rows, then the rejected ones'.
    fn answers(&self) -> impl Iterator<Item = &Range<usize>> {
        std::iter::once(&self.chosen).chain(&self.rejected)
    }

    /// Summed margins of the chosen and the rejected answers.
    fn margins(&self, margins: &[f64]) -> Result<(f64, Vec<f64>), ObjectiveError> {
        let fail = |message: String| ObjectiveError::Setting { field: "preferences", message };
        if self.rejected.is_empty() {
            return Err(fail("need a rejected answer".into()));
        }
        let sum = |rows: &Range<usize>| match margins.get(rows.clone()) {
            Some(part) if !part.is_empty() => Ok(part.iter().sum()),
            _ => Err(fail(format!("name the rows {rows:?} of {}: give rows of the batch", margins.len()))),
        };
        let rejected = self.rejected.iter().map(&sum).collect::<Result<_, _>>()?;
        Ok((sum(&self.chosen)?, rejected))
    }
}
