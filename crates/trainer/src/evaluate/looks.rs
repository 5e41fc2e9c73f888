//! One run of an experiment: figures of its looks, user by user, small enough to be committed.
//!
//! Callers: the stages `answers` and `rank` (write them), `contrasts` (reads them).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LookFigures {
    /// `None`: at the end.
    pub step: Option<u64>,
    /// By metric.
    pub metrics: BTreeMap<String, PerUser>,
    /// Figures that are of all users together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
    /// Some texts, for reading.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
}

/// One metric, user by user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerUser {
    /// A hit or a miss each.
    Hits(Hits),
    /// A number each.
    Values(Values),
}

impl PerUser {
    /// Over the users.
    pub fn mean(&self) -> f64 {
        match self {
            PerUser::Hits(hits) => hits.mean,
            PerUser::Values(values) => values.mean,
        }
    }

    /// How many there are.
    pub fn users(&self) -> usize {
        match self {
            PerUser::Hits(hits) => hits.users,
            PerUser::Values(values) => values.users,
        }
    }

    /// One a user; `None` if the row is torn.
    pub fn values(&self) -> Option<Vec<f64>> {
        match self {
            PerUser::Hits(hits) => hits.values(),
            PerUser::Values(values) => values.values(),
        }
    }
}

/// Numbers, one a user, in the order of the users.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Values {
    /// Over the users, before they were rounded.
    pub mean: f64,
    /// Users.
    pub users: usize,
    /// In thousandths, rounded, a space between them.
    pub thousandths: String,
}

impl Values {
    /// Rounds them.
    pub fn new(values: &[f64]) -> Values {
        let thousandths = |value: &f64| format!("{}", (value * 1e3).round() as i64);
        Values {
            mean: values.iter().sum::<f64>() / values.len().max(1) as f64,
            users: values.len(),
            thousandths: values.iter().map(thousandths).collect::<Vec<_>>().join(" "),
        }
    }

    fn values(&self) -> Option<Vec<f64>> {
        let numbers = self.thousandths.split(' ').filter(|number| !number.is_empty());
        let values: Vec<f64> =
            numbers.map(|number| Some(number.parse::<i64>().ok()? as f64 / 1e3)).collect::<Option<_>>()?;
        (values.len() == self.users).then_some(values)
    }
}

/// What was predicted of impressions of like chance, and what came of them, from the lowest chance to the highest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Mean chance of each bucket, a space between them.
    pub predicted: String,
    /// Share of it that it came to.
    pub observed: String,
}

impl Calibration {
    /// Rounds them to five places.
    pub fn new(buckets: impl Iterator<Item = (f64, f64)>) -> Calibration {
        let (predicted, observed): (Vec<_>, Vec<_>) =
            buckets.map(|(p, o)| (format!("{p:.5}"), format!("{o:.5}"))).unzip();
        Calibration { predicted: predicted.join(" "), observed: observed.join(" ") }
    }

    /// Predicted and observed; `None` if the row is torn.
    pub fn points(&self) -> Option<Vec<(f64, f64)>> {
        let numbers = |text: &str| text.split_whitespace().map(|one| one.parse().ok()).collect::<Option<Vec<f64>>>();
        let (predicted, observed) = (numbers(&self.predicted)?, numbers(&self.observed)?);
        (predicted.len() == observed.len()).then(|| predicted.into_iter().zip(observed).collect())
    }
}

/// Hits, user by user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hits {
    /// Share of the users.
    pub mean: f64,
    /// Users.
    pub users: usize,
    /// A bit a user, in the order of the users, four to a hexadecimal digit, the first one highest.
    pub hits: String,
}

impl Hits {
    /// Packs them.
    pub fn new(hits: &[bool]) -> Hits {
        let digit = |four: &[bool]| {
            let value =
                (0..4).fold(0u32, |value, place| (value << 1) | u32::from(four.get(place).is_some_and(|hit| *hit)));
            char::from_digit(value, 16).unwrap_or('0')
        };
        let count = hits.iter().filter(|hit| **hit).count();
        Hits {
            mean: count as f64 / hits.len().max(1) as f64,
            users: hits.len(),
            hits: hits.chunks(4).map(digit).collect(),
        }
    }

    /// 1 a hit, 0 a miss; `None` if the digits do not fit the users.
    pub fn values(&self) -> Option<Vec<f64>> {
        let digits: Vec<u32> = self.hits.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
        let bit = |user: usize| digits.get(user / 4).map(|digit| f64::from((digit >> (3 - user % 4)) & 1));
        (0..self.users).map(bit).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn hits_come_back_as_they_were(hits in prop::collection::vec(any::<bool>(), 0..40)) {
            let packed = Hits::new(&hits);
            let values: Vec<f64> = hits.iter().map(|hit| f64::from(u8::from(*hit))).collect();
            prop_assert_eq!(packed.values(), Some(values));
            prop_assert_eq!(packed.users, hits.len());
        }
    }

    proptest! {
        #[test]
        fn values_come_back_to_the_thousandth(values in prop::collection::vec(-50.0f64..50.0, 0..40)) {
            let packed = Values::new(&values);
            let row = serde_json::to_string(&PerUser::Values(packed)).unwrap();
            let read: PerUser = serde_json::from_str(&row).unwrap();
            let back = read.values().unwrap();
            prop_assert_eq!(back.len(), values.len());
            prop_assert!(back.iter().zip(&values).all(|(one, other)| (one - other).abs() <= 5.001e-4));
        }
    }

    #[test]
    fn a_torn_row_is_not_read_as_misses() {
        assert_eq!(Values { mean: 0.0, users: 2, thousandths: "1".into() }.values(), None);
        assert_eq!(Values { mean: 0.0, users: 1, thousandths: "x".into() }.values(), None);
        assert_eq!(Hits { mean: 0.0, users: 9, hits: "ff".into() }.values(), None);
        assert_eq!(Hits { mean: 0.0, users: 1, hits: "x".into() }.values(), None);
    }
}
