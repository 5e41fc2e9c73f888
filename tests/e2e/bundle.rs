//! What a bundle's folder may hold, and its two formats.

use crate::worlds::data_plane_bundle;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use taiji::bundle::sha256_file;
use tempfile::TempDir;
use testkit::TAIJI;
use testkit::process::{Ended, Setup, run_with};

const OWN: &str = "manifest.json";
const GENERATION: &str = "generations/1/manifest.json";

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

    fn call(&self, arguments: &[&str]) -> Ended {
        let bundle = self.bundle.display().to_string();
        run_with(&TAIJI, &[&["bundle"], arguments, &["--bundle", &bundle]].concat(), &[])
    }

    fn check(&self) -> Ended {
        self.call(&["check", "--checksums-only"])
    }

    fn is_refused(&self, parts: &[&str]) {
        let told = self.check().expect_code(69).stderr;
        parts.iter().for_each(|part| assert!(told.contains(part), "{part:?} is not in: {told}"));
    }

    fn read(&self, manifest: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.bundle.join(manifest)).expect("read")).expect("json")
    }

    fn write(&self, manifest: &str, value: &Value) {
        std::fs::write(self.bundle.join(manifest), value.to_string()).expect("write");
    }

    /// Refused while a manifest is changed; accepted again after that.
    fn is_refused_with(&self, manifest: &str, change: impl Fn(&mut Value), parts: &[&str]) {
        let whole = self.read(manifest);
        let mut changed = whole.clone();
        change(&mut changed);
        self.write(manifest, &changed);
        self.is_refused(parts);
        self.write(manifest, &whole);
        self.check().expect_code(0);
    }
}

fn entry(path: &Path) -> Value {
    json!({ "sha256": sha256_file(path).expect("sha256"), "bytes": path.metadata().expect("metadata").len() })
}

#[test]
fn audit_17_a_path_that_leaves_the_folder_is_refused() {
    let prepared = Prepared::new();
    let outside = prepared.folder.path().join("outside.txt");
    std::fs::write(&outside, "text").expect("write");
    let absolute = outside.display().to_string();
    for path in ["../outside.txt", &absolute, "space/../../outside.txt", "./prompt.toml", "llm//reason/x", "a\\b", ""] {
        prepared.is_refused_with(
            OWN,
            |manifest| manifest["files"][path] = entry(&outside),
            &[path, "leaves the folder"],
        );
        prepared.is_refused_with(
            GENERATION,
            |manifest| manifest["files"][path] = entry(&outside),
            &[path, "leaves the folder"],
        );
    }
    for key in ["target", "checkpoint"] {
        let external = |path: &str| {
            let mut external =
                json!({ "package": "p", "version": "1", "sha256": "0", "checkpoint": "c", "target": "t" });
            external[key] = path.into();
            external
        };
        prepared.is_refused_with(OWN, |manifest| manifest["external"]["x"] = external("../../x"), &["../../x"]);
    }
}

#[test]
fn audit_17_a_link_may_be_the_folder_but_not_lead_out_of_it() {
    let prepared = Prepared::new();
    let linked = prepared.folder.path().join("linked");
    symlink(&prepared.bundle, &linked).expect("link");
    let through = Prepared { bundle: linked.clone(), folder: tempfile::tempdir().expect("tempdir") };
    through.check().expect_code(0);
    let server = Setup::canned(&linked, &prepared.folder.path().join("store")).start();
    assert_eq!(server.get("/v1/users/u/features").status, 200);
    drop(server);

    let outside = prepared.folder.path().join("outside");
    std::fs::create_dir(&outside).expect("folder");
    for file in
        ["prompt.toml", "llm/reason/graph.onnx", "generations/1/users.faiss", "llm", "generations/1", GENERATION]
    {
        let (path, moved) = (prepared.bundle.join(file), outside.join("moved"));
        std::fs::rename(&path, &moved).expect("move");
        // The same bytes, but elsewhere: who can write there changes the bundle.
        symlink(&moved, &path).expect("link");
        prepared.is_refused(&[file, "a link leads out"]);
        std::fs::remove_file(&path).expect("remove");
        // A link that stays inside is fine.
        let inside = prepared.bundle.join(".kept");
        std::fs::rename(&moved, &inside).expect("move");
        symlink(&inside, &path).expect("link");
        prepared.check().expect_code(0);
        std::fs::remove_file(&path).expect("remove");
        std::fs::rename(&inside, &path).expect("move");
    }
    prepared.check().expect_code(0);
}

#[test]
fn audit_17_a_file_that_differs_or_is_on_no_list_is_refused_by_name() {
    let prepared = Prepared::new();
    for file in ["prompt.toml", "llm/reason/tokenizer.json", "generations/1/users.parquet"] {
        let path = prepared.bundle.join(file);
        let whole = std::fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).expect("write");
        prepared.is_refused(&[file, "sha256"]);
        std::fs::write(&path, whole).expect("write");
        let (manifest, key) = match file.strip_prefix("generations/1/") {
            Some(inner) => (GENERATION, inner),
            None => (OWN, file),
        };
        let unlist = |manifest: &mut Value| drop(manifest["files"].as_object_mut().expect("files").shift_remove(key));
        prepared.is_refused_with(manifest, unlist, &[file, "on no list"]);
    }
    // What a model folder holds beside what is listed would be opened, too: a chat template, say.
    let extra = prepared.bundle.join("llm/reason/chat_template.jinja");
    std::fs::write(&extra, "{{ messages }}").expect("write");
    prepared.is_refused(&["llm/reason/chat_template.jinja", "on no list"]);
    let told = Setup::canned(&prepared.bundle, &prepared.folder.path().join("store")).run().expect_code(69).stderr;
    assert!(told.contains("llm/reason/chat_template.jinja"), "{told}");
    std::fs::remove_file(extra).expect("remove");
    // What nobody opens may lie about.
    std::fs::write(prepared.bundle.join("NOTES.txt"), "mine").expect("write");
    prepared.check().expect_code(0);
}

#[test]
fn audit_17_a_generation_has_a_manifest_of_its_own() {
    let prepared = Prepared::new();
    let listed = prepared.read(OWN)["files"].as_object().expect("files").clone();
    assert!(!listed.is_empty() && listed.keys().all(|file| !file.starts_with("generations/")));
    let own = prepared.read(GENERATION);
    let files: Vec<&String> = own["files"].as_object().expect("files").keys().collect();
    assert_eq!(files, ["catalogue.parquet", "users.faiss", "users.parquet"]);

    prepared.is_refused_with(GENERATION, |manifest| manifest["generation"] = 2.into(), &[GENERATION, "generation 2"]);
    prepared.is_refused_with(GENERATION, |manifest| manifest["space"] = "other".into(), &[GENERATION, "space other"]);
    prepared.is_refused_with(GENERATION, |manifest| manifest["format_version"] = 9.into(), &[GENERATION, "format 9"]);
    prepared.is_refused_with(OWN, |manifest| manifest["format_version"] = 9.into(), &[OWN, "format 9"]);
    let twice = "generations/1/users.parquet";
    let catalogue = entry(&prepared.bundle.join(twice));
    prepared.is_refused_with(OWN, |manifest| manifest["files"][twice] = catalogue.clone(), &[twice, "its generation"]);
    // A later program's field is borne.
    let mut newer = prepared.read(OWN);
    newer["colour"] = "blue".into();
    prepared.write(OWN, &newer);
    prepared.check().expect_code(0);
    std::fs::remove_file(prepared.bundle.join(GENERATION)).expect("remove");
    prepared.is_refused(&[GENERATION, "missing"]);
}

/// The manifest as the program before wrote it.
fn as_format_1(prepared: &Prepared) -> Value {
    let (mut manifest, generation) = (prepared.read(OWN), prepared.read(GENERATION));
    manifest["format_version"] = 1.into();
    for (file, entry) in generation["files"].as_object().expect("files") {
        manifest["files"][format!("generations/1/{file}")] = entry.clone();
    }
    manifest
}

#[test]
fn audit_17_format_1_still_loads_and_is_rewritten() {
    let prepared = Prepared::new();
    let (own, generation) = (prepared.read(OWN), prepared.read(GENERATION));
    prepared.write(OWN, &as_format_1(&prepared));
    std::fs::remove_file(prepared.bundle.join(GENERATION)).expect("remove");
    prepared.check().expect_code(0);
    let server = Setup::canned(&prepared.bundle, &prepared.folder.path().join("store")).start();
    assert_eq!(server.get("/v1/users/u/features").status, 200);
    drop(server);
    // Its generation's files are checked as before.
    let users = prepared.bundle.join("generations/1/users.parquet");
    let whole = std::fs::read(&users).expect("read");
    std::fs::write(&users, "no users").expect("write");
    prepared.is_refused(&["generations/1/users.parquet", "bytes"]);
    let told = prepared.call(&["rewrite"]).expect_code(69).stderr;
    assert!(told.contains("generations/1/users.parquet"), "{told}");
    std::fs::write(&users, whole).expect("write");

    let told = prepared.call(&["rewrite"]).expect_code(0).stdout;
    assert!(told.contains("format 2 now"), "{told}");
    assert_eq!((prepared.read(OWN), prepared.read(GENERATION)), (own, generation));
    prepared.check().expect_code(0);
    let told = prepared.call(&["rewrite"]).expect_code(0).stdout;
    assert!(told.contains("already"), "{told}");
}
