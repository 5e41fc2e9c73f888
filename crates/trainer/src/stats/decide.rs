//! Decisions on intervals and p-values: no worse than a margin; several claims at once.

use super::interval::Spread;
use super::{Sample, StatsError, proper_share};
use serde::Serialize;

/// Whether an arm is at most a margin below another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NonInferiority {
    /// Mean difference, arm − other; higher is better.
    pub estimate: f64,
    /// Lower end of the one-sided interval at 1 − alpha.
    pub low: f64,
    /// What was declared as negligible, above 0.
    pub margin: f64,
    /// One-sided, of a true difference of −margin.
    pub p: f64,
    /// `low` > −margin.
    pub shown: bool,
}

/// Tests paired differences (higher is better) against −`margin`, one-sided at `alpha` (.025 goes with 95 % intervals).
pub fn non_inferiority(differences: &Sample, margin: f64, alpha: f64) -> Result<NonInferiority, StatsError> {
    if margin.is_nan() || margin <= 0.0 {
        return Err(StatsError::OutOfRange { what: "margin", value: margin, range: "above 0" });
    }
    let spread = Spread::of(differences)?;
    let low = spread.estimate - spread.quantile(proper_share("alpha", alpha)?.min(0.5)) * spread.standard_error();
    Ok(NonInferiority { estimate: spread.estimate, low, margin, p: spread.p_above(-margin), shown: low > -margin })
}

/// Holm's adjusted p-values, in the order given: each may be compared with the family's alpha (Scandinavian Journal of Statistics 6,
/// 1979).
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![0.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, place) in by_size(p).into_iter().enumerate() {
        largest = largest.max((p.len() - rank) as f64 * p[place]).min(1.0);
        adjusted[place] = largest;
    }
    adjusted
}

/// Places of the values, smallest first; equals in the order given.
pub(super) fn by_size(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|left, right| p[*left].total_cmp(&p[*right]));
    order
}
