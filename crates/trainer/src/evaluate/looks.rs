//! One run of an experiment: figures of its looks, user by user, small enough to be committed.
//!
//! Callers: the stage `answers` (writes them), `contrasts` (reads them).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The figures of one look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LookFigures {
    /// `None`: at the end.
    pub step: Option<u64>,
    /// By metric.
    pub metrics: BTreeMap<String, Hits>,
    /// Some texts, for reading.
    pub texts: Vec<String>,
}

/// One metric, user by user.
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

    #[test]
    fn a_torn_row_is_not_read_as_misses() {
        assert_eq!(Hits { mean: 0.0, users: 9, hits: "ff".into() }.values(), None);
        assert_eq!(Hits { mean: 0.0, users: 1, hits: "x".into() }.values(), None);
    }
}
