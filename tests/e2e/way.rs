//! The whole way with the demo bundle's own models: events in, features out.

use crate::worlds::{read_events, users_of, write_lines};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use taiji::event::Event;
use testkit::TAIJI;
use testkit::demo_bundle;
use testkit::process::synth_files;
use testkit::process::{SOON, Server, Setup, output_of, wait_until};

const SLOTS: usize = 8;
const CODES: u64 = 256;

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().expect("array").iter().map(|number| number.as_u64().expect("number")).collect()
}

fn feed(server: &Server, file: &Path) -> String {
    let url = format!("http://{}", server.public());
    output_of(&TAIJI, &["feed", "--file", &file.display().to_string(), "--http", &url])
}

/// A file of generated users that the bundle has never seen, the first of them twice under another name.
fn write_events(folder: &Path) -> (Vec<String>, [String; 2]) {
    synth_files(folder, 40, 4243);
    let mut events = read_events(&folder.join("events.jsonl"));
    let users = users_of(&events);
    let first = users.first().expect("user").clone();
    let twin = format!("twin of {first}");
    let copies: Vec<Event> =
        events.iter().filter(|event| event.user_id == first).map(|event| renamed(event, &twin)).collect();
    events.extend(copies);
    write_lines(&folder.join("all.jsonl"), &events);
    (users_of(&events), [first, twin])
}

fn renamed(event: &Event, user: &str) -> Event {
    Event { user_id: user.to_string(), ..event.clone() }
}

#[test]
fn behaviour_of_unseen_users_becomes_features() {
    let folder = tempfile::tempdir().expect("tempdir");
    let (users, twins) = write_events(folder.path());
    let mut server = Setup::onnx(&demo_bundle(), &folder.path().join("store")).start();
    let told = feed(&server, &folder.path().join("all.jsonl"));
    assert!(told.contains(" 0 rejected") && told.contains("p99"), "{told}");
    let columns = server.wait_for_features(&users, Duration::from_secs(120));

    check_columns(&columns, &users);
    check_rows(&server, &users);
    check_twins(&server, &twins);
    check_unknown_user(&server);
    check_feast(&server, &users[0]);
    check_metrics(&server);

    let duplicates = feed(&server, &folder.path().join("all.jsonl"));
    assert!(duplicates.contains(" 0 accepted"), "{duplicates}");
    assert_eq!(server.stop(), Some(0), "{}", server.stderr());
    assert!(!server.stderr().contains("panicked"), "{}", server.stderr());
}

fn check_columns(columns: &Value, users: &[String]) {
    assert_eq!(columns["users"], json!(users));
    assert_eq!(columns["status"], json!(vec!["PRESENT"; users.len()]));
    for group in ["intra", "cross"] {
        let part = &columns["groups"][group];
        assert_eq!(part["status"], json!(vec!["PRESENT"; users.len()]));
        assert_eq!(part["reason"], json!(vec![Value::Null; users.len()]));
        for name in ["epoch", "generated_at_ms", "source_ts_ms", "expires_at_ms", "seq"] {
            assert!(numbers(&part[name]).iter().all(|number| *number > 0), "{group}.{name}");
        }
    }
    assert_eq!(columns["groups"]["scid"]["status"], json!(vec!["MISSING"; users.len()]));
    assert_eq!(columns["groups"]["scid"]["reason"], json!(vec!["not_built"; users.len()]));
    assert_eq!(columns["features"]["intra.has_llm_feature"], json!(vec![1; users.len()]));
    let mut tuples = BTreeSet::new();
    for ids in columns["features"]["intra.sparse_ids"].as_array().expect("rows") {
        let ids = numbers(ids);
        check_sparse_ids(&ids);
        tuples.insert(ids);
    }
    assert!(tuples.len() * 10 > users.len() * 3, "{} distinct code tuples of {}", tuples.len(), users.len());
    let epoch = columns["groups"]["intra"]["epoch"][0].as_u64().expect("epoch").to_string();
    for part in ["llm", "encoder", "codebook", "prompt_schema"] {
        let found = columns["provenance"][&epoch][part].as_str().unwrap_or_default();
        assert!(!found.is_empty(), "provenance.{epoch}.{part} in {}", columns["provenance"]);
    }
    assert!(!columns["space"].as_str().expect("space").is_empty());
}

fn check_sparse_ids(ids: &[u64]) {
    assert_eq!(ids.len(), SLOTS);
    for (slot, id) in ids.iter().enumerate() {
        let below = slot as u64 * CODES;
        assert!(below < *id && *id <= below + CODES, "slot {slot}: {id}");
    }
}

fn check_rows(server: &Server, users: &[String]) {
    let (mut well_formed, mut with_neighbour) = (0, 0);
    for user in users {
        let row = server.row(user, "intra,cross,scid,text");
        let groups = &row["groups"];
        let seq = &server.history(user).expect("history")["seq"];
        for group in ["intra", "cross", "text"] {
            let meta = &groups[group]["meta"];
            assert_eq!((&groups[group]["status"], &meta["seq"], &meta["tier"]), (&json!("PRESENT"), seq, &json!(1)));
            assert_eq!(meta["space"], row["space"]);
            assert!(!meta["flags"].as_array().expect("flags").contains(&json!("fallback")), "{meta}");
        }
        assert_eq!(groups["scid"]["reason"], json!("not_built"));
        well_formed +=
            usize::from(groups["text"]["meta"]["flags"].as_array().expect("flags").contains(&json!("format_ok")));
        let neighbour = groups["text"]["neighbour_user_id"].as_str().expect("neighbour");
        assert_ne!(neighbour, user, "nobody is their own neighbour");
        let items = groups["cross"]["item_ids"].as_array().expect("items").len();
        assert_eq!(items > 0, !neighbour.is_empty(), "{}", groups["cross"]);
        for column in ["actions", "ts_ms"] {
            assert_eq!(groups["cross"][column].as_array().expect(column).len(), items);
        }
        if items > 0 {
            with_neighbour += 1;
            // Stored vectors are rounded to 16 or 8 bits: the product of two may pass 1 a little.
            let similarity = groups["cross"]["similarity"].as_f64().expect("similarity");
            assert!(similarity > 0.0 && similarity <= 1.0, "{similarity}");
            assert!(items <= 100);
        }
    }
    assert!(well_formed * 100 >= users.len() * 95, "{well_formed} of {} answers are well-formed", users.len());
    assert!(with_neighbour * 100 >= users.len() * 95, "{with_neighbour} of {} have a neighbour", users.len());
}

fn check_twins(server: &Server, twins: &[String; 2]) {
    let [one, other] = twins.each_ref().map(|user| server.row(user, "intra,text"));
    for (group, name) in [("intra", "sparse_ids"), ("intra", "category_ids"), ("text", "reasoning"), ("text", "answer")]
    {
        assert_eq!(one["groups"][group][name], other["groups"][group][name], "{group}.{name} of the same history");
    }
}

fn check_unknown_user(server: &Server) {
    let row = server.row("nobody", "intra,cross,scid");
    assert_eq!(row["status"], json!("MISSING"));
    assert_eq!(row["groups"]["intra"]["sparse_ids"], json!(vec![0; SLOTS]));
    assert_eq!(row["groups"]["intra"]["has_llm_feature"], json!(0));
    assert_eq!(row["groups"]["intra"]["reason"], json!("no_features"));
    assert_eq!(row["groups"]["cross"]["item_ids"], json!([]));
    let columns = server.columns(&["nobody".to_string()]);
    assert_eq!((&columns["status"], &columns["provenance"]), (&json!(["MISSING"]), &json!({})));
    assert_eq!(columns["groups"]["intra"]["reason"], json!(["no_features"]));
    assert_eq!(columns["features"]["intra.sparse_ids"], json!([vec![0; SLOTS]]));
}

fn check_feast(server: &Server, user: &str) {
    let names = ["taiji_intra:sparse_ids", "taiji_intra:has_llm_feature", "taiji_cross:item_ids", "taiji_scid:user"];
    let body = json!({ "features": names, "entities": { "user_id": [user, "nobody"] } });
    let answer = server.post("/get-online-features", &body).expect_status(200).json();
    let wanted = json!(["user_id", "sparse_ids", "has_llm_feature", "item_ids", "user"]);
    assert_eq!(answer["metadata"]["feature_names"], wanted);
    let statuses: Vec<&Value> =
        answer["results"].as_array().expect("results").iter().map(|part| &part["statuses"]).collect();
    let (both, first, none) =
        (json!(["PRESENT", "PRESENT"]), json!(["PRESENT", "NOT_FOUND"]), json!(["NOT_FOUND", "NOT_FOUND"]));
    assert_eq!(statuses, [&both, &first, &both, &first, &none]);
    assert_eq!(answer["results"][0]["values"], json!([user, "nobody"]));
    check_sparse_ids(&numbers(&answer["results"][1]["values"][0]));
    assert_eq!(answer["results"][1]["values"][1], Value::Null);
    assert_eq!(answer["results"][2]["values"], json!([1, 0]));
    for part in answer["results"].as_array().expect("results") {
        for stamp in part["event_timestamps"].as_array().expect("timestamps") {
            let stamp = stamp.as_str().expect("timestamp");
            assert!(stamp.len() == 24 && stamp.ends_with('Z') && stamp.as_bytes()[10] == b'T', "{stamp}");
        }
    }
    let made = answer["results"][1]["event_timestamps"][0].as_str().expect("timestamp");
    assert!(made > "2024", "{made}");
    let full = json!({ "features": names, "entities": { "user_id": [user] }, "full_feature_names": true });
    let answer = server.post("/get-online-features", &full).expect_status(200).json();
    assert_eq!(answer["metadata"]["feature_names"][1], json!("taiji_intra__sparse_ids"));
}

fn check_metrics(server: &Server) {
    for name in [
        "taiji_refreshes_total",
        "taiji_llm_tokens_total",
        "taiji_events_total",
        "taiji_answers_total",
        "taiji_served_values_total",
        "taiji_http_requests_total",
        "taiji_http_request_duration_seconds_count",
        "taiji_refresh_duration_seconds_count",
        "taiji_stage_duration_seconds_count",
        "taiji_store_operation_duration_seconds_count",
        "taiji_freshness_seconds_count",
        "taiji_index_vectors",
        "taiji_store_users",
        "taiji_catalogue_items",
        "taiji_neighbours_total",
        "taiji_bundle_info",
        "taiji_ready",
    ] {
        // The store's numbers are read once a second.
        wait_until(name, SOON, || (server.metric(name) > 0.0).then_some(()));
    }
    for name in
        ["taiji_queue_users", "taiji_queue_oldest_age_seconds", "taiji_llm_queue_requests", "taiji_queue_leased"]
    {
        assert!(server.metric(name) >= 0.0);
    }
    let fresh = server.metrics();
    assert!(fresh.contains("taiji_index_vectors{part=\"fresh\"}"), "{fresh}");
}
