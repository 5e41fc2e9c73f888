//! What is active (bundle, space, turn) is `live`'s alone: elsewhere nothing that outlives one request or refresh keeps a copy.

use crate::source::{Source, sources};
use std::collections::BTreeSet;
use testkit::in_repository;

/// Names that only `live` may keep.
const NAMES: [&str; 3] = ["space", "bundle", "turn"];
/// Types that are a bundle or half of one, and what was taken of `live` for one act.
const TYPES: [&str; 4] = ["Bundle", "Inference", "View", "Spaces"];
/// `live` itself; the store's records, keys and messages; the protobuf messages.
const EXEMPT: [&str; 3] = ["live/", "store/", "proto.rs"];

/// Struct and field → why it may.
const ALLOWED: [(&str, &str); 14] = [
    ("Columns.space", "what one answer says, of the view its read took"),
    ("Row.space", "what one answer says, of the view its read took"),
    ("Target.bundle", "a flag of the command line"),
    ("ServeArgs.bundle", "a flag of the command line"),
    ("Settings.bundle", "the section of the settings"),
    ("Manifest.space", "a file's form: where a view has its space from"),
    ("GenerationManifest.space", "a file's form"),
    ("Version.turn", "a stored value's version"),
    ("VectorTail.space", "a place in one space's feed; `live::Follower` makes one for each index"),
    ("Bundle.inference", "a bundle's own half"),
    ("Attempt.view", "one refresh's own"),
    ("Attempt.models", "one refresh's own, of its view"),
    ("Chooser.view", "one refresh's"),
    ("Backfill.spaces", "one run's: a command, which ends with it"),
];

/// Named fields of the structs of a file: struct, field, type, line.
fn fields(source: &Source) -> Vec<(String, String, String, usize)> {
    let mut found = Vec::new();
    let mut inside: Option<(String, usize)> = None;
    for (place, line) in source.lines.iter().enumerate() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        let Some((name, start)) = &inside else {
            let declared =
                code.split_once("struct ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
            if let Some((_, rest)) = declared.filter(|_| code.ends_with('{')) {
                let name = rest.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
                inside = Some((name.to_string(), indent));
            }
            continue;
        };
        if code == "}" && indent == *start {
            inside = None;
            continue;
        }
        let Some((left, kind)) = code.split_once(": ").filter(|_| !code.starts_with('#')) else { continue };
        let field = left.rsplit(' ').next().unwrap_or_default();
        found.push((name.clone(), field.to_string(), kind.to_string(), place + 1));
    }
    found
}

/// Whether a type names one of these, as `Arc<Bundle>` does and `BundleSettings` does not.
fn is_of(kind: &str, types: &[&str]) -> bool {
    kind.split(|letter: char| !letter.is_alphanumeric()).any(|word| types.contains(&word))
}

#[test]
fn audit_18_only_live_keeps_what_is_active() {
    let (mut wrong, mut used, mut structs) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for source in sources(&in_repository("src")) {
        let path = source.path.display().to_string();
        for (of, field, kind, line) in fields(&source) {
            structs.insert((path.clone(), of.clone()));
            let keeps = NAMES.contains(&field.as_str()) || is_of(&kind, &TYPES);
            if !keeps || EXEMPT.iter().any(|exempt| path.starts_with(exempt)) {
                continue;
            }
            let name = format!("{of}.{field}");
            if !ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
                wrong.push(format!("src/{path}:{line}: {name}: take a view of `live` where an act begins"));
            }
            used.insert(name);
        }
    }
    wrong.extend(
        ALLOWED.iter().filter(|(name, _)| !used.contains(*name)).map(|(name, why)| format!("{name} ({why}) is gone")),
    );
    println!("audit 18: {} structs, {} of them may keep a bundle, space or turn", structs.len(), used.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(structs.len() > 200, "the sources were not read");
}

#[test]
fn fields_are_found_with_their_structs() {
    let text = "pub struct A<'a> {\n    pub(super) space: &'a str,\n    #[arg(value_name = \"x: y\")]\n    models: Arc<Inference>,\n}\nfn f() {\n    let b = B { space: s };\n}\nstruct C(u64);\n";
    let source = Source { path: "x.rs".into(), lines: text.lines().map(str::to_string).collect() };
    let found: Vec<(String, String)> = fields(&source).into_iter().map(|(of, field, ..)| (of, field)).collect();
    assert_eq!(found, [("A".to_string(), "space".to_string()), ("A".to_string(), "models".to_string())]);
    assert!(is_of("Option<Arc<Inference>>,", &TYPES) && !is_of("BundleSettings,", &TYPES));
}
