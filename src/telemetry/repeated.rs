//! One log line a minute and part: an outage says what it is, and does not bury everything else.
//!
//! In: a part (a store call by name, say) that has failed once more. Out: whether its line may be written, and how many were
//! held back before it. Callers: the structs of this room whose happenings come many times a second while something is away.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Between two lines of one part.
const INTERVAL: Duration = Duration::from_secs(60);

/// When each part wrote last. Parts are names in the code: few.
#[derive(Debug, Default)]
pub struct Repeated {
    lines: Mutex<HashMap<String, Line>>,
}

#[derive(Debug)]
struct Line {
    written: Instant,
    held_back: u64,
}

impl Repeated {
    /// How many of the part's lines were held back since its last one, if the next may be written now; `None` = hold this
    /// one back, too.
    pub fn admit(&self, part: &str, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock();
        match lines.get_mut(part) {
            Some(line) if now.saturating_duration_since(line.written) < INTERVAL => {
                line.held_back += 1;
                None
            }
            Some(line) => {
                line.written = now;
                Some(std::mem::take(&mut line.held_back))
            }
            None => {
                lines.insert(part.to_string(), Line { written: now, held_back: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_03_a_part_writes_a_line_a_minute_and_says_how_many_it_held_back() {
        let (repeated, start) = (Repeated::default(), Instant::now());
        let mut written = 0;
        for tenth in 0..1800 {
            let now = start + Duration::from_millis(100 * tenth);
            let admitted = [repeated.admit("claim", now), repeated.admit("sweep", now)];
            assert!(admitted[0] == admitted[1], "parts do not count for each other");
            if let Some(held_back) = admitted[0] {
                assert_eq!(held_back, if tenth == 0 { 0 } else { 599 });
                written += 1;
            }
        }
        assert_eq!(written, 3, "in three minutes at ten failures a second");
        println!("audit 03: log lines of one part in a minute of failures, ten a second: {}", written / 3);
    }
}
