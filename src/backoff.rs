//! Growing pauses with jitter between attempts, so that many waiting parts do not all come back in the same moment.
//!
//! Callers: whoever tries again: `ingest`, `store::redis`.

use std::time::Duration;
use tokio::sync::watch;

/// The pauses of one operation; begin anew after a success.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    /// 100 ms to 5 s.
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

impl Backoff {
    /// Pauses that begin at `first` and double up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest }
    }

    /// How long to wait now: half to the whole of the time that doubles.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// Waits one pause, or until `stop` turns true; true when it did.
    pub async fn wait_unless(&mut self, stop: &mut watch::Receiver<bool>) -> bool {
        tokio::select! {
            _ = tokio::time::sleep(self.pause()) => false,
            _ = stop.wait_for(|stop| *stop) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= first / 2 && pauses[0] <= first);
        assert!(pauses[6..].iter().all(|pause| *pause >= longest / 2 && *pause <= longest), "{pauses:?}");
        assert!(pauses[6..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {pauses:?}");
    }
}
