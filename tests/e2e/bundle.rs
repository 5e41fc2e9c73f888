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

struct Place {
    folder: TempDir,
    bundle: PathBuf,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        Place { folder, bundle }
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
    let place = Place::new();
    let outside = place.folder.path().join("outside.txt");
    std::fs::write(&outside, "text").expect("write");
    let absolute = outside.display().to_string();
    for path in ["../outside.txt", &absolute, "space/../../outside.txt", "./prompt.toml", "llm//reason/x", "a\\b", ""] {
        place.is_refused_with(OWN, |manifest| manifest["files"][path] = entry(&outside), &[path, "leaves the folder"]);
        place.is_refused_with(
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
        place.is_refused_with(OWN, |manifest| manifest["external"]["x"] = external("../../x"), &["../../x"]);
    }
}

#[test]
fn audit_17_a_link_may_be_the_folder_but_not_lead_out_of_it() {
    let place = Place::new();
    let linked = place.folder.path().join("linked");
    symlink(&place.bundle, &linked).expect("link");
    let through = Place { bundle: linked.clone(), folder: tempfile::tempdir().expect("tempdir") };
    through.check().expect_code(0);
    let server = Setup::canned(&linked, &place.folder.path().join("store")).start();
    assert_eq!(server.get("/v1/users/u/features").status, 200);
    drop(server);

    let outside = place.folder.path().join("outside");
    std::fs::create_dir(&outside).expect("folder");
    for file in
        ["prompt.toml", "llm/reason/graph.onnx", "generations/1/users.faiss", "llm", "generations/1", GENERATION]
    {
        let (path, moved) = (place.bundle.join(file), outside.join("moved"));
        std::fs::rename(&path, &moved).expect("move");
        // The same bytes, but elsewhere: who can write there changes the bundle.
        symlink(&moved, &path).expect("link");
        place.is_refused(&[file, "a link leads out"]);
        std::fs::remove_file(&path).expect("remove");
        // A link that stays inside is fine.
        let inside = place.bundle.join(".kept");
        std::fs::rename(&moved, &inside).expect("move");
        symlink(&inside, &path).expect("link");
        place.check().expect_code(0);
        std::fs::remove_file(&path).expect("remove");
        std::fs::rename(&inside, &path).expect("move");
    }
    place.check().expect_code(0);
}

#[test]
fn audit_17_a_file_that_differs_or_is_on_no_list_is_refused_by_name() {
    let place = Place::new();
    for file in ["prompt.toml", "llm/reason/tokenizer.json", "generations/1/users.parquet"] {
        let path = place.bundle.join(file);
        let whole = std::fs::read(&path).expect("read");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&path, flipped).expect("write");
        place.is_refused(&[file, "sha256"]);
        std::fs::write(&path, whole).expect("write");
        let (manifest, key) = match file.strip_prefix("generations/1/") {
            Some(inner) => (GENERATION, inner),
            None => (OWN, file),
        };
        let unlist = |manifest: &mut Value| drop(manifest["files"].as_object_mut().expect("files").shift_remove(key));
        place.is_refused_with(manifest, unlist, &[file, "on no list"]);
    }
    // What a model folder holds beside what is listed would be opened, too: a chat template, say.
    let extra = place.bundle.join("llm/reason/chat_template.jinja");
    std::fs::write(&extra, "{{ messages }}").expect("write");
    place.is_refused(&["llm/reason/chat_template.jinja", "on no list"]);
    let told = Setup::canned(&place.bundle, &place.folder.path().join("store")).run().expect_code(69).stderr;
    assert!(told.contains("llm/reason/chat_template.jinja"), "{told}");
    std::fs::remove_file(extra).expect("remove");
    // What nobody opens may lie about.
    std::fs::write(place.bundle.join("NOTES.txt"), "mine").expect("write");
    place.check().expect_code(0);
}

#[test]
fn audit_17_a_generation_has_a_manifest_of_its_own() {
    let place = Place::new();
    let listed = place.read(OWN)["files"].as_object().expect("files").clone();
    assert!(!listed.is_empty() && listed.keys().all(|file| !file.starts_with("generations/")));
    let own = place.read(GENERATION);
    let files: Vec<&String> = own["files"].as_object().expect("files").keys().collect();
    assert_eq!(files, ["catalogue.parquet", "users.faiss", "users.parquet"]);

    place.is_refused_with(GENERATION, |manifest| manifest["generation"] = 2.into(), &[GENERATION, "generation 2"]);
    place.is_refused_with(GENERATION, |manifest| manifest["space"] = "other".into(), &[GENERATION, "space other"]);
    place.is_refused_with(GENERATION, |manifest| manifest["format_version"] = 9.into(), &[GENERATION, "format 9"]);
    place.is_refused_with(OWN, |manifest| manifest["format_version"] = 9.into(), &[OWN, "format 9"]);
    let twice = "generations/1/users.parquet";
    let catalogue = entry(&place.bundle.join(twice));
    place.is_refused_with(OWN, |manifest| manifest["files"][twice] = catalogue.clone(), &[twice, "its generation"]);
    // A later program's field is borne.
    let mut newer = place.read(OWN);
    newer["colour"] = "blue".into();
    place.write(OWN, &newer);
    place.check().expect_code(0);
    std::fs::remove_file(place.bundle.join(GENERATION)).expect("remove");
    place.is_refused(&[GENERATION, "missing"]);
}

/// The manifest as the program before wrote it.
fn as_format_1(place: &Place) -> Value {
    let (mut manifest, generation) = (place.read(OWN), place.read(GENERATION));
    manifest["format_version"] = 1.into();
    for (file, entry) in generation["files"].as_object().expect("files") {
        manifest["files"][format!("generations/1/{file}")] = entry.clone();
    }
    manifest
}

#[test]
fn audit_17_format_1_still_loads_and_is_rewritten() {
    let place = Place::new();
    let (own, generation) = (place.read(OWN), place.read(GENERATION));
    place.write(OWN, &as_format_1(&place));
    std::fs::remove_file(place.bundle.join(GENERATION)).expect("remove");
    place.check().expect_code(0);
    let server = Setup::canned(&place.bundle, &place.folder.path().join("store")).start();
    assert_eq!(server.get("/v1/users/u/features").status, 200);
    drop(server);
    // Its generation's files are checked as before.
    let users = place.bundle.join("generations/1/users.parquet");
    let whole = std::fs::read(&users).expect("read");
    std::fs::write(&users, "no users").expect("write");
    place.is_refused(&["generations/1/users.parquet", "bytes"]);
    let told = place.call(&["rewrite"]).expect_code(69).stderr;
    assert!(told.contains("generations/1/users.parquet"), "{told}");
    std::fs::write(&users, whole).expect("write");

    let told = place.call(&["rewrite"]).expect_code(0).stdout;
    assert!(told.contains("format 2 now"), "{told}");
    assert_eq!((place.read(OWN), place.read(GENERATION)), (own, generation));
    place.check().expect_code(0);
    let told = place.call(&["rewrite"]).expect_code(0).stdout;
    assert!(told.contains("already"), "{told}");
}
