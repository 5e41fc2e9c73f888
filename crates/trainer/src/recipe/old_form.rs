//! Recipes from before `[[stage]]`: the same in the form of now.

use toml::{Table, Value};

/// The new form of an old recipe; `None` for one that has the new form.
pub fn converted(old: &Table) -> Result<Option<String>, String> {
    if old.contains_key("stage") || !old.contains_key("sft") {
        return Ok(None);
    }
    let mut new = Table::new();
    for key in ["name", "epoch"] {
        new.extend(old.get(key).map(|value| (key.to_string(), value.clone())));
    }
    new.insert("stage".into(), Value::Array(stages(old).into_iter().map(Value::Table).collect()));
    toml::to_string(&new).map(Some).map_err(|error| error.to_string())
}

fn stages(old: &Table) -> Vec<Table> {
    let section = |name: &str| old.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
    let (mut data, mut sft, evaluate) = (section("data"), section("sft"), section("evaluate"));
    data.remove("kind");
    let mut examples = stage("examples", "examples", &["data"]);
    for key in ["max_per_user", "informative_only"] {
        examples.extend(data.remove(key).map(|value| (key.to_string(), value)));
    }
    for (from, to) in [("vocab", "vocab"), ("validation_examples", "validation_examples"), ("seed", "seed")] {
        examples.extend(sft.get(from).map(|value| (to.to_string(), value.clone())));
    }
    examples.extend(old.get("codebook_texts").map(|value| ("codebook_texts".to_string(), value.clone())));
    examples.insert("prompt".into(), Value::Table(section("prompt")));
    sft.remove("vocab");

    let is_synth = data.contains_key("users");
    let mut stages = vec![with(stage("data", if is_synth { "synth" } else { "files" }, &[]), data.clone())];
    let judged = if is_synth { "held-out" } else { "data" };
    if is_synth {
        stages.push(with(stage("held-out", "synth", &[]), held_out(&data, &evaluate)));
    }
    let served = ["examples", "llm", "encoder", "codebook"];
    let from = |first: &[&'static str], last: &[&'static str]| [first, &served, last].concat();
    let mut judge = stage("judge", "judge", &from(&[judged], &["index"]));
    for key in if is_synth { &["seed"][..] } else { &["users", "seed"] } {
        judge.extend(evaluate.get(*key).map(|value| (key.to_string(), value.clone())));
    }
    let mut bundle = stage("bundle", "publish", &from(&["data", "sft"], &["index", "judge"]));
    bundle.extend(old.get("licences").map(|value| ("licences".to_string(), value.clone())));
    stages.extend([
        examples,
        with(stage("sft", "sft", &["examples"]), sft),
        stage("llm", "export", &["sft"]),
        with(stage("encoder", "encoder", &[]), section("encoder")),
        with(stage("codebook", "codebook", &["examples", "encoder"]), section("codebook")),
        with(stage("index", "index", &from(&["data"], &[])), section("index")),
        judge,
        bundle,
    ]);
    stages
}

fn stage(name: &str, kind: &str, from: &[&str]) -> Table {
    let mut table = Table::new();
    table.insert("name".into(), name.into());
    table.insert("kind".into(), kind.into());
    if !from.is_empty() {
        table.insert("from".into(), Value::Array(from.iter().map(|name| Value::from(*name)).collect()));
    }
    table
}

fn with(mut stage: Table, settings: Table) -> Table {
    stage.extend(settings);
    stage
}

/// As many judged users as `[evaluate]` says, with as many events each as those of training have.
fn held_out(data: &Table, evaluate: &Table) -> Table {
    let number = |table: &Table, key: &str| table.get(key).and_then(Value::as_integer);
    let mut held = data.clone();
    held.extend(evaluate.clone());
    if let (Some(users), Some(events), Some(judged)) =
        (number(data, "users"), number(data, "events"), number(evaluate, "users"))
    {
        let events = (events as f64 / users.max(1) as f64 * judged as f64) as i64;
        held.insert("events".into(), Value::Integer(events));
    }
    held
}
