//! The fast path with real models: a first answer without the LLM, then the LLM's.

use crate::worlds::{read_events, users_of};
use serde_json::{Value, json};
use testkit::demo_bundle;
use testkit::process::synth_files;
use testkit::process::{SOON, Server, Setup, wait_until};

fn intra(server: &Server, user: &str) -> Value {
    server.row(user, "intra,cross,text")["groups"]["intra"].clone()
}

fn tiers(columns: &Value) -> Vec<u64> {
    columns["groups"]["intra"]["tier"]
        .as_array()
        .expect("tier")
        .iter()
        .map(|tier| tier.as_u64().expect("tier"))
        .collect()
}

#[test]
fn users_the_llm_has_no_time_for_are_answered_quickly_and_later_by_the_llm() {
    let folder = tempfile::tempdir().expect("tempdir");
    synth_files(folder.path(), 8, 77);
    let events = read_events(&folder.path().join("events.jsonl"));
    // One token a day: the first refresh takes it and a debt for weeks, and nobody else's begins unless asked for.
    let server = Setup::onnx(&demo_bundle(), &folder.path().join("store"))
        .env("TAIJI__REFRESH__FAST_PATH", "true")
        .env("TAIJI__REFRESH__CONCURRENCY", "1")
        .env("TAIJI__REFRESH__TOKENS_PER_DAY", "1")
        .start();
    server.post("/v1/events", &json!({ "events": events })).expect_status(202);
    let users = users_of(&events);
    let columns = wait_until("an answer for every user, one of them the llm's", SOON, || {
        let columns = server.columns(&users);
        let present = columns["status"].as_array().expect("status").iter().all(|status| status == "PRESENT");
        (present && tiers(&columns).iter().sum::<u64>() == 1).then_some(columns)
    });
    let quick: Vec<&String> =
        users.iter().zip(tiers(&columns)).filter(|(_, tier)| *tier == 0).map(|(user, _)| user).collect();
    assert_eq!(quick.len(), users.len() - 1);
    assert!(server.metric("taiji_fast_freshness_seconds_count") >= quick.len() as f64);
    let user = quick[0].as_str();
    let first = intra(&server, user);
    assert_eq!((&first["meta"]["tier"], &first["has_llm_feature"]), (&json!(0), &json!(0)), "{first}");
    assert_eq!(
        (&first["meta"]["flags"], &first["meta"]["fallback_reason"]),
        (&json!(["fallback"]), &json!("fast_path"))
    );
    assert!(first["sparse_ids"].as_array().expect("ids").iter().all(|id| id.as_u64() > Some(0)), "{first}");
    let shown = server.row(user, "cross")["groups"]["cross"]["item_ids"].as_array().expect("items").len();
    assert!(shown > 0, "a neighbour out of the bundle's index");

    let path = format!("/v1/users/{user}/refresh");
    let row = server.post(&path, &json!({ "wait_ms": 30_000 })).expect_status(200).json();
    let made = &row["groups"]["intra"];
    assert_eq!((&made["meta"]["tier"], &made["has_llm_feature"]), (&json!(1), &json!(1)), "{made}");
    assert_eq!(made["meta"]["fallback_reason"], json!(""));
    assert_eq!(made["meta"]["seq"], server.history(user).expect("history")["seq"]);
    assert_ne!(server.row(user, "text")["groups"]["text"]["answer"], json!(""));
    wait_until("no quick answer left to make", SOON, || (server.metric("taiji_queue_fast_users") == 0.0).then_some(()));
    let written = server.metric("taiji_fast_freshness_seconds_count");
    assert!(written <= users.len() as f64, "once a user: {written}");
}
