//! `taiji doctor`: what is well is ok, what is not is named with a remedy, and what could not be looked at says so.

use crate::worlds::data_plane_bundle;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;
use testkit::TAIJI;
use testkit::certificates::{make_certificates, sign_server};
use testkit::kafka::Broker;
use testkit::process::{Ended, free_address, run_with};
use testkit::redis::{RIGHTS, RedisServer};

struct Patient {
    folder: TempDir,
    bundle: PathBuf,
}

impl Patient {
    fn new() -> Patient {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        Patient { folder, bundle }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn doctor(&self, store: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        let bundle = self.bundle.display().to_string();
        let all = [&["doctor", "--store", store, "--bundle", &bundle][..], arguments].concat();
        run_with(&TAIJI, &all, environment)
    }

    /// Exit code, and the rows.
    fn rows(&self, store: &str, environment: &[(&str, &str)]) -> (i32, Vec<Value>) {
        let ended = self.doctor(store, &["--json"], environment);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
        let code = ended.code.expect("an exit code");
        assert_eq!(report["ok"], Value::Bool(code == 0), "{report}");
        (code, report["checks"].as_array().expect("checks").clone())
    }

    fn embedded(&self) -> String {
        format!("embedded:{}", self.path("store"))
    }
}

/// State, what was found and remedy of a check.
fn row(rows: &[Value], check: &str) -> [String; 3] {
    let row = rows.iter().find(|row| row["check"] == check).unwrap_or_else(|| panic!("{check} in {rows:?}"));
    ["state", "found", "remedy"].map(|part| row[part].as_str().expect("text").to_string())
}

fn states(rows: &[Value]) -> Vec<(&str, &str)> {
    rows.iter().map(|row| (row["check"].as_str().expect("check"), row["state"].as_str().expect("state"))).collect()
}

#[test]
fn what_is_well_ends_with_0_and_what_is_off_is_said() {
    let patient = Patient::new();
    let (code, rows) = patient.rows(&patient.embedded(), &[]);
    assert_eq!(code, 0, "{rows:?}");
    let [state, found, remedy] = row(&rows, "keys");
    assert!(state == "warning" && found.contains("open to everyone") && remedy.contains("auth.keys_file"));
    for (check, state) in [
        ("configuration", "ok"),
        ("bundle", "ok"),
        ("store", "ok"),
        ("models", "off"),
        ("certificate", "off"),
        ("kafka", "off"),
    ] {
        assert_eq!(row(&rows, check)[0], state, "{check}");
    }
    assert!(!patient.folder.path().join("store").exists(), "it makes no store");
    let table = patient.doctor(&patient.embedded(), &[], &[]).expect_code(0).stdout;
    assert!(table.starts_with("check ") && table.contains("→ set auth.keys_file"), "{table}");
}

#[test]
fn configuration_keys_and_certificates_are_judged_as_a_start_does() {
    let patient = Patient::new();
    make_certificates(patient.folder.path());
    sign_server(patient.folder.path(), "over", -1);
    let (code, rows) = patient.rows(&patient.embedded(), &[("TAIJI__STORE__SHARDS", "0")]);
    assert!(code == 64 && row(&rows, "configuration")[1].contains("store.shards") && rows.len() == 1, "{rows:?}");

    let keys = patient.path("keys.toml");
    std::fs::write(&keys, "read_keys = [\"geheim-geheim-geheim\"]\n").expect("write");
    let (code, rows) = patient.rows(&patient.embedded(), &[("TAIJI__AUTH__KEYS_FILE", &keys)]);
    let [state, found, _] = row(&rows, "keys");
    assert!(code == 64 && state == "failed" && found.contains("keys.toml") && !found.contains("geheim"), "{rows:?}");

    for (name, code, state, part) in [("server", 0, "warning", " days left"), ("over", 69, "failed", "expired")] {
        let (chain, key) = (patient.path(&format!("{name}.pem")), patient.path(&format!("{name}.key")));
        let settings = [("TAIJI__TLS__CERTIFICATE_FILE", chain.as_str()), ("TAIJI__TLS__KEY_FILE", key.as_str())];
        let (ended, rows) = patient.rows(&patient.embedded(), &settings);
        let [found_state, found, remedy] = row(&rows, "certificate");
        assert!(ended == code && found_state == state && found.contains(part) && remedy.contains("renew"), "{rows:?}");
    }
    std::fs::remove_file(patient.bundle.join("prompt.toml")).expect("remove");
    let (code, rows) = patient.rows(&patient.embedded(), &[]);
    let [state, found, remedy] = row(&rows, "bundle");
    assert!(
        code == 69 && state == "failed" && found.contains("prompt.toml") && remedy.contains("taiji bundle"),
        "{rows:?}"
    );
}

#[test]
fn a_redis_is_judged_by_rights_promises_memory_and_clock() {
    let (patient, mut redis) = (Patient::new(), RedisServer::start());
    let (code, rows) = patient.rows(&redis.url(), &[]);
    assert_eq!(code, 0, "{rows:?}");
    for check in ["redis", "redis rights", "redis promises", "redis persistence", "redis layout", "clocks"] {
        assert_eq!(row(&rows, check)[0], "ok", "{rows:?}");
    }
    assert_eq!(row(&rows, "redis memory")[0], "warning", "no maxmemory is set");
    assert_eq!(redis.command(&["DBSIZE"]).trim(), ":0", "it leaves nothing behind");

    redis.command(&["ACL", "SETUSER", "service", "-zadd", "-hset", "-function|load"]);
    redis.command(&["FUNCTION", "FLUSH"]);
    let (code, rows) = patient.rows(&redis.url(), &[]);
    let [state, found, remedy] = row(&rows, "redis rights");
    assert!(code == 69 && state == "failed", "{rows:?}");
    for lacking in ["HSET", "ZADD", "FUNCTION LOAD"] {
        assert!(found.contains(lacking), "{lacking} in {found}");
    }
    assert!(remedy.contains(RIGHTS) && remedy.contains("~taiji:*"), "{remedy}");
    redis.command(&[&["ACL", "SETUSER", "service"], &RIGHTS.split(' ').collect::<Vec<_>>()[..]].concat());
    redis.command(&["ACL", "SETUSER", "service", "resetkeys", "~other:*"]);
    let (code, rows) = patient.rows(&redis.url(), &[]);
    assert!(code == 69 && row(&rows, "redis rights")[0] == "failed", "{rows:?}");
    redis.command(&["ACL", "SETUSER", "service", "~*"]);

    for (setting, wrong, right, check, part) in [
        ("maxmemory-policy", "allkeys-lru", "noeviction", "redis promises", "allkeys-lru"),
        ("appendonly", "no", "yes", "redis persistence", "no append-only file"),
    ] {
        redis.command(&["CONFIG", "SET", setting, wrong]);
        let (_, rows) = patient.rows(&redis.url(), &[]);
        let [state, found, _] = row(&rows, check);
        assert!(state != "ok" && found.contains(part), "{rows:?}");
        redis.command(&["CONFIG", "SET", setting, right]);
    }
    // A replica whose clock is wrong says so itself in its entry.
    redis.command(&["HSET", "taiji:member:00ff", "roles", "api", "ahead_ms", "-7000"]);
    let (code, rows) = patient.rows(&redis.url(), &[]);
    let [state, found, remedy] = row(&rows, "clocks");
    assert!(code == 0 && state == "warning" && found == "process 00ff (api) is 7000 ms behind", "{rows:?}");
    assert!(remedy.contains("NTP"), "{remedy}");

    let wrong = redis.url().replace(":pw@", ":geheim@");
    let (code, rows) = patient.rows(&wrong, &[]);
    assert!(code == 69 && row(&rows, "redis")[0] == "failed" && !format!("{rows:?}").contains("geheim"), "{rows:?}");
    redis.kill();
    let (code, rows) = patient.rows(&redis.url(), &[]);
    assert_eq!((code, row(&rows, "redis")[0].as_str()), (69, "failed"), "{rows:?}");
    let unknown = states(&rows).iter().filter(|(_, state)| *state == "not checked").count();
    assert_eq!(unknown, 6, "never silently ok: {rows:?}");
}

#[test]
fn kafka_is_judged_by_broker_topics_and_rights_and_nothing_is_written() {
    let patient = Patient::new();
    let nobody = free_address();
    let (code, rows) = patient.rows(&patient.embedded(), &[("TAIJI__KAFKA__BROKERS", &nobody)]);
    let [state, found, remedy] = row(&rows, "kafka");
    assert!(code == 69 && state == "failed" && found.contains(&nobody) && remedy.contains("kafka.brokers"), "{rows:?}");
    for check in ["kafka topics", "kafka rights"] {
        assert_eq!(row(&rows, check)[0], "not checked", "{rows:?}");
    }

    let broker = Broker::shared();
    let topics = ["doctor.events", "doctor.items", "doctor.dlq"];
    let settings = [
        ("TAIJI__KAFKA__BROKERS", broker.address()),
        ("TAIJI__KAFKA__GROUP", "doctor"),
        ("TAIJI__KAFKA__EVENTS_TOPIC", topics[0]),
        ("TAIJI__KAFKA__ITEMS_TOPIC", topics[1]),
        ("TAIJI__KAFKA__DEAD_LETTER_TOPIC", topics[2]),
    ];
    for topic in &topics[..2] {
        broker.create_topic(topic, 2, &[]);
    }
    let (code, rows) = patient.rows(&patient.embedded(), &settings);
    let [state, found, remedy] = row(&rows, "kafka topics");
    assert!(code == 69 && state == "failed" && found.starts_with("doctor.dlq: "), "{rows:?}");
    assert!(remedy.contains("make the topics"), "{remedy}");
    broker.create_topic(topics[2], 1, &[]);
    let (code, rows) = patient.rows(&patient.embedded(), &settings);
    assert_eq!(code, 0, "{rows:?}");
    let [state, found, _] = row(&rows, "kafka rights");
    assert!(state == "ok", "{rows:?}");
    for part in ["read doctor.events", "read doctor.items", "group doctor", "write doctor.dlq"] {
        assert!(found.contains(part), "{part} in {found}");
    }
    if broker.is_real_or_skip() {
        assert_eq!(broker.end_offsets(topics[2], 1), [0], "the question whether we may write writes nothing");
    }
}

#[test]
fn a_user_of_kafka_without_rights_is_named() {
    let Some(broker) = Broker::start_secured() else { return };
    let patient = Patient::new();
    for topic in ["taiji.events", "taiji.items", "taiji.events.dlq"] {
        broker.create_topic(topic, 1, &[]);
    }
    let settings = |user: &'static str, password: &'static str| {
        [
            ("TAIJI__KAFKA__BROKERS", broker.secured().sasl.as_str()),
            ("TAIJI__KAFKA__PROPERTIES__SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("TAIJI__KAFKA__PROPERTIES__SASL_MECHANISM", "PLAIN"),
            ("TAIJI__KAFKA__PROPERTIES__SASL_USERNAME", user),
            ("TAIJI__KAFKA__PROPERTIES__SASL_PASSWORD", password),
        ]
    };
    let (code, rows) = patient.rows(&patient.embedded(), &settings("taiji", "right"));
    assert_eq!(code, 0, "{rows:?}");
    let (code, rows) = patient.rows(&patient.embedded(), &settings("stranger", "right"));
    let [state, found, remedy] = row(&rows, "kafka topics");
    assert!(
        code == 69 && state == "failed" && found.contains("may not describe") && remedy.contains("DESCRIBE"),
        "{rows:?}"
    );
    let (code, rows) = patient.rows(&patient.embedded(), &settings("taiji", "geheim"));
    let [state, found, _] = row(&rows, "kafka");
    assert!(code == 69 && state == "failed" && !found.contains("geheim"), "{rows:?}");
}
