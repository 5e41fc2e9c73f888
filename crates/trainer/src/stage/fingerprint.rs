//! Everything that decides what a stage makes, and its hash.

use super::{Artefact, Stage, StageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What goes into a stage's hash, kept so that a plan can say what changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of the stage.
    pub kind: String,
    /// Of the stage's code.
    pub version: u32,
    /// Those that decide the result.
    pub settings: Value,
    /// Type → hash of the parent.
    pub inputs: BTreeMap<String, String>,
    /// Name → sha256 of a file outside the work folder.
    pub files: BTreeMap<String, String>,
}

/// sha256 of files that were read before in this run: arms share them.
pub type FileSums = BTreeMap<PathBuf, String>;

impl Fingerprint {
    /// Of a stage over parents of these types and hashes; reads its input files, but for those in `sums`.
    pub fn new(
        stage: &dyn Stage,
        parents: &[(Artefact, String)],
        sums: &mut FileSums,
    ) -> Result<Fingerprint, StageError> {
        let inputs = parents.iter().map(|(artefact, hash)| (artefact.name().to_string(), hash.clone())).collect();
        let files = sums_of(stage, sums)?;
        let (kind, version) = (stage.kind().to_string(), stage.version());
        Ok(Fingerprint { kind, version, settings: stage.settings(), inputs, files })
    }

    /// Sixteen hex digits. The names of the stage and of its recipe are not in it: whoever makes the same shares it.
    pub fn hash(&self) -> String {
        let version = self.version.to_string();
        let settings = self.settings.to_string();
        let mut parts = vec![self.kind.as_str(), &version, &settings, "inputs"];
        parts.extend(self.inputs.iter().flat_map(|(name, hash)| [name.as_str(), hash]));
        parts.push("files");
        parts.extend(self.files.iter().flat_map(|(name, hash)| [name.as_str(), hash]));
        hash_of(&parts)
    }

    /// How this one differs from an earlier one of the same stage; `None` if in nothing.
    pub fn difference(&self, earlier: &Fingerprint) -> Option<String> {
        if self.kind != earlier.kind {
            return Some(format!("kind changed ({} before)", earlier.kind));
        }
        if self.version != earlier.version {
            return Some(format!("version changed ({} before, now {})", earlier.version, self.version));
        }
        if self.settings != earlier.settings {
            return Some(format!("settings changed ({})", changed_keys(&earlier.settings, &self.settings)));
        }
        let changed = changed_names(&earlier.files, &self.files).or(changed_names(&earlier.inputs, &self.inputs))?;
        Some(format!("input changed ({changed})"))
    }
}

/// Refuses when the input files of a stage are no longer those of its fingerprint: what was read of them is worth nothing.
pub fn check_files(stage: &dyn Stage, fingerprint: &Fingerprint) -> Result<(), StageError> {
    let now = sums_of(stage, &mut FileSums::new())?;
    match changed_names(&fingerprint.files, &now) {
        Some(files) => Err(StageError::Changed { files }),
        None => Ok(()),
    }
}

fn sums_of(stage: &dyn Stage, sums: &mut FileSums) -> Result<BTreeMap<String, String>, StageError> {
    let mut files = BTreeMap::new();
    for (name, path) in stage.files()? {
        let sum = match sums.get(&path) {
            Some(sum) => sum.clone(),
            None => taiji::bundle::sha256_file(&path).map_err(StageError::io(&path))?,
        };
        sums.insert(path, sum.clone());
        files.insert(name, sum);
    }
    Ok(files)
}

fn changed_names(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let mut names: Vec<&str> = before.keys().chain(now.keys()).map(String::as_str).collect();
    names.retain(|name| before.get(*name) != now.get(*name));
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Top-level keys whose values differ.
fn changed_keys(before: &Value, now: &Value) -> String {
    let text = |value: &Value| -> BTreeMap<String, String> {
        let pairs = value.as_object().into_iter().flatten();
        pairs.map(|(key, value)| (key.clone(), value.to_string())).collect()
    };
    changed_names(&text(before), &text(now)).unwrap_or_else(|| "all".to_string())
}

/// Short hex hash of some strings.
pub fn hash_of(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(&hasher.finalize()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn plain() -> Fingerprint {
        let map = |name: &str, hash: &str| BTreeMap::from([(name.to_string(), hash.to_string())]);
        let (inputs, files) = (map("data", "1"), map("users.jsonl", "2"));
        Fingerprint { kind: "sft".into(), version: 1, settings: json!({"lr": 0.1, "layers": 4}), inputs, files }
    }

    #[test]
    fn every_part_counts_and_is_named_when_it_changes() {
        let before = plain();
        let change = |edit: &dyn Fn(&mut Fingerprint)| {
            let mut now = plain();
            edit(&mut now);
            assert_ne!(now.hash(), before.hash());
            now.difference(&before).unwrap()
        };
        assert!(change(&|now| now.version = 2).contains("version changed (1 before, now 2)"));
        assert!(change(&|now| now.settings = json!({"lr": 0.2, "layers": 4})).contains("settings changed (lr)"));
        assert!(
            change(&|now| {
                now.inputs.insert("data".into(), "9".into());
            })
            .contains("input changed (data)")
        );
        assert!(change(&|now| now.files.clear()).contains("input changed (users.jsonl)"));
        assert!(change(&|now| now.kind = "export".into()).contains("kind changed"));
        assert_eq!(plain().difference(&before), None);
    }

    proptest! {
        #[test]
        fn where_a_name_ends_is_part_of_the_hash(left in "[a-c]{1,6}", right in "[a-c]{1,6}", cut in 1usize..12) {
            let whole = format!("{left}{right}");
            let cut = cut.min(whole.len());
            let same = cut == left.len();
            prop_assert_eq!(hash_of(&[&left, &right]) == hash_of(&[&whole[..cut], &whole[cut..]]), same);
        }
    }
}
