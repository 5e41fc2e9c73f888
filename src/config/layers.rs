//! Merging the layers and turning every mismatch into a message that names where it came from.

use super::{ConfigErrors, Settings, validate::validate};
use std::path::Path;
use toml::{Table, Value};

/// The commented defaults, compiled in.
pub const DEFAULT_TOML: &str = include_str!("default.toml");

/// Tables whose keys are the user's own, not ours: `(section, table)`.
const OPEN_TABLES: [(&str, &str); 3] = [("events", "field_map"), ("events", "actions"), ("kafka", "properties")];

/// Loads and checks the settings.
///
/// `environment` are (name, value) pairs, of which only `TAIJI__…` count; `flags` are (dotted key, value) overrides.
/// All errors of all layers are reported together.
pub fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    flags: &[(&str, String)],
) -> Result<Settings, ConfigErrors> {
    let mut errors = Vec::new();
    let mut merged: Table =
        DEFAULT_TOML.parse().map_err(|error| ConfigErrors(vec![format!("default.toml: {error}")]))?;
    if let Some(path) = file {
        match read_file(path) {
            Ok(layer) => merge(&mut merged, layer, "", &path.display().to_string(), &mut errors),
            Err(message) => errors.push(message),
        }
    }
    for (name, text) in environment.filter(|(name, _)| name.starts_with("TAIJI__")) {
        let key = name["TAIJI__".len()..].to_ascii_lowercase().replace("__", ".");
        set(&mut merged, &key, &text, &format!("environment variable {name}"), &mut errors);
    }
    for (key, text) in flags {
        set(&mut merged, key, text, &format!("flag for {key}"), &mut errors);
    }
    if !errors.is_empty() {
        return Err(ConfigErrors(errors));
    }
    let settings: Settings = serde_path_to_error::deserialize(Value::Table(merged))
        .map_err(|error| ConfigErrors(vec![format!("setting {}: {}", error.path(), without_value(error.inner()))]))?;
    validate(&settings)?;
    Ok(settings)
}

fn read_file(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("config file {}: {error}", path.display()))?;
    text.parse().map_err(|error| format!("config file {}: {}", path.display(), place_of(&text, &error)))
}

/// Where TOML is wrong, and its key where the line begins with one; never the line, which may hold a secret, and no words of the
/// parser's, which may quote it.
pub(super) fn place_of(text: &str, error: &toml::de::Error) -> String {
    let at = error.span().map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    let key = key_of(text[start..].lines().next().unwrap_or_default());
    let key = key.map(|key| format!(" (key {key})")).unwrap_or_default();
    format!(
        "line {line}, column {column}{key}: this is no TOML; is a quote or a bracket missing, or a key there twice?"
    )
}

/// The bare key a line begins with.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    Some(key.trim()).filter(|key| !key.is_empty() && key.len() <= 64 && key.bytes().all(plain))
}

/// What a setting must be, without what it is: serde's messages end with the one and begin with the other.
pub(super) fn without_value(error: &toml::de::Error) -> String {
    let message = error.message();
    match message.rfind("expected ") {
        Some(at) => message[at..].to_string(),
        None => message.to_string(),
    }
}

/// Lays `layer` over `base`; unknown keys and changed types are errors, except in the open tables.
fn merge(base: &mut Table, layer: Table, prefix: &str, source: &str, errors: &mut Vec<String>) {
    let open = OPEN_TABLES.iter().any(|(section, table)| prefix == format!("{section}.{table}."));
    for (key, value) in layer {
        let full = format!("{prefix}{key}");
        match (base.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(layer_inner)) if !open => {
                merge(inner, layer_inner, &format!("{full}."), source, errors);
            }
            (Some(existing), value) if open || same_kind(existing, &value) => {
                *existing = widen(existing, value);
            }
            (Some(existing), value) => errors.push(format!(
                "{source}: {full} must be of type {}, not {}",
                existing.type_str(),
                value.type_str()
            )),
            (None, value) if open => {
                base.insert(key, value);
            }
            (None, _) => errors.push(format!("{source}: {full} is not a setting")),
        }
    }
}

/// Sets one dotted key from text, parsed as the type the default has.
fn set(base: &mut Table, key: &str, text: &str, source: &str, errors: &mut Vec<String>) {
    let parts: Vec<&str> = key.split('.').collect();
    let Some((last, path)) = parts.split_last() else { return };
    let mut table = base;
    for part in path {
        match table.get_mut(*part) {
            Some(Value::Table(inner)) => table = inner,
            _ => return errors.push(format!("{source}: {key} is not a setting")),
        }
    }
    let open = OPEN_TABLES.iter().any(|(section, name)| key.starts_with(&format!("{section}.{name}.")));
    match table.get(*last) {
        Some(Value::Table(_)) if !open => errors.push(format!("{source}: {key} is a section, not a setting")),
        Some(existing) => match parse_as(existing, text) {
            Some(value) => {
                table.insert(last.to_string(), value);
            }
            None => errors.push(format!("{source}: must be of type {}", existing.type_str())),
        },
        None if open => {
            table.insert(last.to_string(), Value::String(text.to_string()));
        }
        None => errors.push(format!("{source}: {key} is not a setting")),
    }
}

fn same_kind(existing: &Value, value: &Value) -> bool {
    existing.same_type(value) || matches!((existing, value), (Value::Float(_), Value::Integer(_)))
}

/// Lets `threshold = 4` stand where `4.0` is the default.
fn widen(existing: &Value, value: Value) -> Value {
    match (existing, &value) {
        (Value::Float(_), Value::Integer(number)) => Value::Float(*number as f64),
        _ => value,
    }
}

fn parse_as(existing: &Value, text: &str) -> Option<Value> {
    match existing {
        Value::String(_) => Some(Value::String(text.to_string())),
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Float(_) => text.parse().ok().map(Value::Float),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::Array(_) if text.trim().is_empty() => Some(Value::Array(Vec::new())),
        Value::Array(_) => Some(Value::Array(text.split(',').map(|part| Value::String(part.trim().into())).collect())),
        Value::Table(_) => format!("v = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("v")),
        Value::Datetime(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ActionTable;

    fn load_with(
        file: Option<&str>,
        environment: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Settings, ConfigErrors> {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = folder.path().join("taiji.toml");
        if let Some(text) = file {
            std::fs::write(&path, text).expect("write");
        }
        let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let flags: Vec<(&str, String)> = flags.iter().map(|(key, value)| (*key, value.to_string())).collect();
        load(file.map(|_| path.as_path()), environment, &flags)
    }

    #[test]
    fn the_defaults_are_valid_and_state_the_actions_of_the_code() {
        let settings = load_with(None, &[], &[]).expect("defaults");
        assert_eq!(settings.events.actions, ActionTable::default());
    }

    #[test]
    fn flags_beat_environment_beats_file_beats_default() {
        let file = Some("[server]\nmax_users = 1\nmax_events = 1\nmax_in_flight = 1\n[refresh]\nweight_threshold = 2");
        let environment = [("TAIJI__SERVER__MAX_USERS", "2"), ("TAIJI__SERVER__MAX_EVENTS", "2")];
        let settings = load_with(file, &environment, &[("server.max_users", "3")]).expect("valid");
        assert_eq!((settings.server.max_users, settings.server.max_events, settings.server.max_in_flight), (3, 2, 1));
        assert_eq!(settings.refresh.weight_threshold, 2.0);
    }

    #[test]
    fn all_errors_come_at_once_and_name_their_source() {
        let file = Some("[server]\nlisten = 3\nlisen = \"x\"\n[nosuch]\na = 1");
        let errors = load_with(file, &[("TAIJI__SERVER__MAX_USERS", "many")], &[]).expect_err("bad").0;
        assert_eq!(errors.len(), 4, "{errors:?}");
        for part in ["server.listen must be", "server.lisen is not", "nosuch is not", "TAIJI__SERVER__MAX_USERS"] {
            assert!(errors.iter().any(|error| error.contains(part)), "{part} in {errors:?}");
        }
    }

    #[test]
    fn audit_21_a_wrong_line_is_reported_by_its_place_and_never_by_its_content() {
        for (text, parts) in [
            ("[store]\nurl = \"redis://u:geheim@h:1\n", &["line 2, column ", "(key url)"][..]),
            ("[auth]\nadmin_keys = [\"geheim-geheim-geheim\" \"b\"]", &["line 2, column ", "(key admin_keys)"]),
            ("[auth]\nadmin_keys = geheim-geheim-geheim", &["line 2, column 14", "(key admin_keys)"]),
            ("[telemetry]\nid_key = \"geheim\"\nid_key = \"geheim\"", &["line 3, column 1", "(key id_key)"]),
            ("geheim geheim = 3", &["line 1, column "]),
            ("[auth]\nadmin_keys = [[\"geheim-geheim-geheim\"]]", &["auth.admin_keys[0]", "expected a string"]),
            ("[engine]\nkind = \"geheim\"", &["engine.kind", "expected"]),
            ("[server]\nmax_users = \"geheim\"", &["server.max_users must be of type integer"]),
        ] {
            let told = load_with(Some(text), &[], &[]).expect_err("wrong").to_string();
            assert!(!told.contains("geheim"), "{told}");
            for part in parts {
                assert!(told.contains(part), "{part:?} in {told}");
            }
        }
        let told = load_with(None, &[("TAIJI__SERVER__MAX_USERS", "geheim")], &[]).expect_err("wrong").to_string();
        assert!(told.contains("TAIJI__SERVER__MAX_USERS") && !told.contains("geheim"), "{told}");
        let settings = load_with(None, &[("TAIJI__TELEMETRY__ID_KEY", "geheim-geheim-geheim")], &[]).expect("valid");
        assert!(!format!("{settings:?}").contains("geheim"), "the key of the hash in the log");
    }

    #[test]
    fn ranges_are_checked_together() {
        let flags = [("retrieve.min_item_users", "9"), ("server.max_users", "0"), ("store.url", "mysql://x")];
        let errors = load_with(None, &[], &flags).expect_err("bad").0;
        assert_eq!(errors.len(), 3, "{errors:?}");
    }

    #[test]
    fn the_openai_port_is_off_until_it_has_an_address_of_its_own() {
        assert_eq!(load_with(None, &[], &[]).expect("defaults").openai.listen, None);
        let on = load_with(None, &[("TAIJI__OPENAI__LISTEN", "127.0.0.1:8000")], &[]).expect("valid");
        assert_eq!(on.openai.listen.map(|address| address.port()), Some(8000));
        for (address, part) in [("127.0.0.1:8080", "openai.listen must differ"), ("here", "openai.listen")] {
            let errors = load_with(None, &[], &[("openai.listen", address)]).expect_err("bad").0;
            assert!(errors.len() == 1 && errors[0].contains(part), "{errors:?}");
        }
    }

    #[test]
    fn kafka_takes_the_clients_properties_but_not_those_that_would_lose_events() {
        let file = Some("[kafka]\nbrokers = \"b:9092\"\n[kafka.properties]\n\"security.protocol\" = \"SASL_SSL\"");
        let environment = [("TAIJI__KAFKA__PROPERTIES__SASL_PASSWORD", "geheim")];
        let settings = load_with(file, &environment, &[("kafka.brokers", "other:9092")]).expect("valid");
        assert_eq!(settings.kafka.brokers, "other:9092");
        assert_eq!(settings.kafka.properties["security.protocol"], "SASL_SSL");
        assert_eq!(settings.kafka.properties["sasl_password"], "geheim");
        assert!(!format!("{settings:?}").contains("geheim"), "a password in the log");
        for (flag, part) in [
            ("kafka.properties.enable_auto_commit", "is taiji's own"),
            ("kafka.lanes", "kafka.lanes must be at least 1"),
            ("kafka.commit_delay_ms", "kafka.commit_delay_ms must be at least 2000"),
        ] {
            let errors = load_with(file, &[], &[(flag, "0")]).expect_err("bad").0;
            assert!(errors.len() == 1 && errors[0].contains(part), "{errors:?}");
        }
    }

    #[test]
    fn own_actions_and_field_maps_are_open() {
        let file = Some(
            "[events.field_map]\nuser_id = \"/who\"\n[events.actions]\nstar = { class = \"engagement\", weight = 2.0 }",
        );
        let settings = load_with(file, &[], &[]).expect("valid");
        assert_eq!(settings.events.field_map["user_id"], "/who");
        assert!(settings.events.actions.get("star").is_some() && settings.events.actions.get("click").is_some());
    }
}
