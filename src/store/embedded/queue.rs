//! The due queue as it stands in memory: who waits, in which order, and who is leased. No I/O.
//!
//! In: marks, claims, releases, and the time. Out: the same answers the trait gives. Caller: [`super::due`], which keeps
//! the durable copy. In memory because a queue kept in an LSM tree leaves a tombstone for every user taken off its head,
//! and every later claim would step over them; it costs about 200 bytes a waiting user.

use crate::store::{Claim, Queue, QueueDepth};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// 0 = most urgent.
    pub class: u8,
    /// Not before.
    pub due_ms: i64,
}

impl Mark {
    /// Of two due times the earlier, of two classes the lower.
    pub fn merge(self, other: Mark) -> Mark {
        Mark { class: self.class.min(other.class), due_ms: self.due_ms.min(other.due_ms) }
    }
}

/// All queues.
#[derive(Debug, Default)]
pub struct DueQueues {
    due: UserQueue,
    fast: UserQueue,
}

impl DueQueues {
    /// One of them.
    pub fn of(&mut self, queue: Queue) -> &mut UserQueue {
        match queue {
            Queue::Due => &mut self.due,
            Queue::Fast => &mut self.fast,
        }
    }
}

/// One queue. A user is in it at most once: waiting or leased.
#[derive(Debug, Default)]
pub struct UserQueue {
    users: HashMap<Arc<str>, EntryState>,
    waiting: BTreeMap<u8, BTreeSet<(i64, Arc<str>)>>,
    lease_ends: BTreeSet<(i64, Arc<str>)>,
    /// When callers' times are over; of users who are gone, too.
    callers: BTreeSet<(i64, Arc<str>)>,
}

#[derive(Debug, Clone, Copy)]
enum EntryState {
    Waiting(Standing),
    Leased {
        standing: Standing,
        /// Marked due since it was taken.
        again: Option<Standing>,
        token: u64,
        ends_ms: i64,
    },
}

/// A user's mark, and their place before everybody while a caller waits. Only the mark is durable: no caller outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    mark: Mark,
    awaited: Option<Awaited>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Awaited {
    due_ms: i64,
    until_ms: i64,
}

impl Standing {
    fn of(mark: Mark) -> Standing {
        Standing { mark, awaited: None }
    }

    /// Where the user stands now.
    fn place(self) -> Mark {
        self.awaited.map_or(self.mark, |awaited| Mark { class: 0, due_ms: awaited.due_ms.min(self.mark.due_ms) })
    }

    fn merge(self, other: Standing) -> Standing {
        let awaited = match (self.awaited, other.awaited) {
            (Some(one), Some(two)) => {
                Some(Awaited { due_ms: one.due_ms.min(two.due_ms), until_ms: one.until_ms.max(two.until_ms) })
            }
            (one, two) => one.or(two),
        };
        let mark = self.mark.merge(other.mark);
        // Who stands in class 0 for good needs no caller.
        Standing { mark, awaited: awaited.filter(|_| mark.class > 0) }
    }

    /// A caller waits, and the mark stays as it is.
    fn awaited(self, awaited: Awaited) -> Standing {
        self.merge(Standing { mark: self.mark, awaited: Some(awaited) })
    }

    fn without_callers_of_before(self, now_ms: i64) -> Standing {
        Standing { mark: self.mark, awaited: self.awaited.filter(|awaited| awaited.until_ms > now_ms) }
    }
}

impl UserQueue {
    /// The mark that must survive a crash: a leased user who was not refreshed is due again.
    pub fn durable(&self, user: &str) -> Option<Mark> {
        match *self.users.get(user)? {
            EntryState::Waiting(standing) | EntryState::Leased { standing, again: None, .. } => Some(standing.mark),
            EntryState::Leased { standing, again: Some(again), .. } => Some(standing.mark.merge(again.mark)),
        }
    }

    /// Whether the user waits or is leased.
    pub fn contains(&self, user: &str) -> bool {
        self.users.contains_key(user)
    }

    /// Adds a user, or brings one forward; a leased user is noted for after the release.
    pub fn mark(&mut self, user: &str, mark: Mark) {
        let marked = Standing::of(mark);
        self.stand(user, |earlier| earlier.map_or(marked, |earlier| earlier.merge(marked)));
    }

    /// Puts a user before everybody until `until_ms`; `absent` is the mark of one who stood nowhere.
    pub fn mark_awaited(&mut self, user: &str, due_ms: i64, until_ms: i64, absent: Mark) {
        let awaited = Awaited { due_ms, until_ms };
        self.callers.insert((until_ms, user.into()));
        self.stand(user, |earlier| earlier.unwrap_or(Standing::of(absent)).awaited(awaited));
    }

    /// Changes where a user stands; of a leased one, where they will stand after the release.
    fn stand(&mut self, user: &str, change: impl FnOnce(Option<Standing>) -> Standing) {
        match self.users.get_mut(user) {
            Some(EntryState::Leased { again, .. }) => *again = Some(change(*again)),
            Some(EntryState::Waiting(old)) => {
                let (old, new) = (*old, change(Some(*old)));
                if new != old {
                    self.stop_waiting(user, old.place());
                    self.wait(user.into(), new);
                }
            }
            None => self.wait(user.into(), change(None)),
        }
    }

    /// Takes up to `limit` due users; `token` makes one for each lease.
    pub fn claim(&mut self, now_ms: i64, limit: usize, lease_ms: i64, mut token: impl FnMut() -> u64) -> Vec<Claim> {
        self.end_leases(now_ms);
        self.end_callers(now_ms);
        let due = self.waiting.iter().flat_map(|(class, users)| {
            users
                .iter()
                .take_while(|(due_ms, _)| *due_ms <= now_ms)
                .map(|(due_ms, user)| (*class, *due_ms, user.clone()))
        });
        let taken: Vec<_> = due.take(limit).collect();
        let ends_ms = now_ms.saturating_add(lease_ms);
        taken
            .into_iter()
            .filter_map(|(class, due_ms, user)| self.lease(user, Mark { class, due_ms }, ends_ms, token()))
            .collect()
    }

    /// Whether this claim's lease is running; one that ran out holds nothing, even if nobody has taken the user since.
    pub fn holds(&mut self, now_ms: i64, claim: &Claim) -> bool {
        self.end_leases(now_ms);
        matches!(self.users.get(claim.user.as_str()), Some(EntryState::Leased { token, .. }) if *token == claim.token)
    }

    /// Gives a running lease a new end.
    pub fn renew(&mut self, now_ms: i64, claim: &Claim, lease_ms: i64) -> bool {
        if !self.holds(now_ms, claim) {
            return false;
        }
        if let Some((user, EntryState::Leased { standing, again, token, ends_ms })) = self.remove(&claim.user) {
            self.lease_ends.remove(&(ends_ms, user.clone()));
            let ends_ms = now_ms.saturating_add(lease_ms);
            self.lease_ends.insert((ends_ms, user.clone()));
            self.users.insert(user, EntryState::Leased { standing, again, token, ends_ms });
        }
        true
    }

    /// The mark a leased user keeps when the lease is released.
    pub fn marked_again(&self, user: &str) -> Option<Mark> {
        match self.users.get(user) {
            Some(EntryState::Leased { again, .. }) => again.map(|again| again.mark),
            _ => None,
        }
    }

    /// Ends a lease that [`holds`](Self::holds).
    pub fn release(&mut self, user: &str) {
        if let Some((user, EntryState::Leased { again, ends_ms, .. })) = self.remove(user) {
            self.lease_ends.remove(&(ends_ms, user.clone()));
            if let Some(standing) = again {
                self.wait(user, standing);
            }
        }
    }

    /// The mark of a user under a running lease, without what was marked since.
    pub fn leased_mark(&mut self, now_ms: i64, user: &str) -> Option<Mark> {
        self.end_leases(now_ms);
        match self.users.get(user) {
            Some(EntryState::Leased { standing, .. }) => Some(standing.mark),
            _ => None,
        }
    }

    /// Takes out a user who waits; of a leased one drops what was marked since.
    pub fn forget(&mut self, user: &str) {
        match self.users.get_mut(user) {
            Some(EntryState::Leased { again, .. }) => *again = None,
            Some(EntryState::Waiting(standing)) => {
                let place = standing.place();
                self.stop_waiting(user, place);
                self.remove(user);
            }
            None => {}
        }
    }

    /// Lengths by class.
    pub fn depth(&mut self, now_ms: i64) -> QueueDepth {
        self.end_leases(now_ms);
        self.end_callers(now_ms);
        let classes = self.waiting.iter().filter_map(|(class, users)| {
            let (oldest_ms, _) = users.first()?;
            Some((*class, users.len(), *oldest_ms))
        });
        QueueDepth { classes: classes.collect(), leased: self.lease_ends.len() }
    }

    fn end_leases(&mut self, now_ms: i64) {
        while let Some((ends_ms, _)) = self.lease_ends.first()
            && *ends_ms <= now_ms
            && let Some((_, user)) = self.lease_ends.pop_first()
        {
            if let Some((user, EntryState::Leased { standing, again, .. })) = self.remove(&user) {
                self.wait(user, again.map_or(standing, |again| standing.merge(again)));
            }
        }
    }

    /// Sends users back whose callers' time is over.
    fn end_callers(&mut self, now_ms: i64) {
        while let Some((until_ms, _)) = self.callers.first()
            && *until_ms <= now_ms
            && let Some((_, user)) = self.callers.pop_first()
        {
            match self.users.get_mut(&user) {
                Some(EntryState::Waiting(old)) => {
                    let (place, left) = (old.place(), old.without_callers_of_before(now_ms));
                    self.stop_waiting(&user, place);
                    self.wait(user, left);
                }
                Some(EntryState::Leased { standing, again, .. }) => {
                    *standing = standing.without_callers_of_before(now_ms);
                    *again = again.map(|again| again.without_callers_of_before(now_ms));
                }
                None => {}
            }
        }
    }

    fn lease(&mut self, user: Arc<str>, place: Mark, ends_ms: i64, token: u64) -> Option<Claim> {
        let Some(EntryState::Waiting(standing)) = self.users.get(&user).copied() else { return None };
        self.stop_waiting(&user, place);
        self.lease_ends.insert((ends_ms, user.clone()));
        self.users.insert(user.clone(), EntryState::Leased { standing, again: None, token, ends_ms });
        Some(Claim { user: user.to_string(), class: place.class, due_ms: place.due_ms, token })
    }

    fn wait(&mut self, user: Arc<str>, standing: Standing) {
        let place = standing.place();
        self.waiting.entry(place.class).or_default().insert((place.due_ms, user.clone()));
        self.users.insert(user, EntryState::Waiting(standing));
    }

    fn stop_waiting(&mut self, user: &str, mark: Mark) {
        if let Some(users) = self.waiting.get_mut(&mark.class) {
            users.remove(&(mark.due_ms, user.into()));
            if users.is_empty() {
                self.waiting.remove(&mark.class);
            }
        }
    }

    fn remove(&mut self, user: &str) -> Option<(Arc<str>, EntryState)> {
        self.users.remove_entry(user)
    }
}
