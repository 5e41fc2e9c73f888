//! Real histories (short form): imported, fed, and everybody gets features.

use crate::worlds::{read_events, users_of, write_lines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use testkit::demo_bundle;
use testkit::process::{Setup, output_of};
use testkit::{TAIJI, TRAINER};

const USERS: usize = 200;

/// Events of the first users, user by user, and the items they met.
fn shorten(folder: &Path) -> Vec<String> {
    let mut events = read_events(&folder.join("events.jsonl"));
    let users: Vec<String> = users_of(&events).into_iter().take(USERS).collect();
    let chosen: BTreeSet<&String> = users.iter().collect();
    events.retain(|event| chosen.contains(&event.user_id));
    events.sort_by(|left, right| (&left.user_id, left.ts_ms).cmp(&(&right.user_id, right.ts_ms)));
    let met: BTreeSet<&str> = events.iter().filter_map(|event| event.item_id.as_deref()).collect();
    let text = std::fs::read_to_string(folder.join("items.jsonl")).expect("items");
    let items = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("item"));
    write_lines(&folder.join("few-items.jsonl"), items.filter(|item| met.contains(item["id"].as_str().expect("id"))));
    write_lines(&folder.join("few-events.jsonl"), &events);
    users
}

#[test]
fn two_hundred_real_histories_become_features() {
    let source = testkit::data_folder();
    let interactions = source.join("instruments-mm.interactions.tsv.gz");
    if !interactions.is_file() {
        testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", interactions.display()));
        return;
    }
    let folder = tempfile::tempdir().expect("tempdir");
    let shown = |path: &Path| path.display().to_string();
    let items = shown(&source.join("instruments-mm.items.jsonl.gz"));
    let (interactions, out) = (shown(&interactions), shown(folder.path()));
    output_of(&TRAINER, &["import", "amazon", "--interactions", &interactions, "--items", &items, "--out", &out]);
    let users = shorten(folder.path());
    assert_eq!(users.len(), USERS);

    let server = Setup::onnx(&demo_bundle(), &folder.path().join("store")).start();
    let [events, items] = ["few-events.jsonl", "few-items.jsonl"].map(|name| shown(&folder.path().join(name)));
    let url = format!("http://{}", server.public());
    let told = output_of(&TAIJI, &["feed", "--file", &events, "--items", &items, "--http", &url]);
    assert!(told.contains("events:") && !told.contains("first rejection"), "{told}");
    let columns = server.wait_for_features(&users, Duration::from_secs(180));
    assert_eq!(columns["status"], json!(vec!["PRESENT"; USERS]));
    assert_eq!(columns["features"]["intra.has_llm_feature"], json!(vec![1; USERS]));
}
