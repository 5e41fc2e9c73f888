//! A log cut in time: what lies before a day trains what comes later.
//!
//! In: a data folder's events and a share of them. Out: the events, and the beginning of a day (UTC). Called by `stages` (`before`, `sampled-labels`), which
//! must agree on it, and by `lift`, whose index generations begin with days.

use super::{DataError, find, read_events};
use std::path::Path;
use taiji::event::{ActionTable, Event};

pub(crate) const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Beginning of the day (UTC) of an instant.
pub(crate) fn day_of(ms: i64) -> i64 {
    ms.div_euclid(DAY_MS) * DAY_MS
}

/// Beginning of the day in which `share` of the times have passed; `None` without times. A day is whole on one side: of a clock that counts
/// days nobody knows what came first.
fn day_at_share(mut times_ms: Vec<i64>, share: f64) -> Option<i64> {
    times_ms.sort_unstable();
    let place = ((share * times_ms.len() as f64) as usize).min(times_ms.len().checked_sub(1)?);
    Some(day_of(times_ms[place]))
}

/// The events of a folder, and the same of them.
pub(crate) fn events_with_split(folder: &Path, share: f64) -> Result<(Vec<Event>, i64), DataError> {
    let name = "events.jsonl";
    let missing = || DataError::Missing { folder: folder.display().to_string(), name: name.to_string() };
    let path = find(folder, name).ok_or_else(missing)?;
    let events: Vec<Event> = read_events(&path, ActionTable::default())?.collect::<Result<_, _>>()?;
    let day = day_at_share(events.iter().map(|event| event.ts_ms).collect(), share);
    let day = day.ok_or_else(|| DataError::line(&path, 1, "no events; a log without any has no days"))?;
    Ok((events, day))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_stays_whole() {
        let day = |days: i64| days * DAY_MS;
        // Ten events: three on day 0, five on day 1, two on day 2.
        let times: Vec<i64> = [day(1); 5].into_iter().chain([day(0) + 7; 3]).chain([day(2) + 1; 2]).collect();
        assert_eq!(day_at_share(times.clone(), 0.0), Some(day(0)));
        assert_eq!(day_at_share(times.clone(), 0.29), Some(day(0)));
        // Four and seven tenths lie within day 1: all of it is later.
        assert_eq!(day_at_share(times.clone(), 0.4), Some(day(1)));
        assert_eq!(day_at_share(times.clone(), 0.79), Some(day(1)));
        assert_eq!(day_at_share(times.clone(), 0.8), Some(day(2)));
        assert_eq!(day_at_share(times, 1.0), Some(day(2)));
        assert_eq!(day_at_share(vec![], 0.5), None);
        assert_eq!(day_of(-1), -DAY_MS);
    }
}
