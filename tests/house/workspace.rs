//! What the members of the workspace share, and what only one of them has.

use crate::source::{find_files, sources};
use std::path::PathBuf;
use std::process::Command;
use testkit::in_repository;
use toml::Table;

fn manifests() -> Vec<(PathBuf, Table)> {
    let members = find_files(&in_repository("crates"), &["Cargo.toml"]);
    let all = members.into_iter().chain(["Cargo.toml", "loadtest/Cargo.toml"].map(in_repository));
    all.map(|path| {
        let text = std::fs::read_to_string(&path).expect("manifest");
        let table = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, table)
    })
    .collect()
}

#[test]
fn audit_14_the_service_compiles_no_candle() {
    let arguments = "tree -p taiji -e normal,build --prefix none --locked --offline --no-dedupe";
    let output = Command::new(env!("CARGO")).args(arguments.split(' ')).current_dir(in_repository("")).output();
    let output = output.expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("utf-8");
    let mut crates: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    crates.sort_unstable();
    crates.dedup();
    println!("audit 14: the service is made of {} crates", crates.len());
    let foreign: Vec<&&str> =
        crates.iter().filter(|name| name.starts_with("candle") || name.starts_with("gemm")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert!(crates.contains(&"taiji") && crates.contains(&"taiji-export") && crates.len() > 100);
    assert!(!crates.contains(&"taiji-trainer") && !crates.contains(&"taiji-testkit"));
}

#[test]
fn audit_14_members_inherit_lints_and_version() {
    let manifests = manifests();
    assert_eq!(manifests.len(), 5);
    for (path, manifest) in &manifests {
        let inherits = |table: &str, key: Option<&str>| {
            let table = &manifest[table];
            key.map_or(table, |key| &table[key]).get("workspace").and_then(toml::Value::as_bool) == Some(true)
        };
        // Without this line `unsafe` is allowed again.
        assert!(inherits("lints", None), "{}: [lints] workspace = true", path.display());
        for key in ["version", "edition", "rust-version", "license"] {
            assert!(inherits("package", Some(key)), "{}: {key}.workspace = true", path.display());
        }
    }
}

#[test]
fn audit_14_only_the_trainer_uses_candle_and_the_rigs_use_none_of_ours() {
    for (path, manifest) in manifests() {
        let of = |kind: &str| -> Vec<String> {
            manifest
                .get(kind)
                .and_then(toml::Value::as_table)
                .map(|table| table.keys().cloned().collect())
                .unwrap_or_default()
        };
        let uses = of("dependencies");
        let name = manifest["package"]["name"].as_str().expect("name");
        let candle = uses.iter().any(|used| used.starts_with("candle"));
        assert_eq!(candle, name == "taiji-trainer", "{}", path.display());
        let ours: Vec<&String> = uses.iter().filter(|used| used.starts_with("taiji")).collect();
        let wanted: &[&str] = match name {
            "taiji" => &["taiji-export"],
            "taiji-trainer" => &["taiji", "taiji-export"],
            // It measures programs from outside, on the rigs of the tests.
            "taiji-loadtest" => &["taiji-testkit"],
            _ => &[],
        };
        assert_eq!(ours, wanted, "{}", path.display());
    }
}

#[test]
fn audit_14_no_source_is_included_by_path() {
    let attribute = concat!("#[", "path");
    for folder in ["src", "crates", "loadtest", "tests", "benches", "fuzz"] {
        for file in find_files(&in_repository(folder), &[".rs"]) {
            let text = std::fs::read_to_string(&file).expect("source");
            assert!(!text.contains(attribute), "{}", file.display());
        }
    }
}

/// `-p` and no choice at all build other features of shared crates, and another program than the tests judge.
#[test]
fn audit_14_every_command_builds_the_whole_workspace() {
    let mut files = find_files(&in_repository("scripts"), &[".sh", ".py"]);
    files.extend([in_repository("Makefile"), in_repository(".ci/run")]);
    let mut commands = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).expect("script");
        for (place, line) in text.lines().enumerate() {
            let line = line.replace("\", \"", " ");
            let is_command = ["cargo build", "cargo test", "cargo clippy"].iter().any(|command| line.contains(command));
            if !is_command || line.trim_start().starts_with('#') {
                continue;
            }
            commands += 1;
            let shown = format!("{}:{}: {line}", file.display(), place + 1);
            assert!(line.contains("--workspace") && !line.contains(" -p "), "{shown}");
        }
    }
    assert!(commands >= 6, "only {commands} commands found");
}

#[test]
fn audit_14_names_of_graph_inputs_stand_in_one_file() {
    let names = sources(&in_repository("crates/export/src")).into_iter().find(|file| file.path.ends_with("names.rs"));
    let text = names.expect("names.rs").lines.join("\n");
    let literals: Vec<&str> = text.split('"').skip(1).step_by(2).filter(|name| name.contains('_')).collect();
    assert!(literals.len() >= 10, "{literals:?}");
    for folder in ["src", "crates/export/src", "crates/trainer/src"] {
        for source in sources(&in_repository(folder)) {
            if source.path.ends_with("names.rs") {
                continue;
            }
            for (place, line) in source.lines.iter().enumerate() {
                // Hugging Face's config.json has a key of that name, too.
                let is_setting = line.contains("set(\"attention_bias\"");
                let again = literals.iter().find(|name| line.contains(&format!("\"{name}\"")) && !is_setting);
                assert_eq!(again, None, "{folder}/{}:{}", source.path.display(), place + 1);
            }
        }
    }
}
