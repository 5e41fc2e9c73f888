//! This machine's clock. Callers: whoever stamps or checks against wall time without asking the store for its own.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix time in ms; 0 for a clock before 1970.
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}
