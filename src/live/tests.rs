//! Views before and after a swap, and what follows the feeds.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::bundle::testing::{self, DIM};
use crate::feature::Version;
use crate::llm::NullLlm;
use crate::retrieve::encode_f16;
use crate::store::{EmbeddedOptions, EmbeddedStore, FeatureStore, FreshVector};

/// The two epochs of these tests, with models.
fn bundle(epoch: u64) -> Arc<Bundle> {
    let space = if epoch == 1 { "one" } else { "two" };
    testing::bundle(epoch, space, Some(testing::models(Arc::new(NullLlm::default()))))
}

#[test]
fn audit_18_a_view_that_was_taken_stays_as_it_was() {
    let live = Live::new(bundle(1));
    let taken = live.view();
    live.swap(bundle(2), 1);
    assert_eq!((taken.space(), taken.epoch(), taken.turn()), ("one", 1, 0));
    assert_eq!(taken.provenance(1).unwrap().llm, "llm of epoch 1");
    assert!(taken.provenance(2).is_none());
    let now = live.view();
    assert_eq!((now.space(), now.epoch(), now.turn()), ("two", 2, 1));
    assert_eq!((now.spaces().all(), now.spaces().active()), (&["two".to_string()][..], "two"));
}

#[test]
fn a_process_without_models_knows_space_and_epoch() {
    let view = Live::new(testing::bundle(3, "one", None)).view();
    assert_eq!((view.space(), view.epoch(), view.bundle().engine()), ("one", 3, "none"));
    assert!(view.models().is_none() && view.stalls().is_empty());
}

#[tokio::test]
async fn audit_18_after_a_swap_the_other_index_is_filled_from_its_own_feed() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn FeatureStore> = EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).unwrap();
    let mut vector = [0.0; DIM];
    vector[0] = 1.0;
    for (space, user) in [("one", "a"), ("two", "b"), ("two", "c")] {
        let version = Version { seq: 1, turn: 0 };
        let fresh = FreshVector { user: user.into(), era: 0, version, vector: Some(encode_f16(&vector)) };
        store.append_vector(space, &fresh).await.unwrap();
    }
    let bundles = [bundle(1), bundle(2)];
    let live = Live::new(bundles[0].clone());
    let mut follower = Follower::new(store);
    assert_eq!(follower.vectors(&live.view()).await.unwrap(), 1);
    assert_eq!(follower.vectors(&live.view()).await.unwrap(), 0, "it goes on from where it stood");
    live.swap(bundles[1].clone(), 1);
    assert_eq!(follower.vectors(&live.view()).await.unwrap(), 2, "all of the other feed");
    live.swap(bundles[0].clone(), 2);
    assert_eq!(follower.vectors(&live.view()).await.unwrap(), 1, "once more; a repeat is harmless");
    let fresh = |bundle: &Bundle| bundle.inference.as_ref().unwrap().index.sizes().1;
    assert_eq!((fresh(&bundles[0]), fresh(&bundles[1])), (1, 2));
}
