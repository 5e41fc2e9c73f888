//! A whole recipe, tiny: data, tokenizer, SFT, export, codebook, index, evaluation, bundle. Twice, to the same bytes.

use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::{TAIJI, TRAINER, in_repository};

/// The demo recipe with everything made small; the encoder is the real one.
fn tiny_recipe(folder: &Path) -> PathBuf {
    let demo = std::fs::read_to_string(in_repository("models/demo.toml")).unwrap();
    let mut recipe: toml::Table = demo.parse().unwrap();
    let mut set = |section: &str, pairs: &[(&str, i64)]| {
        let table = match section {
            "" => &mut recipe,
            name => recipe.get_mut(name).unwrap().as_table_mut().unwrap(),
        };
        for (key, value) in pairs {
            table.insert(key.to_string(), toml::Value::Integer(*value));
        }
    };
    set("", &[("codebook_texts", 300)]);
    set("data", &[("users", 60), ("items", 250), ("events", 4000)]);
    set("sft", &[("d_model", 32), ("heads", 2), ("kv_heads", 1), ("layers", 1), ("ffn", 64), ("vocab", 512)]);
    set("sft", &[("max_steps", 6), ("validation_examples", 8), ("max_len", 640)]);
    set("prompt", &[("max_prompt_tokens", 600), ("max_new_tokens", 24)]);
    set("codebook", &[("k", 16)]);
    set("index", &[("users", 24)]);
    set("evaluate", &[("users", 8)]);
    recipe["name"] = toml::Value::String("tiny".into());
    recipe["index"]["factory"] = toml::Value::String("Flat".into());
    let path = folder.join("tiny.toml");
    std::fs::write(&path, toml::to_string(&recipe).unwrap()).unwrap();
    path
}

fn run(recipe: &Path, folder: &Path) -> PathBuf {
    let output = Command::new(&*TRAINER)
        .args(["run", "--recipe"])
        .arg(recipe)
        .arg("--out")
        .arg(folder.join("models"))
        .arg("--work")
        .arg(folder.join("work"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("models/tiny/1")
}

/// The encoder's package, unpacked where the trainer looks; there already after `make build`.
fn ensure_encoder_checkpoint() {
    let fetched = Command::new(&*TRAINER)
        .args(["fetch", "--recipe", "models/demo.toml"])
        .current_dir(in_repository(""))
        .output()
        .unwrap();
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
}

#[test]
fn a_recipe_makes_the_same_loadable_bundle_twice_and_resumes_what_is_done() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = tiny_recipe(folder.path());
    let first = run(&recipe, &folder.path().join("a"));
    let second = run(&recipe, &folder.path().join("b"));
    let manifest = |bundle: &Path| std::fs::read_to_string(bundle.join("manifest.json")).unwrap();
    assert_eq!(manifest(&first), manifest(&second), "every file has the same checksum");

    let check = Command::new(&*TAIJI).args(["bundle", "check", "--bundle"]).arg(&first).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    assert!(String::from_utf8_lossy(&check.stdout).contains("parity gate passed"));

    // Run again in the same folder: every stage is done, the bundle is published anew and the same.
    let again = run(&recipe, &folder.path().join("a"));
    assert_eq!(manifest(&again), manifest(&second));
}
