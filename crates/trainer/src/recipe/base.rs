//! `base`: a recipe that says only in what it differs from another one.
//!
//! In: the table of a recipe with a key `base`. Out: the table that it would be without, by these rules:
//!
//! * `[[stage]]` with `kind` takes the place of the base's stage of that name, or is added; without `kind` its keys go over those of the
//!   base's stage, tables key by key;
//! * `[experiment]` goes over the base's, which is left out with its arms where the recipe has none of its own;
//! * `[arms]` are added to the base's, one of the same name in its place; `base = { recipe = "…", arms = ["…"] }` takes only these of them.

use serde::Deserialize;
use std::path::Path;
use toml::{Table, Value};

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Base {
    Recipe(String),
    Arms { recipe: String, arms: Vec<String> },
}

/// Most recipes that stand on each other.
const MOST_DEEP: usize = 8;

/// A recipe's table without `base`. `folder`: where its file lies, and the base's with it.
pub(super) fn resolved(folder: &Path, table: Table) -> Result<Table, String> {
    // Whatever has the base's name would be published and kept in its place.
    let names = [Some(&table), table.get("experiment").and_then(Value::as_table)];
    if table.contains_key("base") && names.into_iter().flatten().any(|table| !table.contains_key("name")) {
        return Err("name: is missing; a recipe with a base, and its [experiment], have names of their own".into());
    }
    let stages = table.get("stage").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let twice = |place: &usize| stages[..*place].iter().any(|other| other.get("name") == stages[*place].get("name"));
    if let Some(name) = (0..stages.len()).find(twice).and_then(|place| stages[place].get("name")) {
        return Err(format!("stage {name}: two stages have this name"));
    }
    resolve(folder, table, MOST_DEEP)
}

fn resolve(folder: &Path, mut own: Table, deep: usize) -> Result<Table, String> {
    let Some(value) = own.remove("base") else { return Ok(own) };
    let wrong = "base: must be a recipe's file name, or { recipe = \"…\", arms = [\"…\"] }";
    let (file, arms) = match value.try_into().map_err(|_| wrong.to_string())? {
        Base::Recipe(file) => (file, None),
        Base::Arms { recipe, arms } => (recipe, Some(arms)),
    };
    // Paths of settings begin at the recipe's folder, whichever says them.
    if Path::new(&file).components().count() != 1 {
        return Err(format!("base: {file:?} must lie in the recipe's own folder"));
    }
    let deep = deep.checked_sub(1).ok_or(format!("base: more than {MOST_DEEP} recipes stand on each other"))?;
    let text = std::fs::read_to_string(folder.join(&file)).map_err(|error| format!("base: {file}: {error}"))?;
    let table = toml::from_str(&text).map_err(|error| format!("base: {file}: {error}"))?;
    let mut base = resolve(folder, table, deep)?;
    keep_arms(&mut base, arms, own.contains_key("experiment")).map_err(|message| format!("base: {file}: {message}"))?;
    for (key, value) in own {
        match (key.as_str(), base.get_mut(&key), value) {
            ("stage", Some(Value::Array(stages)), Value::Array(more)) => {
                more.into_iter().try_for_each(|stage| put_stage(stages, stage, &file))?;
            }
            ("experiment", Some(Value::Table(experiment)), Value::Table(more)) => experiment.extend(more),
            ("arms", Some(Value::Table(known)), Value::Table(more)) => known.extend(more),
            (_, _, value) => drop(base.insert(key, value)),
        }
    }
    Ok(base)
}

/// Leaves the arms that were asked for; none without an experiment.
fn keep_arms(base: &mut Table, wanted: Option<Vec<String>>, is_experiment: bool) -> Result<(), String> {
    if wanted.is_some() && !(is_experiment && base.contains_key("arms")) {
        return Err("arms are named where the recipe has no [experiment], or its base no arms".into());
    }
    if !is_experiment {
        base.remove("experiment");
        base.remove("arms");
        return Ok(());
    }
    let (Some(wanted), Some(Value::Table(arms))) = (wanted, base.get_mut("arms")) else { return Ok(()) };
    match wanted.iter().find(|arm| !arms.contains_key(*arm)) {
        Some(arm) => Err(format!("there is no arm {arm}")),
        None => {
            arms.retain(|arm, _| wanted.iter().any(|one| one == arm));
            Ok(())
        }
    }
}

/// In place of the one of its name, over it, or behind all.
fn put_stage(stages: &mut Vec<Value>, stage: Value, file: &str) -> Result<(), String> {
    let name = stage.get("name").cloned();
    let known = stages.iter_mut().find(|other| name.is_some() && other.get("name") == name.as_ref());
    match (known, stage) {
        (Some(Value::Table(known)), Value::Table(stage)) if !stage.contains_key("kind") => merge(known, stage),
        (Some(known), stage) => *known = stage,
        (None, stage) if stage.get("kind").is_none() => {
            let name = name.map_or("without a name".into(), |name| name.to_string());
            return Err(format!("stage {name}: has no kind, and {file} has no stage of this name"));
        }
        (None, stage) => stages.push(stage),
    }
    Ok(())
}

/// Settings over settings; tables key by key.
pub(super) fn merge(into: &mut Table, over: Table) {
    for (key, value) in over {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(more)) => merge(inner, more),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
        name = "first"
        epoch = 3
        [experiment]
        name = "first"
        seeds = [1, 2]
        seeded = ["b"]
        result = "b"
        [[stage]]
        name = "a"
        kind = "synth"
        users = 5
        [[stage]]
        name = "b"
        kind = "examples"
        from = ["a"]
        vocab = 9
        prompt = { id = "x", modes = ["think"] }
        [arms.one.b]
        vocab = 1
        [arms.two.b]
        vocab = 2
    "#;

    fn over(text: &str) -> Result<Table, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("first.toml"), BASE).unwrap();
        std::fs::write(folder.path().join("loop.toml"), "base = \"loop.toml\"").unwrap();
        resolved(folder.path(), toml::from_str(text).unwrap())
    }

    #[test]
    fn stages_experiment_and_arms_go_over_those_of_the_base() {
        let found = over(
            r#"
            name = "second"
            base = { recipe = "first.toml", arms = ["two"] }
            [experiment]
            name = "second"
            [[stage]]
            name = "a"
            kind = "files"
            [[stage]]
            name = "b"
            vocab = 8
            prompt = { id = "y" }
            [[stage]]
            name = "c"
            kind = "rank"
            [arms.three.c]
            epochs = 1
            "#,
        );
        let expected = toml::from_str(
            r#"
            name = "second"
            epoch = 3
            [experiment]
            name = "second"
            seeds = [1, 2]
            seeded = ["b"]
            result = "b"
            [[stage]]
            name = "a"
            kind = "files"
            [[stage]]
            name = "b"
            kind = "examples"
            from = ["a"]
            vocab = 8
            prompt = { id = "y", modes = ["think"] }
            [[stage]]
            name = "c"
            kind = "rank"
            [arms.two.b]
            vocab = 2
            [arms.three.c]
            epochs = 1
            "#,
        );
        assert_eq!(found, Ok(expected.unwrap()));
    }

    #[test]
    fn a_recipe_without_experiment_takes_none() {
        let found = over("name = \"second\"\nepoch = 1\nbase = \"first.toml\"").unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), ["epoch", "name", "stage"]);
    }

    #[test]
    fn what_cannot_be_is_said() {
        for (text, said) in [
            ("base = \"nothing.toml\"", "nothing.toml"),
            ("base = \"../first.toml\"", "own folder"),
            ("base = 3", "file name"),
            ("base = \"loop.toml\"", "more than 8 recipes"),
            ("base = { recipe = \"first.toml\", arms = [\"four\"] }\n[experiment]\nname = \"x\"", "no arm four"),
            ("base = \"first.toml\"\n[[stage]]\nname = \"z\"\nusers = 1", "no stage of this name"),
            ("base = \"first.toml\"\n[experiment]\nseeds = [3]", "names of their own"),
            ("base = { recipe = \"first.toml\", arms = [\"two\"] }", "no [experiment]"),
            ("base = \"first.toml\"\n[[stage]]\nname = \"a\"\n[[stage]]\nname = \"a\"", "two stages have this name"),
        ] {
            let message = over(&format!("name = \"second\"\n{text}")).unwrap_err();
            assert!(message.contains(said), "{message}");
        }
        assert!(over("base = \"first.toml\"").unwrap_err().starts_with("name: is missing"));
    }
}
