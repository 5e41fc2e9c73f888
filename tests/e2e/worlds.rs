//! Bundles and events for the tests.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use taiji::bundle::{External, Lineage, Manifest, Models, generation_dir, space_id};
use taiji::catalogue::{CatalogueRow, write_catalogue};
use taiji::event::{Event, Item};
use taiji::prompt::PromptSchema;
use taiji::proto::Behaviour;
use taiji::quantize::PqCodebook;
use taiji::retrieve::{IndexShape, SnapshotUser, UserSnapshot, build_main};
use taiji_export::{ExportOptions, export};
use testkit::fixture;

/// Length of the vectors of [`data_plane_bundle`].
const DIM: usize = 16;
const SLOTS: usize = 8;
const CODES: usize = 256;

/// Unix time in ms.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("clock");
    i64::try_from(now.as_millis()).expect("clock")
}

/// Items of a small shop.
pub fn small_catalogue() -> Vec<Item> {
    let shelves = ["Shoes", "Lamps", "Tea", "Books", "Tents", "Pans"];
    let item = |n: usize| {
        let (shelf, colour) = (shelves[n % shelves.len()], ["red", "blue", "green", "grey"][n % 4]);
        let text = json!({
            "id": format!("i{n}"), "title": format!("{colour} {shelf} number {n}"),
            "categories": ["Shop", shelf, colour], "price": 5 + n % 40,
        });
        serde_json::from_value(text).expect("item")
    };
    (1..=300).map(item).collect()
}

/// A click that nobody else made.
pub fn click(user: &str, event: &str, ts_ms: i64) -> Value {
    json!({ "event_id": event, "user_id": user, "item_id": "i1", "action": "click", "ts_ms": ts_ms })
}

/// Writes lines of JSON.
pub fn write_lines<T: serde::Serialize>(path: &Path, rows: impl IntoIterator<Item = T>) {
    let lines: Vec<String> = rows.into_iter().map(|row| serde_json::to_string(&row).expect("json")).collect();
    std::fs::write(path, lines.join("\n") + "\n").expect("write");
}

/// Events as `taiji-trainer synth` writes them.
pub fn read_events(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).expect("events");
    text.lines().map(|line| serde_json::from_str(line).expect("event")).collect()
}

/// Users of some events, sorted.
pub fn users_of(events: &[Event]) -> Vec<String> {
    let mut users: Vec<String> = events.iter().map(|event| event.user_id.clone()).collect();
    users.sort();
    users.dedup();
    users
}

/// A whole bundle without trained models, for `--engine null`: codebook, catalogue and index are real but random, the
/// decoder is a fixture with random weights, and the encoder is only named.
pub fn data_plane_bundle(folder: &Path) -> PathBuf {
    let bundle = folder.join("bundle");
    let generation = generation_dir(&bundle, 1);
    for made in [&generation, &bundle.join("space")] {
        std::fs::create_dir_all(made).expect("folder");
    }
    PromptSchema::small().save(&bundle.join("prompt.toml")).expect("prompt.toml");
    let codebook = PqCodebook::new(SLOTS, CODES, DIM, numbers(CODES * DIM, 1), None).expect("codebook");
    codebook.save(&bundle.join("space/pq.safetensors")).expect("codebook file");
    write_generation(&generation);
    export(&fixture("qwen2-tied"), &bundle.join("llm/reason"), &ExportOptions::default()).expect("decoder");
    std::fs::write(bundle.join("llm/reason/generation.json"), "{\"stop\": []}").expect("stop tokens");
    write_manifest(&bundle, &codebook);
    bundle
}

fn write_generation(generation: &Path) {
    let items = small_catalogue();
    let row = |item: &Item| CatalogueRow { item: Arc::new(item.clone()), distinct_users: 5 };
    let rows: Vec<CatalogueRow> = items.iter().map(row).collect();
    write_catalogue(&generation.join("catalogue.parquet"), &rows).expect("catalogue");
    let users: Vec<SnapshotUser> = (0..40)
        .map(|user| SnapshotUser {
            user: format!("known-{user}"),
            engagements: (0..10).map(|place| known_behaviour(&items[(user * 7 + place) % 300], place)).collect(),
        })
        .collect();
    UserSnapshot::write(&generation.join("users.parquet"), &users).expect("users");
    let shape = IndexShape { factory: "Flat".into(), dim: DIM };
    build_main(&shape, &numbers(users.len() * DIM, 2), &generation.join("users.faiss")).expect("index");
}

fn known_behaviour(item: &Item, place: usize) -> Behaviour {
    Behaviour {
        ts_ms: 1_700_000_000_000 - place as i64 * 1000,
        item_id: item.id.clone(),
        action: "click".into(),
        ..Behaviour::default()
    }
}

fn write_manifest(bundle: &Path, codebook: &PqCodebook) {
    let encoder = "random";
    let models = Models {
        llm: "fixture".into(),
        encoder: encoder.into(),
        codebook: codebook.content_hash(),
        prompt_schema: "small-1".into(),
    };
    let manifest = Manifest {
        format_version: Manifest::current_format(),
        name: "data-plane".into(),
        epoch: 1,
        space: space_id(encoder, &codebook.content_hash()),
        generation: 1,
        models,
        lineage: Lineage { recipe: String::new(), data: String::new(), parents: vec![], licences: vec![] },
        external: BTreeMap::<String, External>::new(),
        files: BTreeMap::new(),
    };
    manifest.write_all(bundle, |_| None).expect("manifest");
}

/// Numbers between -0.5 and 0.5 that are the same every time.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}
