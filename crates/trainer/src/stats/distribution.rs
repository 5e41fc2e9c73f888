//! Normal and Student's t: distribution functions and quantiles.

use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::erf::{erfc, erfc_inv};
use std::f64::consts::SQRT_2;

/// From here on Student's t is the normal distribution to seven digits.
const NORMAL_FROM: f64 = 1e7;

/// P(Z > z) of a standard normal; accurate far out, where 1 − Φ is not.
pub(super) fn normal_tail(z: f64) -> f64 {
    0.5 * erfc(z / SQRT_2)
}

/// z with P(Z > z) = `tail`; infinite at 0.
pub(super) fn normal_upper(tail: f64) -> f64 {
    SQRT_2 * erfc_inv(2.0 * tail)
}

/// t with P(T > t) = `tail`, 0 < tail ≤ ½, at `freedom` > 0 degrees, which need not be whole.
pub(super) fn student_upper(tail: f64, freedom: f64) -> f64 {
    if freedom >= NORMAL_FROM {
        return normal_upper(tail);
    }
    // By bisection of the tail on a scale that the tail itself gives: the library's own inverse loses digits far out.
    let (mut low, mut high) = (0.0, 2.0);
    while student_tail(high, freedom) > tail && high < 1e300 {
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        match student_tail(middle, freedom) > tail {
            true => low = middle,
            false => high = middle,
        }
    }
    0.5 * (low + high)
}

/// P(T > t), t ≥ 0.
pub(super) fn student_tail(t: f64, freedom: f64) -> f64 {
    if freedom >= NORMAL_FROM {
        return normal_tail(t);
    }
    StudentsT::new(0.0, 1.0, freedom).map_or(f64::NAN, |student| student.cdf(-t))
}
