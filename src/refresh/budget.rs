//! How many LLM tokens refreshes may cost: so many a second, and so many a day (DESIGN 7).
//!
//! In: what refreshes cost, and the time. Out: how many more may begin. Callers: the [`super::Worker`] asks before it
//! claims, a refresh reports what the LLM took. Times are unix ms of this process; a budget is one process's.
//!
//! What a refresh costs is known only after it. So one may begin while anything is left, counted as the average of those
//! before; what it takes beyond that is a debt that later ones wait for. In the long run the rate is kept exactly.

use parking_lot::Mutex;
use std::sync::Arc;

const DAY_MS: i64 = 86_400_000;
/// Weight of the newest cost in the average.
const NEWEST: f64 = 0.1;

/// Limits and what is left of them; shared by all refreshes of a worker.
#[derive(Debug)]
pub struct TokenBudget {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    second: Option<Bucket>,
    day: Option<Day>,
    /// Average cost of a refresh, at least 1.
    expected: f64,
    /// Held by refreshes under way.
    reserved: f64,
}

/// Fills at its rate, up to what one second brings.
#[derive(Debug)]
struct Bucket {
    per_second: f64,
    level: f64,
    at_ms: i64,
}

/// A UTC day's tokens.
#[derive(Debug)]
struct Day {
    limit: f64,
    used: f64,
    day: i64,
}

/// The place of one refresh under way; given back when dropped, also by a task that panics.
#[derive(Debug)]
pub struct Ticket {
    state: Arc<Mutex<State>>,
    reserved: f64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        state.reserved = (state.reserved - self.reserved).max(0.0);
    }
}

/// What is left of each limit, in tokens, below 0 = a debt; `None` = no such limit.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct BudgetLeft {
    pub second: Option<f64>,
    pub day: Option<f64>,
}

impl TokenBudget {
    /// Limits in tokens, 0 = none; `expected` is what the first refreshes are taken to cost.
    pub fn new(per_second: u64, per_day: u64, expected: usize, now_ms: i64) -> TokenBudget {
        let rate = per_second as f64;
        let second = (per_second > 0).then_some(Bucket { per_second: rate, level: rate, at_ms: now_ms });
        let day = (per_day > 0).then_some(Day { limit: per_day as f64, used: 0.0, day: now_ms.div_euclid(DAY_MS) });
        let expected = expected.max(1) as f64;
        TokenBudget { state: Arc::new(Mutex::new(State { second, day, expected, reserved: 0.0 })) }
    }

    /// How many more refreshes may begin now.
    pub fn fits(&self, now_ms: i64) -> usize {
        let mut state = self.state.lock();
        let left = state.left(now_ms);
        let least = [left.second, left.day].into_iter().flatten().reduce(f64::min);
        let Some(least) = least else { return usize::MAX };
        // As long as anything is left one more fits, whatever it will cost: a limit below one refresh still lets them through.
        ((least - state.reserved) / state.expected).ceil().max(0.0) as usize
    }

    /// A refresh begins.
    pub fn reserve(&self) -> Ticket {
        let mut state = self.state.lock();
        state.reserved += state.expected;
        Ticket { state: self.state.clone(), reserved: state.expected }
    }

    /// The LLM took so many tokens.
    pub fn spend(&self, tokens: usize, now_ms: i64) {
        let mut state = self.state.lock();
        state.left(now_ms);
        let tokens = tokens as f64;
        state.expected = (state.expected * (1.0 - NEWEST) + tokens * NEWEST).max(1.0);
        if let Some(bucket) = &mut state.second {
            bucket.level -= tokens;
        }
        if let Some(day) = &mut state.day {
            day.used += tokens;
        }
    }

    /// What is left now.
    pub fn left(&self, now_ms: i64) -> BudgetLeft {
        self.state.lock().left(now_ms)
    }
}

impl State {
    fn left(&mut self, now_ms: i64) -> BudgetLeft {
        if let Some(bucket) = &mut self.second {
            // A clock that goes back fills nothing, and what it runs through again is not counted twice.
            let elapsed_ms = now_ms.saturating_sub(bucket.at_ms).max(0);
            bucket.level = (bucket.level + bucket.per_second * elapsed_ms as f64 / 1000.0).min(bucket.per_second);
            bucket.at_ms = bucket.at_ms.max(now_ms);
        }
        if let Some(day) = &mut self.day {
            let today = now_ms.div_euclid(DAY_MS);
            if today > day.day {
                // What went beyond yesterday's limit is today's debt.
                day.used = (day.used - day.limit).max(0.0);
                day.day = today;
            }
        }
        BudgetLeft {
            second: self.second.as_ref().map(|bucket| bucket.level),
            day: self.day.as_ref().map(|day| day.limit - day.used),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_limits_everything_fits() {
        let budget = TokenBudget::new(0, 0, 10, 0);
        budget.spend(1_000_000, 0);
        assert_eq!(budget.fits(0), usize::MAX);
        assert_eq!(budget.left(0), BudgetLeft { second: None, day: None });
    }

    #[test]
    fn places_are_held_by_those_under_way_and_given_back() {
        let budget = TokenBudget::new(100, 0, 50, 0);
        assert_eq!(budget.fits(0), 2);
        let tickets = [budget.reserve(), budget.reserve()];
        assert_eq!(budget.fits(0), 0);
        drop(tickets);
        assert_eq!(budget.fits(0), 2, "neither cost anything: both were skips");
    }

    #[test]
    fn a_debt_is_waited_for() {
        let budget = TokenBudget::new(100, 0, 1000, 0);
        assert_eq!(budget.fits(0), 1, "one may begin though it costs more than a second brings");
        let ticket = budget.reserve();
        budget.spend(450, 0);
        drop(ticket);
        assert_eq!((budget.fits(3500), budget.fits(3501)), (0, 1), "350 tokens at 100 a second");
        assert_eq!(budget.left(60_000).second, Some(100.0), "no more than one second is saved up");
    }

    #[test]
    fn a_day_ends_at_midnight_and_takes_its_debt_along() {
        let budget = TokenBudget::new(0, 1000, 100, DAY_MS * 5 + 1);
        budget.spend(1250, DAY_MS * 5 + 2);
        assert_eq!(budget.fits(DAY_MS * 6 - 1), 0);
        assert_eq!(budget.left(DAY_MS * 6).day, Some(750.0));
        assert_eq!(budget.left(DAY_MS * 5).day, Some(750.0), "a clock that goes back opens no day again");
        assert_eq!(budget.left(DAY_MS * 7).day, Some(1000.0));
    }

    proptest! {
        /// A worker that starts whatever fits, with any costs, at any pace: the limits hold but for one round's overrun.
        #[test]
        fn the_rates_are_kept_over_every_stretch(
            per_second in 1u64..500, per_day in 0u64..20_000,
            rounds in proptest::collection::vec((0i64..5_000, proptest::collection::vec(0usize..300, 0..6)), 1..60),
        ) {
            let budget = TokenBudget::new(per_second, per_day, 150, 0);
            let (mut now_ms, mut spent, mut overrun) = (0i64, Vec::new(), 0usize);
            for (pause_ms, costs) in rounds {
                now_ms += pause_ms;
                let started = budget.fits(now_ms).min(costs.len());
                let tickets: Vec<Ticket> = (0..started).map(|_| budget.reserve()).collect();
                let mut round = 0;
                for (ticket, cost) in tickets.into_iter().zip(costs) {
                    budget.spend(cost, now_ms);
                    drop(ticket);
                    round += cost;
                }
                overrun = overrun.max(round);
                spent.push((now_ms, round));
            }
            for (place, (from_ms, _)) in spent.iter().enumerate() {
                let mut sum = 0;
                for (to_ms, tokens) in &spent[place..] {
                    sum += tokens;
                    let refilled = per_second as f64 * (1.0 + (to_ms - from_ms) as f64 / 1000.0);
                    prop_assert!(sum as f64 <= refilled + overrun as f64 + 1e-6, "{sum} tokens from {from_ms} to {to_ms}");
                }
            }
            let total: usize = spent.iter().map(|(_, tokens)| tokens).sum();
            let days = now_ms / DAY_MS + 1;
            prop_assert!(per_day == 0 || total as f64 <= (per_day as i64 * days) as f64 + overrun as f64);
        }

        /// Nobody starves: after every debt there comes a time when one more fits.
        #[test]
        fn a_debt_ends(per_second in 1u64..500, costs in proptest::collection::vec(0usize..1000, 0..20)) {
            let budget = TokenBudget::new(per_second, 0, 100, 0);
            let total: usize = costs.iter().sum();
            costs.iter().for_each(|cost| budget.spend(*cost, 0));
            let wait_ms = (total as f64 / per_second as f64 * 1000.0).ceil() as i64 + 1;
            prop_assert!(budget.fits(wait_ms) >= 1);
        }
    }
}
