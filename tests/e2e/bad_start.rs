//! What is missing or wrong at the start is named, with the exit code of its kind and without a panic.

use crate::worlds::data_plane_bundle;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use testkit::TAIJI;
use testkit::process::{Ended, Setup, free_address, output_of, run_with};

struct Prepared {
    folder: TempDir,
    bundle: PathBuf,
}

impl Prepared {
    fn new() -> Prepared {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        Prepared { folder, bundle }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    fn canned(&self) -> Setup {
        Setup::canned(&self.bundle, &self.store())
    }

    fn onnx(&self) -> Setup {
        Setup::onnx(&self.bundle, &self.store())
    }
}

/// Ends the test unless the start failed so and said all of this.
fn refused(ended: Ended, code: i32, parts: &[&str]) {
    let told = ended.expect_code(code).stderr;
    for part in parts {
        assert!(told.contains(part), "{part:?} is not in: {told}");
    }
}

#[test]
fn a_missing_bundle_is_named() {
    let prepared = Prepared::new();
    let nowhere = prepared.folder.path().join("no-bundle");
    refused(Setup::canned(&nowhere, &prepared.store()).run(), 69, &["no-bundle", "manifest.json", "make build"]);
}

#[test]
fn a_changed_byte_and_a_missing_file_are_named() {
    let prepared = Prepared::new();
    for file in ["space/pq.safetensors", "generations/1/catalogue.parquet", "llm/reason/graph.onnx.data"] {
        let path = prepared.bundle.join(file);
        let whole = std::fs::read(&path).expect(file);
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).expect(file);
        refused(prepared.canned().run(), 69, &[file, "sha256"]);
        std::fs::write(&path, &whole[..whole.len() / 2]).expect(file);
        refused(prepared.canned().run(), 69, &[file, "bytes"]);
        std::fs::remove_file(&path).expect(file);
        refused(prepared.canned().run(), 69, &[file, "missing"]);
        std::fs::write(&path, whole).expect(file);
    }
    std::fs::write(prepared.bundle.join("manifest.json"), "{\"format_version\": 1").expect("manifest");
    refused(prepared.canned().run(), 69, &["manifest.json"]);
}

#[test]
fn bundle_check_says_the_same_as_serve() {
    let prepared = Prepared::new();
    let bundle = prepared.bundle.display().to_string();
    let told = output_of(&TAIJI, &["bundle", "check", "--bundle", &bundle, "--checksums-only"]);
    assert!(told.contains("intact"), "{told}");
    std::fs::remove_file(prepared.bundle.join("prompt.toml")).expect("remove");
    let ended = run_with(&TAIJI, &["bundle", "check", "--bundle", &bundle, "--checksums-only"], &[]);
    refused(ended, 69, &["prompt.toml", "missing"]);
}

#[test]
fn a_wrong_or_missing_onnx_runtime_is_named() {
    let prepared = Prepared::new();
    let text = prepared.folder.path().join("not-a-library.so");
    std::fs::write(&text, "not a library").expect("write");
    for path in [&text, &prepared.folder.path().join("nowhere.so")] {
        let shown = path.display().to_string();
        let ended = prepared.onnx().env("TAIJI__ENGINE__ONNXRUNTIME", &shown).run();
        refused(ended, 69, &[&shown, "ONNX Runtime", "make build"]);
    }
}

#[test]
fn a_port_in_use_names_its_setting() {
    let prepared = Prepared::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = taken.local_addr().expect("address").to_string();
    refused(prepared.canned().at(&address, &free_address()).run(), 69, &["server.listen", &address]);
    refused(prepared.canned().at(&free_address(), &address).run(), 69, &["server.admin_listen", &address]);
}

#[test]
fn an_unusable_data_folder_names_its_setting() {
    let prepared = Prepared::new();
    let file = prepared.folder.path().join("a-file");
    std::fs::write(&file, "").expect("write");
    for store in [file.as_path(), &file.join("below"), Path::new("/proc/taiji-test")] {
        let ended = Setup::canned(&prepared.bundle, store).run();
        refused(ended, 69, &["store.url", &store.display().to_string()]);
    }
}

#[test]
fn a_data_folder_has_one_process() {
    let prepared = Prepared::new();
    let first = prepared.canned().start();
    refused(prepared.canned().run(), 69, &["store.url"]);
    assert_eq!(first.get("/v1/users/u/features").status, 200);
}

#[test]
fn wrong_usage_and_wrong_settings_are_64_and_all_told_at_once() {
    let prepared = Prepared::new();
    refused(run_with(&TAIJI, &["serve", "--lisen", "x"], &[]), 64, &["--lisen"]);
    refused(run_with(&TAIJI, &["sing"], &[]), 64, &["sing"]);
    refused(run_with(&TAIJI, &[], &[]), 64, &["Usage"]);
    refused(run_with(&TAIJI, &["feed"], &[]), 64, &["--file"]);
    refused(run_with(&TAIJI, &["serve", "--engine", "magic"], &[]), 64, &["engine.kind"]);
    refused(run_with(&TAIJI, &["serve", "--listen", "here"], &[]), 64, &["server.listen"]);
    refused(run_with(&TAIJI, &["serve", "--store", "memcached://x"], &[]), 64, &["store.url"]);
    let file = prepared.folder.path().join("taiji.toml");
    let shown = file.display().to_string();
    refused(run_with(&TAIJI, &["serve", "--config", &shown], &[]), 64, &["taiji.toml"]);
    std::fs::write(&file, "[server\n").expect("write");
    refused(run_with(&TAIJI, &["check-config", "--config", &shown], &[]), 64, &["taiji.toml", "line 1"]);
    std::fs::write(&file, "[server]\nmax_users = \"many\"\nlisen = \"x\"\n[nosuch]\na = 1\n").expect("write");
    let environment = [("TAIJI__SERVER__MAX_EVENTS", "several"), ("TAIJI__SERVER__TYPO", "1")];
    for command in ["serve", "check-config"] {
        let ended = run_with(&TAIJI, &[command, "--config", &shown], &environment);
        let parts = ["server.max_users", "server.lisen", "nosuch", "TAIJI__SERVER__MAX_EVENTS", "TAIJI__SERVER__TYPO"];
        refused(ended, 64, &parts);
    }
    let ranges = [("TAIJI__SERVER__MAX_USERS", "0"), ("TAIJI__RETRIEVE__MIN_ITEM_USERS", "9")];
    refused(run_with(&TAIJI, &["check-config"], &ranges), 64, &["server.max_users", "retrieve.min_item_users"]);
    refused(run_with(&TAIJI, &["check-config"], &[("TAIJI__LOG__LEVEL", "a=b=c")]), 64, &["log.level"]);
}

#[test]
fn the_printed_defaults_load_again() {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("taiji.toml");
    std::fs::write(&file, output_of(&TAIJI, &["check-config", "--print-defaults"])).expect("write");
    let told = output_of(&TAIJI, &["check-config", "--config", &file.display().to_string()]);
    assert!(told.contains("valid"), "{told}");
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [&["serve"][..], &["feed"], &["bundle", "check"], &["check-config"]] {
        let arguments: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let help = output_of(&TAIJI, &arguments);
        assert!(help.contains("Example") && help.contains(&format!("taiji {}", command.join(" "))), "{help}");
    }
    for arguments in [&["--help"][..], &["bundle", "--help"], &["--version"]] {
        assert!(output_of(&TAIJI, arguments).contains("taiji"));
    }
}

#[test]
fn feed_says_what_it_cannot_do() {
    let folder = tempfile::tempdir().expect("tempdir");
    let nowhere = folder.path().join("nowhere.jsonl").display().to_string();
    refused(run_with(&TAIJI, &["feed", "--file", &nowhere], &[]), 69, &["nowhere.jsonl"]);
    refused(run_with(&TAIJI, &["feed", "--file", &nowhere, "--batch", "0"], &[]), 64, &["--batch"]);
}
