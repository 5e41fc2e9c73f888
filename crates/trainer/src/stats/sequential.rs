//! Looking before the end without more false alarms: spending functions (Lan and DeMets, Biometrika 70, 1983) named after the
//! boundaries they imitate, and the boundaries by the recursive integration of Armitage, McPherson and Rowe (JRSS A 132, 1969; Jennison and
//! Turnbull, Group Sequential Methods, 2000, chapter 19).
//!
//! At a look at fraction t of the planned data z(t)·√t is a Brownian motion at t: so it is where seeds or users are *added*. Each
//! bound is given as a nominal level, too, which a t test is held to (Jennison and Turnbull, section 3.8). Looks at the same users along
//! one training are no such motion: hold those to [`Look::spent_here`], which is right for any dependence (Bonferroni).

use super::distribution::{normal_tail, normal_upper};
use super::{StatsError, proper_share};
use serde::{Deserialize, Serialize};

/// How much alpha is spent by when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spending {
    /// α·ln(1 + (e − 1)t): about the same bound at every look.
    Pocock,
    /// On each side, with half of alpha, 2 − 2Φ(z/√t): next to nothing early, nearly all at the end.
    OBrienFleming,
}

impl Spending {
    /// Alpha (two-sided) spent by a fraction of the data.
    pub fn spent(self, alpha: f64, fraction: f64) -> f64 {
        match self {
            Spending::Pocock => alpha * (1.0 + (std::f64::consts::E - 1.0) * fraction).ln(),
            Spending::OBrienFleming => 4.0 * normal_tail(normal_upper(alpha / 4.0) / fraction.sqrt()),
        }
    }
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// Of the planned data.
    pub fraction: f64,
    /// Alpha (two-sided) spent up to here.
    pub spent: f64,
    /// Of it, at this look.
    pub spent_here: f64,
    /// |z| at or above which the look decides.
    pub bound: f64,
    /// The same as a two-sided p-value.
    pub nominal: f64,
}

/// Looks may not be nearer to each other.
const LEAST_STEP: f64 = 0.01;
/// Places of the integral, odd. At the least step the kernel's sd is .1 and the grid's step below .01.
const PLACES: usize = 1601;
/// No path beyond comes back.
const FARTHEST: f64 = 8.0;

/// The bounds of looks at rising fractions of the data, the last of them 1; `alpha` is two-sided.
pub fn looks(spending: Spending, alpha: f64, fractions: &[f64]) -> Result<Vec<Look>, StatsError> {
    proper_share("alpha", alpha)?;
    // 0.11 - 0.1 is a little less than 0.01.
    let least = LEAST_STEP - 1e-9;
    let rising = fractions.windows(2).all(|pair| pair[1] - pair[0] >= least);
    let within = fractions.first().is_some_and(|first| *first >= least) && fractions.last() == Some(&1.0);
    if !rising || !within {
        return Err(StatsError::Looks { fractions: fractions.to_vec(), least: LEAST_STEP });
    }
    let mut found: Vec<Look> = Vec::new();
    let mut paths = Paths::start();
    for &fraction in fractions {
        let spent = spending.spent(alpha, fraction);
        let before = found.last().map_or(0.0, |look| look.spent);
        let step = fraction - found.last().map_or(0.0, |look| look.fraction);
        let bound = paths.bound(spent - before, fraction, step);
        paths = paths.advance(bound * fraction.sqrt(), step);
        let nominal = 2.0 * normal_tail(bound);
        found.push(Look { fraction, spent, spent_here: spent - before, bound, nominal });
    }
    Ok(found)
}

/// Where the paths are that no look has stopped: weights (density times Simpson's) at places.
struct Paths(Vec<(f64, f64)>);

impl Paths {
    fn start() -> Self {
        Paths(vec![(0.0, 1.0)])
    }

    /// The share of all paths that after a step lie beyond ±`limit`.
    fn crossing(&self, limit: f64, step: f64) -> f64 {
        let deviation = step.sqrt();
        let beyond = |place: f64| normal_tail((limit - place) / deviation) + normal_tail((limit + place) / deviation);
        self.0.iter().map(|(place, weight)| weight * beyond(*place)).sum()
    }

    /// The bound on |z| at which a share `spend` crosses.
    fn bound(&self, spend: f64, fraction: f64, step: f64) -> f64 {
        let (mut low, mut high) = (0.0, FARTHEST);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            match self.crossing(middle * fraction.sqrt(), step) > spend {
                true => low = middle,
                false => high = middle,
            }
        }
        0.5 * (low + high)
    }

    /// One step on, without those beyond ±`limit`.
    fn advance(&self, limit: f64, step: f64) -> Self {
        let width = 2.0 * limit / (PLACES - 1) as f64;
        let scale = 1.0 / (2.0 * std::f64::consts::PI * step).sqrt();
        let density = |at: f64| -> f64 {
            self.0.iter().map(|(place, weight)| weight * scale * (-(at - place).powi(2) / (2.0 * step)).exp()).sum()
        };
        let simpson = |number: usize| match number {
            0 => 1.0,
            last if last == PLACES - 1 => 1.0,
            odd if odd % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let place = |number: usize| -limit + width * number as f64;
        Paths((0..PLACES).map(|n| (place(n), density(place(n)) * simpson(n) * width / 3.0)).collect())
    }
}
