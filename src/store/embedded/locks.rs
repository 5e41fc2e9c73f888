//! Striped locks: whoever reads a record and writes it back holds its stripe until the commit.

use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::xxh3_64;

const STRIPES: usize = 256;

/// A fixed set of locks, chosen by hash of a name.
pub struct Stripes(Vec<Mutex<()>>);

impl Default for Stripes {
    fn default() -> Self {
        Stripes((0..STRIPES).map(|_| Mutex::new(())).collect())
    }
}

impl Stripes {
    /// Locks the stripes of all these names, each once and in rising order, so that two callers never wait in a ring.
    pub fn lock_all<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<MutexGuard<'_, ()>> {
        let mut stripes: Vec<usize> = names.map(stripe_of).collect();
        stripes.sort_unstable();
        stripes.dedup();
        stripes.into_iter().map(|stripe| self.0[stripe].lock()).collect()
    }

    /// Locks one name's stripe.
    pub fn lock(&self, name: &str) -> MutexGuard<'_, ()> {
        self.0[stripe_of(name)].lock()
    }
}

fn stripe_of(name: &str) -> usize {
    xxh3_64(name.as_bytes()) as usize % STRIPES
}
