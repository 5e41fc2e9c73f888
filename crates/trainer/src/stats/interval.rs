//! Intervals of a mean over seeds × users.
//!
//! Seeds and users are crossed: every seed is judged on the same users. With the model y = μ + seed + user + rest the variance of
//! the mean is (MS_seeds + max(MS_users − MS_rest, 0)) / (seeds · users), the estimate of multi-reader studies (Obuchowski and
//! Rockette 1995; Hillis, Statistics in Medicine 26, 2007), with seeds as readers and users as cases: the seeds' part is the variance of
//! the seed means, which is what a t interval on seed means has, and the users' part is what such an interval lacks.
//! With 3 seeds Satterthwaite's degrees of freedom are somewhat liberal and Cochran and Cox's weighted quantile (Experimental
//! Designs, 1957, section 4.14) somewhat conservative; the mean of the two quantiles is used. Measured in docs/results.md.

use super::distribution::student_upper;
use super::{Sample, StatsError, proper_share};
use serde::{Deserialize, Serialize};

/// Which interval it is, and so which population it speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Student's t on the seed means, with the users' variance added: other seeds and other users.
    SeedsAndUsers,
    /// Student's t on the seed means: other seeds; other users only where each seed has its own.
    Seeds,
    /// Student's t over users: other users, *this* training run.
    Users,
    /// Percentiles of the paired cluster bootstrap.
    Bootstrap,
}

/// A figure with what surrounds it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean, or the statistic of the whole sample.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Two-sided, .95 for example.
    pub level: f64,
    /// Two-sided, of no difference from 0.
    pub p: f64,
    /// Which interval it is.
    pub method: Method,
}

impl Interval {
    /// Whether a value lies in it.
    pub fn covers(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}

/// The interval to report of a mean; the design chooses which. Several seeds on common users: [`Method::SeedsAndUsers`]; one figure a
/// seed: [`Method::Seeds`]; one run: [`Method::Users`]. The bootstrap is left to statistics that are no means: with few seeds it
/// does not cover.
pub fn interval(sample: &Sample, level: f64) -> Result<Interval, StatsError> {
    let spread = Spread::of(sample)?;
    let method = match (sample.seeds(), sample.users()) {
        (1, _) => Method::Users,
        (_, 1) => Method::Seeds,
        _ => Method::SeedsAndUsers,
    };
    spread.interval(level, method)
}

/// Student's t on the seed means and nothing else: too narrow where the users' own variance matters; for comparison.
pub fn seed_means_interval(sample: &Sample, level: f64) -> Result<Interval, StatsError> {
    interval(&Sample::of_seeds(&sample.seed_means())?, level)
}

/// An estimate and the two parts of its variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub estimate: f64,
    seeds: Part,
    users: Part,
}

/// A part of a variance and its degrees of freedom.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    variance: f64,
    freedom: f64,
}

impl Spread {
    /// Mean squares of the crossed design without replication.
    pub(super) fn of(sample: &Sample) -> Result<Self, StatsError> {
        let (seeds, users) = (sample.seeds() as f64, sample.users() as f64);
        if sample.seeds() * sample.users() < 2 {
            return Err(StatsError::TooFew);
        }
        let estimate = sample.mean();
        let (seed_means, user_means) = (sample.seed_means(), sample.user_means());
        let squares = |values: &[f64]| values.iter().map(|value| (value - estimate).powi(2)).sum::<f64>();
        let none = Part { variance: 0.0, freedom: 1.0 };
        if sample.seeds() == 1 {
            let variance = squares(&user_means) / (users - 1.0) / users;
            return Ok(Spread { estimate, seeds: none, users: Part { variance, freedom: users - 1.0 } });
        }
        let of_seeds = Part { variance: squares(&seed_means) / (seeds - 1.0) / seeds, freedom: seeds - 1.0 };
        if sample.users() == 1 {
            return Ok(Spread { estimate, seeds: of_seeds, users: none });
        }
        let mut rest = 0.0;
        for (seed, seed_mean) in seed_means.iter().enumerate() {
            let deviations = sample.of_seed(seed).iter().zip(&user_means);
            rest += deviations.map(|(value, user)| (value - seed_mean - user + estimate).powi(2)).sum::<f64>();
        }
        let rest = rest / ((seeds - 1.0) * (users - 1.0));
        let of_users = seeds * squares(&user_means) / (users - 1.0);
        let variance = (of_users - rest).max(0.0) / (seeds * users);
        Ok(Spread { estimate, seeds: of_seeds, users: Part { variance, freedom: users - 1.0 } })
    }

    /// Of the estimate.
    pub(super) fn standard_error(&self) -> f64 {
        (self.seeds.variance + self.users.variance).sqrt()
    }

    /// How many standard errors leave `tail` beyond them on one side.
    pub(super) fn quantile(&self, tail: f64) -> f64 {
        let parts = [self.seeds, self.users];
        let total: f64 = parts.iter().map(|part| part.variance).sum();
        if total == 0.0 {
            return 0.0;
        }
        let pooled: f64 = parts.iter().map(|part| part.variance.powi(2) / part.freedom).sum();
        let satterthwaite = student_upper(tail, total.powi(2) / pooled);
        let present = parts.iter().filter(|part| part.variance > 0.0);
        let weighted: f64 = present.map(|part| part.variance / total * student_upper(tail, part.freedom)).sum();
        0.5 * (satterthwaite + weighted)
    }

    /// One-sided: how probable so much or more above `value` would be if `value` were true.
    pub(super) fn p_above(&self, value: f64) -> f64 {
        let (distance, error) = (self.estimate - value, self.standard_error());
        if error == 0.0 {
            // Figures without any spread: certain, or nothing to tell.
            return if distance == 0.0 { 0.5 } else { f64::from(distance < 0.0) };
        }
        let tail = self.tail_beyond(distance.abs() / error);
        if distance >= 0.0 { tail } else { 1.0 - tail }
    }

    /// The tail whose quantile is `errors`, by bisection of its logarithm; below 1e-12 it is 1e-12.
    fn tail_beyond(&self, errors: f64) -> f64 {
        let (mut low, mut high) = (1e-12f64.ln(), 0.5f64.ln());
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            match self.quantile(middle.exp()) > errors {
                true => low = middle,
                false => high = middle,
            }
        }
        (0.5 * (low + high)).exp()
    }

    pub(super) fn interval(&self, level: f64, method: Method) -> Result<Interval, StatsError> {
        let tail = (1.0 - proper_share("level", level)?) / 2.0;
        let half = self.quantile(tail) * self.standard_error();
        let upper = self.p_above(0.0);
        Ok(Interval {
            estimate: self.estimate,
            low: self.estimate - half,
            high: self.estimate + half,
            level,
            p: (2.0 * upper.min(1.0 - upper)).min(1.0),
            method,
        })
    }
}
