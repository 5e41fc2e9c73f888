//! Whether something was left alone while we looked at it.
//!
//! In: disturbances, which may overlap. Out: a stamp before a look, and whether it still holds after it. Callers: faults
//! disturb, the reader looks.

use std::sync::{Arc, Mutex};

/// The calm of one thing: the store, the broker, a process.
#[derive(Default)]
pub struct Calm {
    /// (disturbances going on, disturbances so far).
    state: Mutex<(usize, u64)>,
}

/// A disturbance; over when dropped.
pub struct Disturbance(Arc<Calm>);

impl Calm {
    /// Begins a disturbance.
    pub fn disturb(self: &Arc<Self>) -> Disturbance {
        let mut state = self.state.lock().expect("calm");
        *state = (state.0 + 1, state.1 + 1);
        Disturbance(self.clone())
    }

    /// `None` while it is disturbed.
    pub fn stamp(&self) -> Option<u64> {
        let (going_on, so_far) = *self.state.lock().expect("calm");
        (going_on == 0).then_some(so_far)
    }

    /// Whether nothing has happened since that stamp.
    pub fn lasted_since(&self, stamp: Option<u64>) -> bool {
        stamp.is_some() && self.stamp() == stamp
    }
}

impl Drop for Disturbance {
    fn drop(&mut self) {
        self.0.state.lock().expect("calm").0 -= 1;
    }
}

#[test]
fn a_stamp_holds_only_over_undisturbed_time() {
    let calm = Arc::new(Calm::default());
    let before = calm.stamp();
    assert!(calm.lasted_since(before));
    let one = calm.disturb();
    let during = calm.stamp();
    let other = calm.disturb();
    drop(one);
    assert!(!calm.lasted_since(before) && !calm.lasted_since(during), "the other one goes on");
    drop(other);
    assert!(!calm.lasted_since(before), "it is over, but it was");
    assert!(calm.lasted_since(calm.stamp()));
}
