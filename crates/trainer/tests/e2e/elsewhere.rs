//! For who trains elsewhere: a recipe's data in others' form, and its rewards over HTTP, by the built program.

use crate::align::small;
use crate::recipe::{check, ensure_encoder_checkpoint, run_in, set, stage, tiny, write};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use testkit::process::{call, command, output_of, run_with};
use testkit::{TRAINER, in_repository};

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The folder that holds this file.
fn folder_of(work: &Path, file: &str) -> PathBuf {
    let mut folders = std::fs::read_dir(work).unwrap().map(|entry| entry.unwrap().path());
    folders.find(|folder| folder.join(file).is_file()).unwrap()
}

/// A service that ends with the test.
struct Service {
    child: Child,
    address: String,
}

impl Service {
    fn start(arguments: &[&str]) -> Service {
        let mut child = command(&TRAINER, arguments).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("{line:?}")).to_string();
        Service { child, address }
    }

    fn ask(&self, answers: &[Value]) -> Value {
        let body = json!({ "answers": answers }).to_string();
        call(&self.address, "POST", "/v1/rewards", &[], body.as_bytes()).unwrap().expect_status(200).json()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_policy_can_be_trained_elsewhere_on_our_data_and_rewards() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    let work = folder.path().join("work");
    let [recipe_path, work_path] = [&recipe, &work].map(|path| path.display().to_string());
    let of = ["--recipe", &recipe_path, "--work", &work_path];
    let with = |words: &[&'static str]| -> Vec<String> {
        words.iter().copied().map(str::to_string).chain(of.iter().map(|word| word.to_string())).collect()
    };
    let run = |arguments: &[String]| run_with(&TRAINER, &arguments.iter().map(String::as_str).collect::<Vec<_>>(), &[]);

    // What lacks is named with the command that makes it.
    let early = run(&with(&["rewards", "serve", "--listen", "127.0.0.1:0", "--arm", "nash"])).expect_code(64).stderr;
    assert!(early.contains("is not made yet: taiji-trainer run --recipe"), "{early}");
    let armless = run(&with(&["rewards", "serve"])).expect_code(64).stderr;
    assert!(armless.contains("--arm is missing") && armless.contains("popo-guarded"), "{armless}");
    run_in(&recipe, folder.path(), &["--arm", "nash", "--before", "align"]).expect_code(0);

    for format in ["trl", "verl", "llamafactory"] {
        let out = folder.path().join(format);
        let mut arguments = with(&["data", "export", "--stage", "align", "--arm", "nash", "--format"]);
        arguments.insert(7, format.to_string());
        arguments.extend(["--out".to_string(), out.display().to_string()]);
        run(&arguments).expect_code(0);
        let exported: Value = serde_json::from_slice(&std::fs::read(out.join("export.json")).unwrap()).unwrap();
        assert_eq!(exported["rl"], json!(20), "{exported}");
        if format == "verl" {
            for name in ["rl.parquet", "preference.parquet"] {
                assert!(std::fs::read(out.join(name)).unwrap().starts_with(b"PAR1"), "{name}");
            }
        } else {
            assert_eq!(lines(&out.join("rl.jsonl")).len(), 20);
            assert_eq!(json!(lines(&out.join("preference.jsonl")).len()), exported["preference"]);
        }
        // What lies there already is not mixed with another export.
        assert!(run(&arguments).expect_code(69).stderr.contains("is not empty"));
    }
    let wrong = run(&with(&["data", "export", "--arm", "nash", "--stage", "world", "--format", "trl", "--out", "x"]));
    assert!(wrong.expect_code(64).stderr.contains("is of kind synth, not align or sft"));

    let mut arguments = with(&["rewards", "serve", "--listen", "127.0.0.1:0", "--arm", "nash"]);
    arguments.extend(["--threads".to_string(), "1".to_string()]);
    let mut service = Service::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let written = lines(&folder_of(&work, "roll_outs.jsonl").join("roll_outs.jsonl"));
    let answers: Vec<Value> = written
        .iter()
        .flat_map(|of| {
            of["texts"].as_array().unwrap().iter().map(|text| json!({ "user_id": of["user_id"], "text": text }))
        })
        .collect();
    let found = service.ask(&answers);
    // What the policy of the start is worth is the mean of what its answers are worth.
    for name in ["semantic", "simulated"] {
        let (values, start) = (found["rewards"][name].as_array().unwrap(), found["start"][name].as_array().unwrap());
        for (pair, means) in values.chunks(2).zip(start.chunks(2)) {
            let mean = pair.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / 2.0;
            assert!((mean - means[0].as_f64().unwrap()).abs() < 1e-9 && means[0] == means[1], "{name}: {found}");
        }
    }
    assert!(found["items"].as_array().unwrap().iter().any(Value::is_string), "{found}");
    // Together or apart: the same.
    let apart = service.ask(&answers[3..4]);
    assert_eq!(apart["rewards"]["simulated"][0], found["rewards"]["simulated"][3]);
    output_of("kill", &["-TERM", &service.child.id().to_string()]);
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

/// TRL's GRPOTrainer takes three steps on the service, has the rewards that the service has, and what it saves is the first stage of a
/// recipe that ends in a bundle that serves. `TAIJI_TRL_PYTHON`: a Python that has TRL.
#[test]
#[ignore = "needs 6 GB of Python packages: make trl-check"]
fn trl_trains_on_our_rewards_and_its_checkpoint_ends_in_a_bundle() {
    let python =
        std::env::var("TAIJI_TRL_PYTHON").expect("TAIJI_TRL_PYTHON names a Python that has TRL: run `make trl-check`");
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let recipe = small(folder.path());
    run_in(&recipe, folder.path(), &["--arm", "nash", "--before", "align"]).expect_code(0);
    let shown = |path: PathBuf| path.display().to_string();
    let (data, policy) = (shown(folder.path().join("trl")), shown(folder.path().join("policy")));
    let (recipe, work) = (shown(recipe), shown(folder.path().join("work")));
    let of = ["--recipe", recipe.as_str(), "--work", work.as_str(), "--arm", "nash"];
    output_of(
        &TRAINER,
        &[&["data", "export", "--stage", "align", "--format", "trl", "--out", &data][..], &of].concat(),
    );
    let service = Service::start(&[&["rewards", "serve", "--listen", "127.0.0.1:0"][..], &of].concat());
    let script = shown(in_repository("clients/python/trl_check.py"));
    let (url, prompts) = (format!("http://{}", service.address), format!("{data}/rl.jsonl"));
    let checkpoint = shown(in_repository("models/demo/1/checkpoints/sft"));
    let arguments = [&script, "--url", &url, "--checkpoint", &checkpoint, "--prompts", &prompts, "--out", &policy];
    let told = output_of(&python, &[&["-W", "ignore"][..], &arguments.map(|word| word as &str)].concat());
    let found: Value = serde_json::from_str(told.trim().lines().last().unwrap()).unwrap();
    assert_eq!(found["steps"], json!(3), "{told}");
    println!("{found}");
    drop(service);

    let mut recipe = tiny();
    let place = |name: &str| format!("path = {name:?}");
    let trained = stage(&mut recipe, "sft");
    *trained = "name = \"sft\"\nkind = \"checkpoint\"".parse().unwrap();
    set(&mut recipe, "sft", &place(&policy));
    // Its tokenizer is the checkpoint's.
    let examples = stage(&mut recipe, "examples");
    ["vocab"].iter().for_each(|key| drop(examples.remove(*key)));
    let limits = examples["prompt"].as_table_mut().unwrap();
    limits.insert("max_prompt_tokens".into(), 320.into());
    limits.insert("max_new_tokens".into(), 96.into());
    set(&mut recipe, "examples", "from = [\"world\", \"sft\"]");
    let ended = folder.path().join("served");
    std::fs::create_dir(&ended).unwrap();
    run_in(&write(&ended, &recipe), &ended, &[]).expect_code(0);
    check(&ended.join("models/tiny/1"));
}
