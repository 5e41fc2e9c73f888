//! What is loaded and active in this process: the bundle with its epoch and generation, the live spaces, the turn.
//!
//! In: a loaded [`Bundle`]. Out: a [`View`] of it, which a request, a refresh or a background act takes at its beginning and hands
//! down, so that it is about one epoch and one space to its end; what the store's feeds bring, into what is loaded ([`Follower`]).
//! Callers: `cli::wiring` makes one [`Live`] a process; `api`, `openai`, `admin`, `ingest::kafka`, `refresh` and `publish` take views.
//! Nobody else keeps a bundle, a space or a turn (`tests/house/owners.rs`).
//!
//! One epoch is loaded, that of `bundle.dir`; a restart with another folder changes it.

mod follow;
#[cfg(test)]
mod tests;

pub use follow::Follower;

pub use crate::bundle::Models;
use crate::bundle::{Bundle, Inference};
use crate::telemetry::Stall;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// What is loaded and active now; one a process, shared by `Arc`.
pub struct Live {
    now: ArcSwap<View>,
}

impl Live {
    /// The bundle's epoch is the active one, and its space the only live one.
    pub fn new(bundle: Arc<Bundle>) -> Arc<Live> {
        Arc::new(Live { now: ArcSwap::from_pointee(View::of(bundle)) })
    }

    /// What is active now. Take it once, at the beginning of an act: two views may differ.
    pub fn view(&self) -> Arc<View> {
        self.now.load_full()
    }

    /// From now on views are of this bundle.
    #[cfg(test)]
    pub(crate) fn swap(&self, bundle: Arc<Bundle>, turn: u64) {
        self.now.store(Arc::new(View { turn, ..View::of(bundle) }));
    }
}

/// One state of [`Live`]. Nothing of it changes, but for what the feeds add to index and catalogue.
pub struct View {
    bundle: Arc<Bundle>,
    spaces: Spaces,
    turn: u64,
}

impl View {
    fn of(bundle: Arc<Bundle>) -> View {
        let spaces = Spaces::only(&bundle.manifest.space);
        View { bundle, spaces, turn: 0 }
    }

    /// The active epoch's bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The active epoch.
    pub fn epoch(&self) -> u64 {
        self.bundle.manifest.epoch
    }

    /// The space that answers are read from.
    pub fn space(&self) -> &str {
        self.spaces.active()
    }

    /// The spaces that are kept fresh.
    pub fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    /// Rises with every promote and rollback; part of a group's version.
    pub fn turn(&self) -> u64 {
        self.turn
    }

    /// The active epoch's models and user index; `None` in a process without the role infer.
    pub fn models(&self) -> Option<&Arc<Inference>> {
        self.bundle.inference.as_ref()
    }

    /// Models of this process that are stalled.
    pub fn stalls(&self) -> Vec<Stall> {
        self.models().map(|models| models.stalls()).unwrap_or_default()
    }

    /// What made the values of an epoch, as far as it is known here.
    pub fn provenance(&self, epoch: u64) -> Option<&Models> {
        (epoch == self.epoch()).then_some(&self.bundle.manifest.models)
    }
}

/// The live spaces, the active one first; at least that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spaces(Vec<String>);

impl Spaces {
    /// One space and no other.
    pub fn only(space: &str) -> Spaces {
        Spaces(vec![space.to_string()])
    }

    /// The space that answers are read from.
    pub fn active(&self) -> &str {
        &self.0[0]
    }

    /// All of them.
    pub fn all(&self) -> &[String] {
        &self.0
    }
}
