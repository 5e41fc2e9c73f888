//! Training and serving must show the model the same prompt for the same behaviour, and find the same in what it writes.

use std::sync::Arc;
use taiji::answer::history_input;
use taiji::bundle::{self, LoadOptions};
use taiji::catalogue::{Catalogue, CatalogueRow, Grounding};
use taiji::config;
use taiji::due::DuePolicy;
use taiji::event::ActionTable;
use taiji::feature::{DecodedGroup, Group};
use taiji::ingest::Ingest;
use taiji::live::{Live, Spaces};
use taiji::prompt::{PromptMode, PromptSchema, render};
use taiji::refresh::{Refreshed, Refresher};
use taiji::store::{EmbeddedOptions, EmbeddedStore, FeatureStore, HISTORY_CAP};
use taiji::telemetry::Metrics;
use taiji_trainer::data::{Cut, Dataset};
use taiji_trainer::judge::open_bundle;
use taiji_trainer::synth::{self, SynthSettings, World, WorldKind};

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
    let ingest = Ingest::new(store.clone(), actions.clone(), policy);
    for batch in world.events.chunks(500) {
        ingest.append(&Spaces::only("space"), batch.to_vec()).await.expect("append");
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
        let trained = dataset.prompt_input(user, Cut::END, HISTORY_CAP);
        assert_eq!(served, trained, "{}", user.user_id);
        for mode in [PromptMode::Think, PromptMode::NoThink] {
            assert_eq!(render(&schema, &served, mode, &words), render(&schema, &trained, mode, &words));
        }
        compared += usize::from(!served.engagements.is_empty());
    }
    assert!(compared >= 20, "only {compared} users had engagements");
}

/// What a refresh writes is what the trainer judges the bundle by: answer, grounding, codes.
#[test]
fn audit_15_a_bundle_is_served_as_it_is_judged() {
    let folder = testkit::demo_bundle();
    let world =
        synth::generate(&SynthSettings { kind: WorldKind::Reason, users: 4, seed: 79, ..SynthSettings::default() });
    let actions = ActionTable::default();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let bundle = Arc::new(bundle::load(&folder, &LoadOptions::default()).expect("bundle"));
    let space = bundle.manifest.space.clone();
    let kept = tempfile::tempdir().expect("tempdir");
    let settings = config::load(None, std::iter::empty(), &[]).expect("defaults");

    let users: Vec<String> = world.users.iter().map(|user| user.user_id.clone()).collect();
    let served = runtime.block_on(async {
        let store: Arc<dyn FeatureStore> = EmbeddedStore::open(kept.path(), EmbeddedOptions::default()).expect("store");
        let policy = DuePolicy::new(&settings.refresh);
        let ingest = Ingest::new(store.clone(), actions.clone(), policy);
        ingest.append(&Spaces::only(&space), world.events.clone()).await.expect("append");
        let metrics = Arc::new(Metrics::new().expect("metrics"));
        let (refresh, retrieve) = (settings.refresh.clone(), settings.retrieve.clone());
        let refresher = Refresher::new(store.clone(), Live::new(bundle), metrics, refresh, retrieve);
        for user in &users {
            let refreshed = refresher.refresh(user, 1).await.expect("refresh");
            assert!(matches!(refreshed, Refreshed::Written { .. }), "{user}: {refreshed:?}");
        }
        store.features(&space, &users).await.expect("features")
    });

    let (models, _) = open_bundle(&folder).expect("bundle");
    let dataset = Dataset::from_records(world.items, world.users, world.events, &actions);
    let limit = models.schema.max_engagements;
    let inputs: Vec<_> = dataset.users.iter().map(|user| dataset.prompt_input(user, Cut::END, limit)).collect();
    let judged = models.answer(&inputs).expect("answers");
    for ((user, stored), answer) in dataset.users.iter().zip(served).zip(judged) {
        let stored = stored.expect("features");
        let decoded = |group| DecodedGroup::decode(stored.group(group).expect("group")).expect("message");
        let (DecodedGroup::Text(text), DecodedGroup::Intra(intra)) = (decoded(Group::Text), decoded(Group::Intra))
        else {
            panic!("other groups")
        };
        let (id, categories) = match answer.grounding {
            Grounding::Item { id, categories } => (id, categories),
            Grounding::Category(path) => (String::new(), path),
            Grounding::None => (String::new(), Vec::new()),
        };
        assert_eq!((text.reasoning, text.answer), (answer.parsed.reasoning, answer.parsed.answer), "{}", user.user_id);
        assert_eq!((text.grounded_item_id, intra.category_ids), (id, categories), "{}", user.user_id);
        assert_eq!(intra.sparse_ids, models.codebook.sparse_ids(&answer.codes).expect("codes"), "{}", user.user_id);
    }
    println!("audit 15: {} users served as judged: answer, grounding and codes alike", users.len());
}
