//! The experiment on reasons, tiny: a teacher, a scorer, filters, students, what they answer, rows and tables; and our own service as the
//! teacher.

use crate::recipe::{run_in, set, stage, tables_of};
use serde_json::Value;
use std::path::{Path, PathBuf};
use testkit::process::{Setup, free_address, run_with};
use testkit::{TRAINER, demo_bundle, in_repository};

/// models/orft.toml with everything made small.
fn small(arms: &[&str]) -> toml::Table {
    let whole = std::fs::read_to_string(in_repository("models/orft.toml")).unwrap();
    let mut recipe: toml::Table = whole.parse().unwrap();
    let model = "d_model = 32\nheads = 2\nkv_heads = 1\nlayers = 1\nffn = 64\nmax_len = 640\nbatch_tokens = 5120\nbatch_examples = 8\n";
    let students = format!("{model}keep_at = [2, 4]");
    for (stage, settings) in [
        ("world", "users = 40"),
        ("others", "users = 20"),
        ("held-out", "users = 12"),
        ("examples", "vocab = 512\ncodebook_texts = 60\nvalidation_examples = 24"),
        ("others-examples", "vocab = 512\ncodebook_texts = 60"),
        ("scorer", model),
        ("pairs", "pairs = 48"),
        ("sft", students.as_str()),
        ("answers", "at = [2, 4]"),
    ] {
        set(&mut recipe, stage, settings);
    }
    for examples in ["examples", "others-examples"] {
        let prompt = stage(&mut recipe, examples)["prompt"].as_table_mut().unwrap();
        prompt.insert("max_prompt_tokens".into(), 560.into());
        prompt.insert("max_new_tokens".into(), 60.into());
    }
    recipe["experiment"]["seeds"] = toml::Value::from(vec![1]);
    recipe["arms"].as_table_mut().unwrap().retain(|arm, _| arms.contains(&arm));
    recipe
}

fn write(folder: &Path, recipe: &toml::Table) -> PathBuf {
    let path = folder.join("orft.toml");
    std::fs::write(&path, toml::to_string(recipe).unwrap()).unwrap();
    path
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn arms_differ_in_their_pairs_alone_and_their_rows_make_tables() {
    let folder = tempfile::tempdir().unwrap();
    let arms = ["answer-only", "direct", "rupr", "random-half", "gain", "evidence-only"];
    let recipe = write(folder.path(), &small(&arms));
    let rows = folder.path().join("rows");
    let run = |at: &str| {
        let more = ["--jobs", "2", "--rows", rows.to_str().unwrap()];
        run_in(&recipe, &folder.path().join(at), &more).expect_code(0).stderr
    };
    let told = run("a");
    assert_eq!(told.matches("scores: running").count(), 1, "arms share the scores: {told}");
    for arm in arms {
        let result = &read(&rows.join(format!("{arm}-1.json")))["result"];
        assert_eq!(result["pairs"]["pairs"], 48, "{arm}: {result}");
        let looks = result["looks"].as_array().unwrap();
        let steps: Vec<Option<u64>> = looks.iter().map(|look| look["step"].as_u64()).collect();
        assert_eq!(steps, [Some(2), Some(4), None], "{arm}");
        for metric in ["l1", "l2", "l3", "title", "format", "evidence", "cause", "follows"] {
            assert_eq!(looks[2]["metrics"][metric]["users"], 12, "{arm} {metric}");
        }
        // Only where scores decided is there anything of them to tell.
        let auc = &result["pairs"]["scores"]["parts"]["train"]["gain"]["auc"];
        assert_eq!(auc.is_f64(), arm == "gain", "{arm}: {auc}");
        let wrong = &result["pairs"]["planted_taken"];
        assert!(wrong["true"].as_u64().unwrap() > 0 && wrong["wrong_own"].as_u64().unwrap() > 0, "{arm}: {wrong}");
    }
    let gain = &read(&rows.join("gain-1.json"))["result"]["pairs"];
    let (by_method, left) =
        (gain["pairs_taken_by_method"].as_u64().unwrap(), gain["pairs_left_by_method"].as_u64().unwrap());
    assert_eq!(by_method + left, gain["pairs_offered"].as_u64().unwrap(), "{gain}");
    assert_eq!(gain["dearest_left"].as_array().unwrap().len(), 5, "{gain}");
    let again = run("fresh");
    assert!(!again.contains("running") && again.matches("its row is there").count() == arms.len(), "{again}");

    let told = tables_of(folder.path(), "orft", 12, &rows);
    assert!(told.contains("6 of 54 rows") && told.contains("nothing is decided"), "{told}");
    assert!(told.contains("Look at 0.25") && told.contains("| reasons-pay | l3 | "), "{told}");
}

#[test]
fn too_few_pairs_and_a_teacher_of_other_data_are_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |stage: &str, settings: &str, parts: &[&str], code: i32| {
        let mut recipe = small(&["rupr"]);
        set(&mut recipe, stage, settings);
        let told = run_in(&write(folder.path(), &recipe), folder.path(), &[]).expect_code(code).stderr;
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    };
    refused("pairs", "pairs = 100000", &["pairs", "100000 are asked for"], 69);
    refused("reasons", "teacher = { kind = \"derived\", wrong = 0.3 }", &["teacher.kind", "give rule"], 69);
    refused(
        "reasons",
        "teacher = { kind = \"rule\", wrong = 2.0, blame = \"search\", path = \"own\" }",
        &["teacher.wrong"],
        64,
    );
    refused("reasons", "teacher = { kind = \"oracle\" }", &["stage reasons", "oracle"], 64);
    refused(
        "reasons",
        "teacher = { kind = \"openai\", url = \"nowhere\", model = \"m\" }",
        &["teacher.url", "http://"],
        64,
    );
}

#[test]
fn our_own_service_can_be_the_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    let service = Setup::onnx(&demo_bundle(), &folder.path().join("store"))
        .env("TAIJI__OPENAI__TEMPLATE", "plain")
        .env("TAIJI__OPENAI__LISTEN", &address)
        .start();
    let mut recipe = small(&["rupr"]);
    // The port serves it under the name of its folder and the hash of its id.
    let id = read(&demo_bundle().join("manifest.json"))["models"]["llm"].as_str().unwrap().to_string();
    let model = format!("reason-{}", id.rsplit('@').next().unwrap());
    let endpoint = format!("kind = \"openai\", url = \"http://{address}/v1\", model = \"{model}\"");
    // The demo's model reads 416 tokens, answer included.
    let teacher = format!("teacher = {{ {endpoint}, instruction = \"Why?\", max_tokens = 48, concurrency = 2 }}");
    set(&mut recipe, "reasons", &format!("prompts = 6\nk = 2\n{teacher}"));
    stage(&mut recipe, "examples")["prompt"].as_table_mut().unwrap().insert("max_engagements".into(), 3.into());
    let recipe = write(folder.path(), &recipe);
    let run = || run_in(&recipe, folder.path(), &["--until", "reasons"]).expect_code(0).stderr;
    let told = run();
    assert!(told.contains("12 of 12 replies are asked"), "{told}");
    assert!(!run().contains("running"), "a finished stage asks nothing");
    let entries = std::fs::read_dir(folder.path().join("work")).unwrap().flatten();
    let made = entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/reason-")).unwrap();
    let report = &read(&made.join("reason.json"))["parts"]["train"];
    let refused: u64 = report["refused"]["counts"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(report["reasons"].as_u64().unwrap() + refused, 12, "{report}");
    let spent = &report["spent"];
    assert!(
        spent["prompt_tokens"].as_u64().unwrap() > 100 && spent["completion_tokens"].as_u64().unwrap() > 0,
        "{spent}"
    );
    drop(service);
    let planned = run_with(
        &TRAINER,
        &["plan", "--recipe", recipe.to_str().unwrap(), "--work", folder.path().join("work").to_str().unwrap()],
        &[],
    );
    assert!(planned.expect_code(0).stdout.contains("reasons"), "the plan names the stage");
}
