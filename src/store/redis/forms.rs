//! Forms of the queues: the one of all spaces, and those of single spaces, as programs that know no layout 3 keep them.
//!
//! In: the layouts in `ns:epoch`, at the start and whenever this process tells that it lives; the spaces it noted. Out: the keys of each
//! shard's queue in every form that is read, and the form where users are marked. Callers: `queue`; `members` and `erase` tell.
//!
//! | layouts | read | marked in |
//! |---|---|---|
//! | `written` below 3 | both | the form of the first space noted |
//! | `written` 3, `readable_from` below | both | the form of all spaces |
//! | `readable_from` 3 | that of all spaces | the same |
//!
//! Processes learn of a change at different times. No mark and no lease minds: all of them read both forms until the way back is closed,
//! and a user is kept in one form at a time (`home` in the Lua file).

use super::keys::Keys;
use super::schema::{Epoch, ONE_QUEUE};
use crate::store::Queue;
use parking_lot::RwLock;
use std::sync::Arc;

/// Spaces that are live at once, at most (DESIGN 2).
const LIVE_SPACES: usize = 4;

/// What this process knows of the forms; one a store.
pub struct Forms {
    keys: Keys,
    shards: u32,
    known: RwLock<Known>,
}

struct Known {
    written: u64,
    readable_from: u64,
    /// Live spaces of this process, in the order in which they were noted.
    spaces: Vec<String>,
    queues: Arc<QueueKeys>,
}

/// Keys of all queues at one moment.
#[derive(Debug, Default)]
pub struct QueueKeys {
    due: Vec<Vec<String>>,
    fast: Vec<Vec<String>>,
    /// Forms of each queue.
    pub forms: usize,
    /// The one where users are marked, from 1.
    pub into: usize,
}

impl QueueKeys {
    /// A shard's queue: its forms, and the two of what is put aside.
    pub fn of(&self, queue: Queue, shard: u32) -> &[String] {
        let shards = match queue {
            Queue::Due => &self.due,
            Queue::Fast => &self.fast,
        };
        shards.get(shard as usize).map_or(&[], Vec::as_slice)
    }
}

impl Known {
    fn read(&self) -> &[String] {
        if self.readable_from < ONE_QUEUE { &self.spaces } else { &[] }
    }
}

impl Forms {
    /// As the layouts are now; no space is noted yet.
    pub fn new(keys: &Keys, shards: u32, epoch: &Epoch) -> Forms {
        let known = Known { written: 0, readable_from: 0, spaces: Vec::new(), queues: Arc::default() };
        let forms = Forms { keys: keys.clone(), shards, known: RwLock::new(known) };
        forms.learn(epoch);
        forms
    }

    /// Layouts may have been raised since.
    pub fn learn(&self, epoch: &Epoch) {
        self.change(|known| (known.written, known.readable_from) = (epoch.written, epoch.readable_from));
    }

    /// This process writes that space.
    pub fn note_space(&self, space: &str) {
        self.change(|known| {
            if !known.spaces.iter().any(|known| known == space) {
                known.spaces.truncate(LIVE_SPACES - 1);
                known.spaces.push(space.to_string());
            }
        });
    }

    /// The newest layout that this process knows to be allowed.
    pub fn written(&self) -> u64 {
        self.known.read().written
    }

    /// Spaces whose form of the queues is read.
    pub fn spaces_read(&self) -> Vec<String> {
        self.known.read().read().to_vec()
    }

    /// The queues now. One call uses one answer throughout.
    pub fn now(&self) -> Arc<QueueKeys> {
        self.known.read().queues.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known.write();
        let before = (known.written, known.readable_from, known.spaces.clone());
        change(&mut known);
        if before.2 != known.spaces || (before.0, before.1) != (known.written, known.readable_from) {
            known.queues = Arc::new(self.keys_of(&known));
        }
    }

    fn keys_of(&self, known: &Known) -> QueueKeys {
        let read = known.read();
        let shards = |queue: Queue| -> Vec<Vec<String>> {
            (0..self.shards).map(|shard| self.keys.queue_forms(queue, shard, read)).collect()
        };
        // Who noted no space knows no other form.
        let into = if known.written < ONE_QUEUE && !read.is_empty() { 2 } else { 1 };
        QueueKeys { due: shards(Queue::Due), fast: shards(Queue::Fast), forms: 1 + read.len(), into }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_18_the_layouts_say_which_forms_are_read_and_where_users_are_marked() {
        let epoch =
            |written, readable_from| Epoch { schema: Some(1), written, readable_from, shards: 2, ..Epoch::default() };
        let forms = Forms::new(&Keys::new("ns"), 2, &epoch(1, 1));
        let now = |forms: &Forms| (forms.now().forms, forms.now().into);
        assert_eq!(now(&forms), (1, 1), "no space is known");
        for _ in 0..2 {
            forms.note_space("s");
        }
        assert_eq!(now(&forms), (2, 2));
        let keys = forms.now();
        let fast = keys.of(Queue::Fast, 1);
        assert_eq!(fast.len(), 18);
        assert_eq!((fast[0].as_str(), fast[8].as_str()), ("ns:fast:due:{1}:0", "ns:due:{1}:s.fast:0"));
        assert_eq!((fast[14].as_str(), fast[16].as_str()), ("ns:awaited:{1}:s.fast:until", "ns:unreadable:{1}"));
        forms.learn(&epoch(3, 1));
        assert_eq!((now(&forms), forms.written()), ((2, 1), 3));
        for space in ["t", "u", "v", "w", "x"] {
            forms.note_space(space);
        }
        assert_eq!((now(&forms), forms.spaces_read()), ((5, 1), ["s", "t", "u", "x"].map(String::from).into()));
        forms.learn(&epoch(3, 3));
        assert_eq!(now(&forms), (1, 1));
        assert_eq!(forms.now().of(Queue::Due, 0)[..6], keys.of(Queue::Due, 0)[..6]);
        assert_eq!(keys.of(Queue::Due, 0)[4], "ns:lease:{0}");
    }
}
