//! Readiness as latches: each part of the process holds one; the process is ready when all are released.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Shared by everything that can make the process unready; `/readyz` reads it.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    latches: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Readiness {
    /// Holds a latch: the process is unready, for this reason, until [`Self::release`].
    pub fn hold(&self, latch: &'static str, reason: impl Into<String>) {
        self.latches.lock().insert(latch, Some(reason.into()));
    }

    /// The part is ready.
    pub fn release(&self, latch: &'static str) {
        self.latches.lock().insert(latch, None);
    }

    /// Every latch with the reason it is held, `None` when released.
    pub fn latches(&self) -> BTreeMap<&'static str, Option<String>> {
        self.latches.lock().clone()
    }

    /// True when no latch is held.
    pub fn is_ready(&self) -> bool {
        self.latches.lock().values().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_only_when_every_latch_is_released() {
        let readiness = Readiness::default();
        readiness.hold("store", "opening");
        readiness.hold("bundle", "loading");
        readiness.release("store");
        assert!(!readiness.is_ready());
        readiness.release("bundle");
        assert!(readiness.is_ready());
        readiness.hold("drain", "draining");
        assert!(!readiness.is_ready());
    }
}
