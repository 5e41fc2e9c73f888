//! A whole recipe, tiny: data, tokenizer, SFT, export, codebook, index, evaluation, bundle. Twice, killed, in arms, beside itself.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use taiji::bundle::{self, LoadOptions};
use testkit::process::{Ended, command, output_of, run_with};
use testkit::{TRAINER, in_repository};

/// The demo recipe with everything made small; the encoder is the real one.
pub(crate) fn tiny() -> toml::Table {
    let demo = std::fs::read_to_string(in_repository("models/demo.toml")).unwrap();
    let mut recipe: toml::Table = demo.parse().unwrap();
    recipe["name"] = "tiny".into();
    for (stage, settings) in [
        ("world", "users = 60"),
        ("held-out", "users = 8"),
        ("examples", "vocab = 512\ncodebook_texts = 300\nvalidation_examples = 8"),
        ("sft", "d_model = 32\nheads = 2\nkv_heads = 1\nlayers = 1\nffn = 64\nmax_steps = 6\nmax_len = 640"),
        ("codebook", "k = 16"),
        ("index", "users = 24\nfactory = \"Flat\""),
    ] {
        set(&mut recipe, stage, settings);
    }
    let prompt = stage(&mut recipe, "examples")["prompt"].as_table_mut().unwrap();
    prompt.insert("max_prompt_tokens".into(), 600.into());
    prompt.insert("max_new_tokens".into(), 24.into());
    recipe
}

pub(crate) fn stage<'a>(recipe: &'a mut toml::Table, name: &str) -> &'a mut toml::Table {
    let stages = recipe["stage"].as_array_mut().unwrap().iter_mut();
    let mut tables = stages.filter_map(toml::Value::as_table_mut);
    tables.find(|stage| stage["name"].as_str() == Some(name)).unwrap()
}

/// The tables of rows that were made small: by the experiment's own declaration, but for how many users it judges.
pub(crate) fn tables_of(folder: &Path, experiment: &str, users: i64, rows: &Path) -> String {
    let declared = std::fs::read_to_string(in_repository(&format!("docs/experiments/{experiment}.toml"))).unwrap();
    let mut declared: toml::Table = declared.parse().unwrap();
    declared.insert("users".into(), users.into());
    let path = folder.join("declared").join(format!("{experiment}.toml"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, toml::to_string(&declared).unwrap()).unwrap();
    output_of(&TRAINER, &["contrasts", path.to_str().unwrap(), "--rows", rows.to_str().unwrap()])
}

pub(crate) fn set(recipe: &mut toml::Table, name: &str, settings: &str) {
    let settings: toml::Table = settings.parse().unwrap();
    stage(recipe, name).extend(settings);
}

pub(crate) fn write(folder: &Path, recipe: &toml::Table) -> PathBuf {
    let path = folder.join("tiny.toml");
    std::fs::write(&path, toml::to_string(recipe).unwrap()).unwrap();
    path
}

/// Arguments of a run in a folder.
pub(crate) fn arguments(recipe: &Path, folder: &Path, more: &[&str]) -> Vec<String> {
    let shown = |path: PathBuf| path.display().to_string();
    let (out, work) = (shown(folder.join("models")), shown(folder.join("work")));
    let own = ["run", "--recipe", &shown(recipe.to_path_buf()), "--out", &out, "--work", &work].map(str::to_string);
    own.into_iter().chain(more.iter().map(|word| word.to_string())).collect()
}

pub(crate) fn run_in(recipe: &Path, folder: &Path, more: &[&str]) -> Ended {
    let arguments = arguments(recipe, folder, more);
    run_with(&TRAINER, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[])
}

fn made(recipe: &Path, folder: &Path) -> PathBuf {
    run_in(recipe, folder, &[]).expect_code(0);
    folder.join("models/tiny/1")
}

pub(crate) fn manifest(bundle: &Path) -> String {
    std::fs::read_to_string(bundle.join("manifest.json")).unwrap()
}

/// Everything `serve` checks: checksums, the parity gate, a real step.
pub(crate) fn check(bundle: &Path) {
    bundle::load(bundle, &LoadOptions::default()).unwrap();
}

/// The encoder's package, unpacked where the trainer looks; there already after `make build`.
pub(crate) fn ensure_encoder_checkpoint() {
    let demo = in_repository("models/demo.toml").display().to_string();
    let fetched = Command::new(&*TRAINER).args(["fetch", "--recipe", &demo]).output().unwrap();
    assert!(fetched.status.success(), "{}", String::from_utf8_lossy(&fetched.stderr));
}

#[test]
fn a_recipe_makes_the_same_loadable_bundle_twice_and_resumes_what_is_done() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = write(folder.path(), &tiny());
    let first = made(&recipe, &folder.path().join("a"));
    let second = folder.path().join("b/models/tiny/1");
    run_in(&recipe, &folder.path().join("b"), &["--jobs", "2"]).expect_code(0);
    assert_eq!(manifest(&first), manifest(&second), "every file has the same checksum, with one thread a stage, too");
    check(&first);
    let report = std::fs::read_to_string(first.with_extension("html")).unwrap();
    for part in [">Stages<", ">Training<", "grad_norm", ">Judged<", "first category accuracy", ">Samples<", "made now"]
    {
        assert!(report.contains(part), "{part}");
    }
    let page = folder.path().join("a/work/reports/tiny.html");
    assert_eq!(std::fs::read_to_string(&page).unwrap(), report);

    // Run again in the same folder: every stage is done, and a bundle that lost a file is put in its place anew.
    std::fs::remove_file(first.join("prompt.toml")).unwrap();
    let told = run_in(&recipe, &folder.path().join("a"), &[]).expect_code(0);
    assert!(!told.stderr.contains("running"), "{}", told.stderr);
    assert!(told.stdout.contains(&format!("made: {}", page.display())), "{}", told.stdout);
    assert!(std::fs::read_to_string(&page).unwrap().contains("done before"));
    assert_eq!(manifest(&first), manifest(&second));
    check(&first);
    let plan = ["plan", "--recipe", &recipe.display().to_string(), "--work"].map(str::to_string);
    let work = folder.path().join("a/work").display().to_string();
    let planned = run_with(&TRAINER, &[&plan[0], &plan[1], &plan[2], &plan[3], &work], &[]).expect_code(0).stdout;
    assert_eq!((planned.lines().count(), planned.matches("done").count()), (10, 10), "{planned}");
}

/// Runs until something is to be seen in the folder, then kills at once; whether it came to that before the run's end.
fn killed_when(recipe: &Path, folder: &Path, seen: &dyn Fn() -> bool) -> bool {
    let arguments = arguments(recipe, folder, &[]);
    let mut command = command(&TRAINER, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    loop {
        if seen() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether an unfinished stage of a kind is there, with something of this name in it.
fn has_partial(work: &Path, kind: &str, inside: &str) -> bool {
    let entries = std::fs::read_dir(work).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut partial = names.filter(|name| name.starts_with(&format!("{kind}-")) && name.ends_with(".partial"));
    partial.any(|name| work.join(name).join(inside).exists())
}

#[test]
fn a_run_that_is_killed_in_any_stage_goes_on_to_the_same_bytes() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    set(&mut recipe, "sft", "max_steps = 60\nepochs = 20\ncheckpoint_every = 5");
    let recipe = write(folder.path(), &recipe);
    let whole = manifest(&made(&recipe, &folder.path().join("whole")));
    let at = folder.path().join("killed");
    let (work, models) = (at.join("work"), at.join("models/tiny"));
    let mut kills = Vec::new();
    for (kind, inside) in [
        ("synth", "items.jsonl"),
        ("examples", "train.jsonl"),
        ("sft", ""),
        ("sft", "resume/step-5"),
        ("sft", "resume/step-40"),
        ("export", ""),
        ("encoder", "model"),
        ("codebook", ""),
        ("index", "catalogue.parquet"),
        ("judge", ""),
        ("publish", "encoder"),
        ("publish", "report.json"),
    ] {
        if killed_when(&recipe, &at, &|| has_partial(&work, kind, inside)) {
            kills.push(format!("{kind}/{inside}"));
        }
        assert!(!models.join("1").exists() || manifest(&models.join("1")) == whole, "half a bundle after {kind}");
    }
    if killed_when(&recipe, &at, &|| models.join(".1.new").exists()) {
        kills.push("publishing".into());
    }
    println!("killed in {kills:?}");
    assert!(kills.len() >= 8, "too few kills came in time to say anything: {kills:?}");
    assert_eq!(manifest(&made(&recipe, &at)), whole);
    check(&models.join("1"));
    let beside: Vec<_> = std::fs::read_dir(&models).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside.len(), 2, "nothing of the killed runs is left beside the bundle and its report: {beside:?}");
}

#[test]
fn two_runs_on_one_work_folder_share_the_work_when_they_wait() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = write(folder.path(), &tiny());
    let ends: Vec<Ended> = std::thread::scope(|scope| {
        let start = || scope.spawn(|| run_in(&recipe, folder.path(), &["--wait"]));
        [start(), start()].map(|run| run.join().unwrap()).into()
    });
    let told: Vec<String> = ends.into_iter().map(|end| end.expect_code(0).stderr).collect();
    let runs = |stage: &str| told.iter().filter(|told| told.contains(&format!("{stage}: running"))).count();
    for stage in ["world", "held-out", "examples", "sft", "llm", "encoder", "codebook", "index", "judge", "bundle"] {
        assert_eq!(runs(stage), 1, "{stage}: {told:?}");
    }
    check(&folder.path().join("models/tiny/1"));
}

#[test]
fn arms_and_seeds_make_rows_that_a_fresh_clone_does_not_make_again() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    let experiment: toml::Table =
        "[experiment]\nname = \"trial\"\nseeds = [1, 2]\nseeded = [\"sft\"]\nresult = \"judge\"\n\
        [arms.base]\n[arms.wide.sft]\nffn = 96"
            .parse()
            .unwrap();
    recipe.extend(experiment);
    let recipe = write(folder.path(), &recipe);
    let rows = |name: &str| folder.path().join(name);
    let run = |at: &str, to: &Path, more: &[&str]| {
        let to = to.display().to_string();
        run_in(&recipe, &folder.path().join(at), &[&["--rows", &to], more].concat()).expect_code(0).stderr
    };
    let told = run("a", &rows("one"), &["--jobs", "2"]);
    for (part, times) in [("world: running", 1), ("codebook: running", 1), ("sft: running", 4), ("judge: running", 4)] {
        assert_eq!(told.matches(part).count(), times, "{part}: {told}");
    }
    // A row but for how long its stages took, which is said of each of them.
    let read = |folder: &Path, name: &str| -> Value {
        let mut row: Value = serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap();
        let seconds = row.as_object_mut().unwrap().remove("seconds").unwrap();
        let named = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(named(&seconds), named(&row["stages"]), "{row}");
        row
    };
    run("b", &rows("two"), &[]);
    for name in ["base-1.json", "base-2.json", "wide-1.json", "wide-2.json"] {
        let row = read(&rows("one"), name);
        assert_eq!(row, read(&rows("two"), name), "two arms side by side make what one after the other makes");
        assert_eq!(row["result"]["users"], 8, "{row}");
        assert_eq!(row["stages"].as_object().unwrap().len(), 9, "{row}");
    }
    let models: Vec<_> =
        std::fs::read_dir(folder.path().join("a/models")).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(
        models.len() == 1 && models[0].file_name() == "tiny.html",
        "an experiment publishes no bundle, but a report"
    );
    let report = std::fs::read_to_string(models[0].path()).unwrap();
    assert!(report.contains("base-1/sft") && report.contains("wide-2/judge"));

    // A fresh clone has the rows and nothing else.
    let told = run("fresh", &rows("one"), &[]);
    assert!(!told.contains("running") && told.matches("its row is there").count() == 4, "{told}");
    assert!(std::fs::read_dir(folder.path().join("fresh/work")).is_err(), "nothing was made");
    std::fs::remove_file(rows("one").join("wide-2.json")).unwrap();
    let told = run("a", &rows("one"), &[]);
    assert!(!told.contains("running") && told.matches("its row is there").count() == 3, "{told}");
    assert_eq!(read(&rows("one"), "wide-2.json"), read(&rows("two"), "wide-2.json"));
}

/// The folder of a stage of this kind.
fn stage_folder(folder: &Path, kind: &str) -> PathBuf {
    let entries = std::fs::read_dir(folder.join("work")).unwrap().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.find(|path| path.file_name().unwrap().to_string_lossy().starts_with(kind)).unwrap()
}

#[test]
fn a_bundle_keeps_what_was_trained_and_gives_back_what_it_serves() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = write(folder.path(), &tiny());
    let bundle = made(&recipe, folder.path());
    let trained = std::fs::read(stage_folder(folder.path(), "sft-").join("model.safetensors")).unwrap();

    // What it serves, out of its graph: the trainer's own bytes.
    let out = folder.path().join("served");
    let shown = |path: &Path| path.display().to_string();
    let told = run_with(&TRAINER, &["convert", "bundle", &shown(&bundle), "--out", &shown(&out)], &[]).expect_code(0);
    assert!(told.stdout.contains("Qwen2ForCausalLM: 1 layers"), "{}", told.stdout);
    assert!(std::fs::read(out.join("model.safetensors")).unwrap() == trained);
    let told = run_with(&TRAINER, &["convert", "bundle", &shown(&out), "--out", &shown(&out)], &[]).expect_code(69);
    assert!(told.stderr.contains("manifest.json is missing"), "{}", told.stderr);

    // What was trained, in half the bytes, listed with its checksum.
    let kept = bundle.join("checkpoints/sft");
    let listed: Value = serde_json::from_str(&manifest(&bundle)).unwrap();
    let entry = &listed["files"]["checkpoints/sft/model.safetensors"];
    let weights = kept.join("model.safetensors");
    assert_eq!(entry["sha256"], bundle::sha256_file(&weights).unwrap());
    assert!(entry["bytes"].as_u64().unwrap() < trained.len() as u64 * 6 / 10, "{entry}");
    let mut next = tiny();
    next["name"] = "next".into();
    let first = stage(&mut next, "sft");
    first.clear();
    let settings = format!("name = \"sft\"\nkind = \"checkpoint\"\npath = {:?}", shown(&kept));
    first.extend(settings.parse::<toml::Table>().unwrap());
    let examples = stage(&mut next, "examples");
    examples.remove("vocab");
    examples.insert("from".into(), vec!["world", "sft"].into());
    run_in(&write(folder.path(), &next), folder.path(), &["--until", "llm"]).expect_code(0);

    // Serving neither needs nor reads it, but who copies it must copy it whole.
    let check_command =
        || run_with(&testkit::TAIJI, &["bundle", "check", "--checksums-only", "--bundle", &shown(&bundle)], &[]);
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[1..]).unwrap();
    check(&bundle);
    assert!(check_command().expect_code(69).stderr.contains("checkpoints/sft/model.safetensors"));
    std::fs::remove_dir_all(bundle.join("checkpoints")).unwrap();
    check(&bundle);
    check_command().expect_code(0);
    // The trainer, run again, makes it whole.
    made(&write(folder.path(), &tiny()), folder.path());
    assert!(std::fs::read(&weights).unwrap() == bytes);
}

#[test]
fn a_bundle_in_int4_is_held_to_bounds_for_rounded_numbers() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    set(&mut recipe, "llm", "precision = \"int4\"");
    let bundle = made(&write(folder.path(), &recipe), folder.path());
    check(&bundle);
    let probe: Value = serde_json::from_slice(&std::fs::read(bundle.join("probe.json")).unwrap()).unwrap();
    assert_eq!((&probe["max_logprob_difference"], &probe["max_perplexity_ratio"]), (&json!(0.25), &json!(1.15)));
}

#[test]
fn a_checkpoint_from_anywhere_can_be_the_first_stage() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let mut recipe = tiny();
    let trained = made(&write(folder.path(), &recipe), folder.path());
    // The checkpoint comes back under another path, as one of somebody else would.
    let theirs = folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(stage_folder(folder.path(), "sft-").join(name), theirs.join(name)).unwrap();
    }
    recipe["name"] = "theirs".into();
    let first = stage(&mut recipe, "sft");
    first.clear();
    first.extend("name = \"sft\"\nkind = \"checkpoint\"\npath = \"theirs\"".parse::<toml::Table>().unwrap());
    let examples = stage(&mut recipe, "examples");
    examples.remove("vocab");
    examples.insert("from".into(), vec!["world", "sft"].into());
    run_in(&write(folder.path(), &recipe), folder.path(), &[]).expect_code(0);
    let served = folder.path().join("models/theirs/1");
    check(&served);
    for file in ["llm/reason/graph.onnx", "llm/reason/tokenizer.json", "space/pq.safetensors"] {
        assert_eq!(std::fs::read(served.join(file)).unwrap(), std::fs::read(trained.join(file)).unwrap(), "{file}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(served.join("report.json")).unwrap()).unwrap();
    assert!(!served.join("checkpoints").exists(), "who has published it has it");
    assert!(report.get("sft").is_none() && report["held_out"]["users"] == 8, "{report}");

    std::fs::remove_file(theirs.join("config.json")).unwrap();
    let told = run_in(&folder.path().join("tiny.toml"), folder.path(), &[]).expect_code(64).stderr;
    assert!(told.contains("stage sft: path") && told.contains("theirs"), "{told}");
}

#[test]
fn a_recipe_of_the_form_before_ends_with_64_and_its_new_form() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.toml");
    let old = "name = \"mine\"\nepoch = 3\n[data]\nkind = \"files\"\nmax_per_user = 2\n[sft]\nvocab = 700\nlr = 1e-3\n";
    std::fs::write(&path, old).unwrap();
    let told = run_in(&path, folder.path(), &[]).expect_code(64).stderr;
    for part in ["old.toml", "[[stage]]", "kind = \"files\"", "vocab = 700", "lr = 0.001", "epoch = 3"] {
        assert!(told.contains(part), "{part} in {told}");
    }
}
