//! Who is shown, where many are equally near.

use super::*;
use crate::due::CLASS_THRESHOLD;
use crate::encode::Encoder;
use crate::feature::{DecodedGroup, Group, Version};
use crate::prompt::{PromptMode, parse};
use crate::proto::{CrossGroup, TextGroup};
use crate::retrieve::{IndexShape, SnapshotUser, VectorTail, build_main, encode_f16};
use crate::store::FreshVector;

/// Every user's prompt is answered as this one.
const SAME: &str = "the same for all";

/// The vector of the answer to [`SAME`].
fn same_vector() -> Vec<f32> {
    let text = parse(&NullLlm::answer(SAME), PromptMode::Think).embedding_text();
    NullEncoder::new(DIM).encode(&[&text]).unwrap().remove(0)
}

/// Another vector, with this product with [`same_vector`].
fn vector_at(similarity: f32) -> Vec<f32> {
    let same = same_vector();
    let away = NullEncoder::new(DIM).encode(&["away"]).unwrap().remove(0);
    let along: f32 = same.iter().zip(&away).map(|(one, other)| one * other).sum();
    let across: Vec<f32> = same.iter().zip(&away).map(|(one, other)| other - along * one).collect();
    let norm = across.iter().map(|value| value * value).sum::<f32>().sqrt();
    let far = (1.0 - similarity * similarity).sqrt() / norm;
    same.iter().zip(&across).map(|(one, other)| similarity * one + far * other).collect()
}

struct World {
    store: Arc<dyn FeatureStore>,
    refresher: Arc<Refresher>,
    space: String,
    _folder: tempfile::TempDir,
}

impl World {
    /// Everybody's answer is the same; the main part is of these users, whose vectors are equal, too.
    fn new(users: &[String], change: impl FnOnce(&mut Settings)) -> World {
        let (folder, mut settings) = (tempfile::tempdir().unwrap(), eager());
        change(&mut settings);
        let llm = GatedLlm::new(true, Duration::ZERO);
        *llm.as_if.lock() = Some(SAME);
        let (index, snapshot) = if users.is_empty() {
            (FaissUserIndex::empty(DIM).unwrap(), UserSnapshot::default())
        } else {
            main_part(users, folder.path())
        };
        let store = embedded(&folder.path().join("store"));
        let refresher = refresher(store.clone(), bundle_with(llm, index, snapshot), &settings);
        let space = SPACE.to_string();
        World { store, refresher, space, _folder: folder }
    }

    async fn take_in(&self, batches: &[UserBatch]) {
        self.store.append(std::slice::from_ref(&self.space), batches).await.unwrap();
    }

    /// Refreshes them, 16 at once.
    async fn refresh(self: &Arc<Self>, users: &[String]) {
        let mut running = tokio::task::JoinSet::new();
        for user in users {
            if running.len() == 16 {
                running.join_next().await.unwrap().unwrap();
            }
            let (world, user) = (self.clone(), user.clone());
            running.spawn(async move {
                let refreshed = world.refresher.refresh(&user, CLASS_THRESHOLD).await.unwrap();
                assert!(matches!(refreshed, Refreshed::Written { .. }), "{user}: {refreshed:?}");
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
    }

    async fn shown(&self, user: &str) -> (TextGroup, CrossGroup) {
        let stored = stored(self.store.as_ref(), &self.space, user).await;
        let decode = |group: Group| DecodedGroup::decode(stored.group(group).unwrap()).unwrap();
        match (decode(Group::Text), decode(Group::Cross)) {
            (DecodedGroup::Text(text), DecodedGroup::Cross(cross)) => (text, cross),
            other => panic!("{user}: {other:?}"),
        }
    }

    /// Neighbour → how many of these users show them; everybody must have one.
    async fn referrers(&self, users: &[String]) -> HashMap<String, usize> {
        let mut referrers: HashMap<String, usize> = HashMap::new();
        for user in users {
            let (text, _) = self.shown(user).await;
            assert!(!text.neighbour_user_id.is_empty() && text.neighbour_user_id != *user, "{user}: {text:?}");
            *referrers.entry(text.neighbour_user_id).or_default() += 1;
        }
        referrers
    }
}

fn main_part(users: &[String], folder: &Path) -> (FaissUserIndex, UserSnapshot) {
    let (index, snapshot) = (folder.join("users.faiss"), folder.join("users.parquet"));
    let vectors = same_vector().repeat(users.len());
    build_main(&IndexShape { factory: "Flat".into(), dim: DIM }, &vectors, &index).unwrap();
    let engagement = |item: usize| Behaviour {
        ts_ms: 10 + item as i64,
        item_id: format!("i{item}"),
        action: "click".into(),
        ..Behaviour::default()
    };
    let engagements: Vec<Behaviour> = (0..COMMON).rev().map(engagement).collect();
    let row = |user: &String| SnapshotUser { user: user.clone(), engagements: engagements.clone() };
    UserSnapshot::write(&snapshot, &users.iter().map(row).collect::<Vec<_>>()).unwrap();
    let (users, snapshot) = UserSnapshot::read(&snapshot).unwrap();
    (FaissUserIndex::load(&index, users, DIM, 1).unwrap(), snapshot)
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|user| format!("u{user}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_07_forty_thousand_users_of_one_vector_all_get_a_neighbour_and_there_is_no_hub() {
    let users = names(40_000);
    let (world, is_strict) = (Arc::new(World::new(&users, |_| {})), testkit::is_audit());
    // In CI every tenth of them is refreshed; what the others do to them is the same.
    let refreshed: Vec<String> = users.iter().step_by(if is_strict { 1 } else { 10 }).cloned().collect();
    for part in refreshed.chunks(500) {
        world.take_in(&part.iter().map(|user| events(user, &[])).collect::<Vec<_>>()).await;
    }
    world.refresh(&refreshed).await;
    let referrers = world.referrers(&refreshed).await;
    let most = referrers.values().max().copied().unwrap_or_default();
    println!(
        "audit 07: {} of 40,000 equal users: all have a neighbour, the most shown is shown by {most}",
        refreshed.len()
    );
    assert!(most <= 16, "spread evenly: each is among the first 8 of 8 users");
    // Their vectors are in the fresh part now, beside those of the main part, and it goes on as before.
    let mut tail = VectorTail::new(
        world.store.clone(),
        world.refresher.live.view().models().unwrap().index.clone(),
        world.space.clone(),
    );
    assert_eq!(tail.catch_up().await.unwrap(), refreshed.len());
    let again: Vec<String> = refreshed.iter().take(500).cloned().collect();
    world.take_in(&again.iter().map(|user| events(user, &[9])).collect::<Vec<_>>()).await;
    world.refresh(&again).await;
    world.referrers(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_07_nobody_is_shown_by_more_than_may_and_the_search_goes_further_where_all_are_taken() {
    let users = names(60);
    let world = World::new(&users, |settings| (settings.retrieve.max_referrers, settings.retrieve.candidates) = (2, 4));
    let world = Arc::new(world);
    world.take_in(&users.iter().map(|user| events(user, &[])).collect::<Vec<_>>()).await;
    world.refresh(&users).await;
    let referrers = world.referrers(&users).await;
    let counts = world.store.referrer_counts(&world.space, &users).await.unwrap();
    assert!(referrers.values().all(|count| *count <= 2), "{referrers:?}");
    assert!(counts.iter().all(|count| *count <= 2), "{counts:?}");
    assert_eq!(referrers.values().sum::<usize>(), users.len());
    // Strangers come as long as there are places, however far the search has to go; then they stay alone.
    let strangers: Vec<String> = (0..61).map(|user| format!("stranger{user}")).collect();
    world.take_in(&strangers.iter().map(|user| events(user, &[])).collect::<Vec<_>>()).await;
    world.refresh(&strangers[..60]).await;
    world.referrers(&strangers[..60]).await;
    world.refresh(&strangers[60..]).await;
    assert_eq!(world.shown(&strangers[60]).await.0.neighbour_user_id, "");
    let counts = world.store.referrer_counts(&world.space, &users).await.unwrap();
    assert!(counts.iter().all(|count| *count == 2), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_07_among_equals_items_in_common_decide_then_who_came_last() {
    let world = Arc::new(World::new(&[], |_| {}));
    let index = world.refresher.live.view().models().unwrap().index.clone();
    let near = |user: &str, vector: Vec<f32>| {
        let version = Version { seq: 1, turn: 1 };
        index.apply(&FreshVector { user: user.into(), era: 0, version, vector: Some(encode_f16(&vector)) }).unwrap();
    };
    // Times rise with the numbers of the items: the late one has been here last.
    let batches =
        [events("me", &[20, 21]), events("late", &[50]), events("alike", &[20, 21]), events("far", &[20, 21, 60])];
    world.take_in(&batches).await;
    near("late", same_vector());
    near("alike", vector_at(0.9998));
    near("far", vector_at(0.7));
    world.refresh(&["me".to_string()]).await;
    let (text, cross) = world.shown("me").await;
    assert_eq!(text.neighbour_user_id, "alike", "within the epsilon, more items in common");
    assert!((cross.gap_to_second - 0.3).abs() < 0.01, "to the first who is no equal: {}", cross.gap_to_second);
    index.apply(&FreshVector { user: "alike".into(), era: 1, version: Version::default(), vector: None }).unwrap();
    near("early", vector_at(0.9997));
    world.take_in(&[events("early", &[30]), events("me", &[20, 21, 22])]).await;
    world.refresh(&["me".to_string()]).await;
    assert_eq!(world.shown("me").await.0.neighbour_user_id, "late", "as many in common, and later");
}
