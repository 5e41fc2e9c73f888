//! The users behind one vector, in an order that spreads whoever looks for a neighbour evenly over them.
//!
//! In: users. Out: users from a place of the ring on. The ring is ordered by hash, so that it is the same at every replica,
//! whatever came first; and users who look begin at their own place: among m equals each comes first for one of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The users of one vector.
#[derive(Debug, Default)]
pub(super) struct Members {
    ring: BTreeSet<(u64, Arc<str>)>,
}

fn place(user: &str) -> u64 {
    xxh3_64(user.as_bytes())
}

impl Members {
    pub fn insert(&mut self, user: Arc<str>) {
        self.ring.insert((place(&user), user));
    }

    pub fn remove(&mut self, user: &Arc<str>) {
        self.ring.remove(&(place(user), user.clone()));
    }

    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Everybody but `user`, from the place of `user` on.
    pub fn others<'a>(&'a self, user: &'a str) -> impl Iterator<Item = &'a Arc<str>> {
        let from = (place(user), Arc::from(""));
        let (behind, ahead) = (self.ring.range(..from.clone()), self.ring.range(from..));
        ahead.chain(behind).map(|(_, member)| member).filter(move |member| ***member != *user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn among_equals_each_comes_first_once() {
        let names: Vec<Arc<str>> = (0..100).map(|user| format!("u{user}").into()).collect();
        let (mut one, mut other) = (Members::default(), Members::default());
        names.iter().for_each(|name| one.insert(name.clone()));
        names.iter().rev().for_each(|name| other.insert(name.clone()));
        let firsts: BTreeSet<&Arc<str>> = names.iter().filter_map(|name| one.others(name).next()).collect();
        assert_eq!(firsts.len(), names.len());
        for name in &names {
            assert!(one.others(name).eq(other.others(name)), "the order of arrival does not count");
            assert_eq!(one.others(name).count(), names.len() - 1);
        }
        one.remove(&names[7]);
        assert_eq!(one.others("stranger").count(), names.len() - 1);
        names.iter().for_each(|name| one.remove(name));
        assert!(one.is_empty());
    }
}
