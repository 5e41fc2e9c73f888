//! How many refreshes readers may ask for (DESIGN 7): so many a minute with one key, and so many in all. Tokens are money, and class
//! 0 never waits for the token budget.
//!
//! In: a key, a number of users, the time. Out: how many of them may be refreshed. Callers: `refresh` (`POST …/refresh`),
//! `staleness` (`deadline_ms`). A budget is one process's, and holds a minute's worth at most.

use crate::config::RefreshSettings;
use crate::http::{ApiError, KeyNumber};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Keys whose levels are kept without a look at which are full.
const MOST_KEYS: usize = 16;

/// The budget of one process.
#[derive(Debug)]
pub struct ReaderBudget {
    /// Refreshes a minute; `None` = no limit.
    per_key: Option<u32>,
    in_all: Option<u32>,
    levels: Mutex<Levels>,
}

#[derive(Debug, Default)]
struct Levels {
    all: Option<Level>,
    keys: HashMap<KeyNumber, Level>,
}

/// What is left, as of a time.
#[derive(Debug, Clone, Copy)]
struct Level {
    left: f64,
    at: Instant,
}

impl ReaderBudget {
    /// Full; a setting of 0 is no limit.
    pub fn new(settings: &RefreshSettings) -> ReaderBudget {
        let limit = |setting: u32| (setting > 0).then_some(setting);
        ReaderBudget {
            per_key: limit(settings.reader_refreshes_per_key),
            in_all: limit(settings.reader_refreshes),
            levels: Mutex::default(),
        }
    }

    /// Takes up to `wanted` refreshes out of the key's budget and the common one; returns how many there were.
    pub fn take(&self, key: KeyNumber, wanted: usize, now: Instant) -> usize {
        let mut levels = self.levels.lock();
        let (of_key, of_all) = self.left(&mut levels, key, now);
        let least = [of_key, of_all].into_iter().flatten().fold(f64::INFINITY, f64::min);
        let taken = if least.is_finite() { wanted.min(least as usize) } else { wanted };
        self.add(&mut levels, key, -(taken as f64));
        taken
    }

    /// Gives back what was taken for users who were not queued after all.
    pub fn give_back(&self, key: KeyNumber, count: usize) {
        self.add(&mut self.levels.lock(), key, count as f64);
    }

    /// The refusal of a call for which nothing is left: what is left of each budget, and when there will be one more.
    pub fn refusal(&self, key: KeyNumber, now: Instant) -> ApiError {
        let (of_key, of_all) = self.left(&mut self.levels.lock(), key, now);
        let wait = |limit: Option<u32>, left: Option<f64>| match (limit, left) {
            (Some(limit), Some(left)) => Duration::from_secs_f64((1.0 - left).max(0.0) * 60.0 / f64::from(limit)),
            _ => Duration::ZERO,
        };
        let after = wait(self.per_key, of_key).max(wait(self.in_all, of_all));
        let shown = |limit: Option<u32>, left: Option<f64>| match (limit, left) {
            (Some(limit), Some(left)) => json!({ "per_minute": limit, "left": left.max(0.0) as u64 }),
            _ => Value::Null,
        };
        let retry_after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1);
        let details = json!({
            "key": shown(self.per_key, of_key),
            "all": shown(self.in_all, of_all),
            "retry_after_ms": retry_after_ms,
        });
        ApiError::OverBudget { retry_after_ms, details }
    }

    /// What is left of the key's budget and of the common one, filled up to now.
    fn left(&self, levels: &mut Levels, key: KeyNumber, now: Instant) -> (Option<f64>, Option<f64>) {
        let full = |limit: u32| Level { left: f64::from(limit), at: now };
        // Keys come and go with the keys file; a full level is no other than none.
        if let Some(limit) = self.per_key.filter(|_| levels.keys.len() > MOST_KEYS) {
            levels.keys.retain(|_, level| level.filled(limit, now) < f64::from(limit));
        }
        let of_key = self.per_key.map(|limit| levels.keys.entry(key).or_insert_with(|| full(limit)).filled(limit, now));
        let of_all = self.in_all.map(|limit| levels.all.get_or_insert_with(|| full(limit)).filled(limit, now));
        (of_key, of_all)
    }

    fn add(&self, levels: &mut Levels, key: KeyNumber, count: f64) {
        if let (Some(limit), Some(level)) = (self.per_key, levels.keys.get_mut(&key)) {
            level.left = (level.left + count).min(f64::from(limit));
        }
        if let (Some(limit), Some(level)) = (self.in_all, &mut levels.all) {
            level.left = (level.left + count).min(f64::from(limit));
        }
    }
}

impl Level {
    fn filled(&mut self, limit: u32, now: Instant) -> f64 {
        let limit = f64::from(limit);
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + elapsed * limit / 60.0).min(limit);
        self.at = self.at.max(now);
        self.left
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{ApiKeys, Scope};
    use axum::http::{HeaderMap, HeaderValue, header};

    fn budget(per_key: u32, in_all: u32) -> ReaderBudget {
        let limit = |setting: u32| (setting > 0).then_some(setting);
        ReaderBudget { per_key: limit(per_key), in_all: limit(in_all), levels: Mutex::default() }
    }

    fn keys() -> [KeyNumber; 2] {
        let keys = ApiKeys::new(&["one".into(), "two".into()], &[], &[]);
        ["Bearer one", "Bearer two"].map(|value| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            keys.require(&headers, Scope::Read).expect("a key")
        })
    }

    #[test]
    fn audit_06_a_key_has_a_budget_and_all_have_one() {
        let ([one, two], now) = (keys(), Instant::now());
        let budget = budget(60, 90);
        assert_eq!(budget.take(one, 100, now), 60, "a key's minute");
        assert_eq!((budget.take(one, 1, now), budget.take(two, 100, now)), (0, 30), "what is left of all");
        let later = now + Duration::from_secs(2);
        assert_eq!((budget.take(one, 100, later), budget.take(two, 100, later)), (2, 1), "60 and 90 a minute");
        budget.give_back(two, 1);
        assert_eq!(budget.take(two, 5, later), 1);
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(budget.take(one, 1000, much_later), 60, "never more than a minute's");
    }

    #[test]
    fn keys_that_come_and_go_leave_nothing_behind() {
        let (now, budget) = (Instant::now(), budget(60, 0));
        for nth in 0..1000_u64 {
            let name = format!("key-{nth}");
            let keys = ApiKeys::new(std::slice::from_ref(&name), &[], &[]);
            let value = HeaderValue::try_from(format!("Bearer {name}")).expect("a header");
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            let key = keys.require(&headers, Scope::Read).expect("a key");
            budget.take(key, 1, now + Duration::from_secs(10 * nth));
        }
        assert!(budget.levels.lock().keys.len() <= MOST_KEYS + 1);
    }

    #[test]
    fn audit_06_a_refusal_says_what_is_left_and_when() {
        let ([one, _], now) = (keys(), Instant::now());
        let budget = budget(60, 120);
        budget.take(one, 60, now);
        let ApiError::OverBudget { retry_after_ms, details } = budget.refusal(one, now) else {
            panic!("another error")
        };
        assert_eq!((retry_after_ms, &details["retry_after_ms"]), (1000, &json!(1000)));
        assert_eq!(details["key"], json!({ "per_minute": 60, "left": 0 }));
        assert_eq!(details["all"], json!({ "per_minute": 120, "left": 60 }));
    }

    #[test]
    fn without_limits_all_are_taken() {
        let ([one, _], now) = (keys(), Instant::now());
        assert_eq!(budget(0, 0).take(one, 1_000_000, now), 1_000_000);
        assert_eq!(budget(0, 5).take(one, 7, now), 5);
    }
}
