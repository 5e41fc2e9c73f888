//! Training and serving must show the model the same prompt for the same behaviour.

use std::sync::Arc;
use taiji::answer::history_input;
use taiji::catalogue::{Catalogue, CatalogueRow};
use taiji::config;
use taiji::due::DuePolicy;
use taiji::event::ActionTable;
use taiji::ingest::Ingest;
use taiji::prompt::{PromptSchema, render};
use taiji::store::{EmbeddedOptions, EmbeddedStore, FeatureStore, HISTORY_CAP};
use taiji_trainer::data::Dataset;
use taiji_trainer::synth::{self, SynthSettings, World};

/// A small generated world with the demo's items.
fn small_world(users: usize, seed: u64) -> World {
    synth::generate(&SynthSettings { users, items: 300, events: users * 60, seed, ..SynthSettings::default() })
}

#[tokio::test]
async fn training_and_serving_render_the_same_prompt() {
    let world = small_world(40, 77);
    let actions = ActionTable::default();
    let folder = tempfile::tempdir().expect("tempdir");
    let store: Arc<dyn FeatureStore> = EmbeddedStore::open(folder.path(), EmbeddedOptions::default()).expect("store");
    let settings = config::load(None, std::iter::empty(), &[]).expect("defaults");
    let policy = DuePolicy::new(&settings.refresh);
    let ingest = Ingest::new(store.clone(), "space".into(), actions.clone(), policy);
    for batch in world.events.chunks(500) {
        ingest.append(batch.to_vec()).await.expect("append");
    }
    let row = |item: &taiji::event::Item| CatalogueRow { item: Arc::new(item.clone()), distinct_users: 0 };
    let catalogue = Catalogue::from_rows(world.items.iter().map(row).collect());

    let dataset = Dataset::from_records(world.items, world.users, world.events, &actions);
    let users: Vec<String> = dataset.users.iter().map(|user| user.user_id.clone()).collect();
    let histories = store.histories(&users).await.expect("histories");
    let schema = PromptSchema::small();
    let words = |text: &str| text.split_whitespace().count();
    let mut compared = 0;
    for (user, history) in dataset.users.iter().zip(histories) {
        // A user whose life held no event has a profile on disk and nothing in the store.
        let Some(history) = history else { continue };
        let served = history_input(&history, &catalogue);
        let trained = dataset.prompt_input(user, usize::MAX, i64::MAX, HISTORY_CAP);
        assert_eq!(served, trained, "{}", user.user_id);
        assert_eq!(render(&schema, &served, &words), render(&schema, &trained, &words));
        compared += usize::from(!served.engagements.is_empty());
    }
    assert!(compared >= 20, "only {compared} users had engagements");
}
