//! What could not be read, counted by kind and told in the log: the only trace of a record that is passed over.
//!
//! In: errors of single records, from the stores and from whoever decodes what they hand out. Out: counts. Callers: the stores
//! and `api` note, `admin` shows.

use super::{StoreError, StoreResult};
use std::sync::atomic::{AtomicU64, Ordering};

/// What kind of record it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A user's counters.
    State,
    /// A user's events, queries or profile.
    History,
    /// A user's features, or a group of them.
    Features,
    /// The note of who shows a user.
    Referrers,
    /// An entry of the vector feed.
    Vector,
    /// An entry of the catalogue's feed.
    Item,
    /// Who engaged with an item.
    ItemUsers,
    /// A place in the due queue, or a lease.
    Due,
    /// A note of an erasure.
    Erasure,
    /// The name of a space.
    Space,
    /// The number of users.
    Count,
}

impl RecordKind {
    /// All kinds.
    pub const ALL: [RecordKind; 11] = [
        RecordKind::State,
        RecordKind::History,
        RecordKind::Features,
        RecordKind::Referrers,
        RecordKind::Vector,
        RecordKind::Item,
        RecordKind::ItemUsers,
        RecordKind::Due,
        RecordKind::Erasure,
        RecordKind::Space,
        RecordKind::Count,
    ];

    /// As a label.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::State => "state",
            RecordKind::History => "history",
            RecordKind::Features => "features",
            RecordKind::Referrers => "referrers",
            RecordKind::Vector => "vector",
            RecordKind::Item => "item",
            RecordKind::ItemUsers => "item_users",
            RecordKind::Due => "due",
            RecordKind::Erasure => "erasure",
            RecordKind::Space => "space",
            RecordKind::Count => "count",
        }
    }
}

/// Of so many records of a kind one is told in the log, and the first.
const TOLD: u64 = 100;

/// How often records of each kind could not be read since the store was opened.
#[derive(Debug, Default)]
pub struct Unreadable {
    counts: [AtomicU64; RecordKind::ALL.len()],
}

impl Unreadable {
    /// A record was passed over. Its key may hold a user's id, so that it stands in the log at debug level only.
    pub fn note(&self, kind: RecordKind, error: &StoreError) {
        let count = self.counts[kind as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let kind = kind.as_str();
        tracing::debug!(kind, %error, "record of the store cannot be read");
        if count == 1 || count.is_multiple_of(TOLD) {
            let why = match error {
                StoreError::Corrupt { message, .. } => message.as_str(),
                _ => "not ours",
            };
            tracing::warn!(kind, count, why, "record of the store cannot be read; passed over");
        }
    }

    /// The result, noted if a record could not be read.
    pub fn watch<T>(&self, kind: RecordKind, result: StoreResult<T>) -> StoreResult<T> {
        result.inspect_err(|error| {
            if error.is_unreadable() {
                self.note(kind, error);
            }
        })
    }

    /// The result, but without what only an unreadable record is missing of, which is noted.
    pub fn skip<T>(&self, kind: RecordKind, result: StoreResult<T>) -> StoreResult<Option<T>> {
        match self.watch(kind, result) {
            Err(error) if error.is_unreadable() => Ok(None),
            result => result.map(Some),
        }
    }

    /// How many of each kind.
    pub fn counts(&self) -> impl Iterator<Item = (RecordKind, u64)> + '_ {
        RecordKind::ALL.into_iter().map(|kind| (kind, self.counts[kind as usize].load(Ordering::Relaxed)))
    }

    /// Of the kinds that were met, by name.
    #[cfg(test)]
    pub(crate) fn met(&self) -> std::collections::BTreeMap<&'static str, u64> {
        self.counts().filter(|(_, count)| *count > 0).map(|(kind, count)| (kind.as_str(), count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_by_their_kind_and_other_errors_are_not() {
        let unreadable = Unreadable::default();
        let corrupt = || StoreError::Corrupt { key: "k".into(), message: "cut".into() };
        let away = StoreError::Busy { operation: "read", message: "loading".into() };
        assert!(matches!(unreadable.skip::<u8>(RecordKind::Item, Err(corrupt())), Ok(None)));
        assert!(unreadable.watch::<u8>(RecordKind::Count, Err(corrupt())).is_err());
        assert!(unreadable.skip::<u8>(RecordKind::Item, Err(away)).is_err());
        assert_eq!(unreadable.skip(RecordKind::Item, Ok(3)).ok().flatten(), Some(3));
        let counted: Vec<(&str, u64)> = unreadable.counts().map(|(kind, count)| (kind.as_str(), count)).collect();
        for (kind, count) in counted {
            assert_eq!(count, u64::from(["item", "count"].contains(&kind)), "{kind}");
        }
    }
}
