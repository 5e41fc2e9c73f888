//! Places for requests under way, and who gets the next one.
//!
//! In: requests whose body has come. Out: a place, or that there is none in time. Caller: `layers`.
//!
//! Who waits is served in turn, as long as the queue empties now and then. One that has stood for [`STANDING`] is served from its other
//! end: there is more to do than can be done, so many must be turned away in any case, and the client of who came last is the one
//! that surely waits still (adaptive LIFO: Maurer, "Fail at scale", ACM Queue 13(8), 2015).

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// A queue that was not empty for so long does not empty by itself.
const STANDING: Duration = Duration::from_millis(50);

/// A port's places.
pub(super) struct Places(Arc<Shared>);

struct Shared {
    /// How many may wait.
    most: usize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Oldest first. Some may have gone.
    waiting: VecDeque<oneshot::Sender<Place>>,
    /// Since when somebody has been waiting.
    since: Instant,
}

/// A place; given to the next one when dropped.
pub(super) struct Place(Option<Arc<Shared>>);

impl Places {
    /// So many, for which at most so many wait.
    pub fn new(free: usize, most: usize) -> Places {
        let state = State { free, waiting: VecDeque::new(), since: Instant::now() };
        Places(Arc::new(Shared { most, state: Mutex::new(state) }))
    }

    /// A place that is free now.
    pub fn now(&self) -> Option<Place> {
        self.take(&mut self.0.state.lock())
    }

    fn take(&self, state: &mut State) -> Option<Place> {
        state.free = state.free.checked_sub(1)?;
        Some(Place(Some(self.0.clone())))
    }

    /// What brings a place when there is one; `None` when too many wait for that already. Who waits no longer drops it.
    pub fn wait(&self) -> Option<oneshot::Receiver<Place>> {
        let (give, given) = oneshot::channel();
        let mut state = self.0.state.lock();
        // A place came free since the caller looked.
        if let Some(place) = self.take(&mut state) {
            // The receiver is here, so that no place is dropped while the lock is held.
            let _ = give.send(place);
            return Some(given);
        }
        while state.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            state.waiting.pop_front();
        }
        if state.waiting.len() >= self.0.most {
            return None;
        }
        if state.waiting.is_empty() {
            state.since = Instant::now();
        }
        state.waiting.push_back(give);
        Some(given)
    }
}

impl State {
    /// Who is next.
    fn next(&mut self) -> Option<oneshot::Sender<Place>> {
        let is_standing = self.since.elapsed() >= STANDING;
        if is_standing { self.waiting.pop_back() } else { self.waiting.pop_front() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        loop {
            let mut state = shared.state.lock();
            let Some(next) = state.next() else {
                state.free += 1;
                return;
            };
            drop(state);
            match next.send(Place(Some(shared.clone()))) {
                Ok(()) => return,
                // Gone; the place that comes back must not be dropped within itself.
                Err(mut back) => back.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn in_turn_at_first_and_the_newest_first_once_the_queue_stands() {
        let places = Places::new(1, 9);
        let first = places.now().unwrap();
        let mut waiting: Vec<_> = (0..4).map(|_| places.wait().unwrap()).collect();
        drop(first);
        let second = waiting[0].try_recv().expect("who came first");
        places.0.state.lock().since -= STANDING;
        drop(second);
        let third = waiting[3].try_recv().expect("who came last");
        assert!(waiting[1].try_recv().is_err());
        // An empty queue begins anew.
        drop(waiting);
        drop(third);
        let held = places.now().expect("everybody has gone");
        let mut waiting: Vec<_> = (0..2).map(|_| places.wait().unwrap()).collect();
        drop(held);
        waiting[0].try_recv().expect("who came first");
    }

    #[test]
    fn who_has_gone_is_passed_over_and_makes_room() {
        let places = Places::new(1, 100_000);
        let held = places.now().unwrap();
        let gone: Vec<_> = (0..100_000).map(|_| places.wait().unwrap()).collect();
        assert!(places.wait().is_none(), "no more may wait");
        drop(gone);
        let mut waiting = places.wait().unwrap();
        places.0.state.lock().since -= STANDING;
        drop(held);
        assert!(waiting.try_recv().is_ok());
    }

    proptest! {
        /// Whatever comes and goes: never more than there are, none lost, and nobody waits beside a free one.
        #[test]
        fn places_are_kept(all in 1..4usize, acts in proptest::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<bool>()), 0..80)) {
            let places = Places::new(all, 5);
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (act, which, stands) in acts {
                if stands {
                    places.0.state.lock().since -= STANDING;
                }
                match act {
                    0 => held.extend(places.now()),
                    1 => waiting.extend(places.wait()),
                    2 if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
                    3 if !waiting.is_empty() => drop(waiting.swap_remove(which.index(waiting.len()))),
                    _ => {}
                }
                waiting.retain_mut(|one: &mut oneshot::Receiver<Place>| match one.try_recv() {
                    Ok(place) => {
                        held.push(place);
                        false
                    }
                    Err(_) => true,
                });
                let free = places.0.state.lock().free;
                prop_assert_eq!(held.len() + free, all);
                prop_assert!(waiting.is_empty() || free == 0);
                prop_assert!(waiting.len() <= 5);
            }
            drop((held, waiting));
            prop_assert_eq!(places.0.state.lock().free, all);
        }
    }
}
