//! `prompt.toml` of a bundle: reading, checking, writing, and the hash that names it.
//!
//! Callers: `bundle` (load), `taiji_trainer::recipe` (save), both through [`PromptSchema`].

use super::PromptSchema;
use std::path::Path;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

/// Rises when [`super::render`] or [`super::sanitise`] writes other text for the same schema.
const SERIALIZER_VERSION: u32 = 1;

/// Why a prompt schema cannot be used.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The file cannot be read or written.
    #[error("prompt schema {path}: {source}")]
    Io {
        /// File.
        path: String,
        /// From the system.
        source: std::io::Error,
    },
    /// The file is not a prompt schema.
    #[error("prompt schema {path}: {message}")]
    Syntax {
        /// File.
        path: String,
        /// What toml says.
        message: String,
    },
    /// A value cannot work.
    #[error("prompt schema: {field} {message}")]
    Value {
        /// Field of the schema.
        field: &'static str,
        /// What would be right.
        message: String,
    },
}

impl PromptSchema {
    /// For the demo decoder (1–2 M parameters, context 512): ten engagements, prompts of 150–250 tokens.
    pub fn small() -> Self {
        PromptSchema {
            id: "small-1".to_string(),
            max_engagements: 10,
            max_queries: 3,
            max_title_chars: 48,
            max_prompt_tokens: 384,
            max_new_tokens: 96,
            sensitive_attributes: ["gender", "religion", "health", "ethnicity"].map(str::to_string).to_vec(),
            instruction: String::new(),
            modes: super::mode::think_alone(),
        }
    }

    /// Text that every prompt begins with, so that its keys and values need to be computed once only; may be empty.
    pub fn prefix(&self) -> String {
        super::render::instruction_line(self)
    }

    /// Reads and checks `prompt.toml`.
    pub fn load(path: &Path) -> Result<Self, PromptError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| PromptError::Io { path: shown.clone(), source })?;
        let schema: PromptSchema =
            toml::from_str(&text).map_err(|error| PromptError::Syntax { path: shown, message: error.to_string() })?;
        schema.validate()?;
        Ok(schema)
    }

    /// Checks and writes `prompt.toml`.
    pub fn save(&self, path: &Path) -> Result<(), PromptError> {
        self.validate()?;
        let shown = path.display().to_string();
        let text = toml::to_string_pretty(self)
            .map_err(|error| PromptError::Syntax { path: shown.clone(), message: error.to_string() })?;
        std::fs::write(path, text).map_err(|source| PromptError::Io { path: shown, source })
    }

    /// Checks every value; names the first that cannot work.
    pub fn validate(&self) -> Result<(), PromptError> {
        let wrong = |field, message: &str| Err(PromptError::Value { field, message: message.to_string() });
        if self.id.trim().is_empty() || self.id.chars().any(char::is_control) {
            return wrong("id", "must be a non-empty line");
        }
        if !(1..=100).contains(&self.max_engagements) {
            return wrong("max_engagements", "must be 1 to 100: the store keeps 100");
        }
        if self.max_queries > 20 {
            return wrong("max_queries", "must be at most 20: the store keeps 20");
        }
        if !(8..=1024).contains(&self.max_title_chars) {
            return wrong("max_title_chars", "must be 8 to 1024");
        }
        if self.max_prompt_tokens < 32 {
            return wrong("max_prompt_tokens", "must be at least 32");
        }
        if self.max_new_tokens < 8 {
            return wrong("max_new_tokens", "must be at least 8: the tags alone need some");
        }
        let repeated = (1..self.modes.len()).any(|place| self.modes[..place].contains(&self.modes[place]));
        if self.modes.is_empty() || repeated {
            return wrong("modes", "must name at least one of think and no_think, each once");
        }
        let tags = [super::THINK_OPEN, super::THINK_CLOSE, super::ANSWER_OPEN, super::ANSWER_CLOSE];
        if tags.iter().any(|tag| self.instruction.contains(tag)) {
            return wrong("instruction", "must not contain the think or answer tags; describe them in words");
        }
        Ok(())
    }

    /// Names everything that decides a prompt's text, the serializer's version included; part of provenance.
    pub fn hash(&self) -> String {
        let mut hasher = Xxh3::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        part(&SERIALIZER_VERSION.to_le_bytes());
        part(self.id.as_bytes());
        part(self.instruction.as_bytes());
        for size in
            [self.max_engagements, self.max_queries, self.max_title_chars, self.max_prompt_tokens, self.max_new_tokens]
        {
            part(&(size as u64).to_le_bytes());
        }
        for attribute in &self.sensitive_attributes {
            part(attribute.as_bytes());
        }
        if !super::mode::is_think_alone(&self.modes) {
            self.modes.iter().for_each(|mode| part(mode.name().as_bytes()));
        }
        format!("{:016x}", hasher.digest())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::prompt::PromptMode;

    #[test]
    fn a_saved_schema_loads_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        let schema = PromptSchema::small();
        schema.save(&path).unwrap();
        let loaded = PromptSchema::load(&path).unwrap();
        assert_eq!(loaded, schema);
        assert_eq!(loaded.hash(), schema.hash());
        let both = PromptSchema { modes: vec![PromptMode::NoThink, PromptMode::Think], ..schema };
        both.save(&path).unwrap();
        assert_eq!((PromptSchema::load(&path).unwrap(), both.mode()), (both.clone(), PromptMode::NoThink));
    }

    #[test]
    fn a_schema_from_before_there_were_modes_keeps_its_text_and_its_hash() {
        let schema = PromptSchema::small();
        let text = toml::to_string_pretty(&schema).unwrap();
        assert!(!text.contains("modes"), "{text}");
        let read: PromptSchema = toml::from_str(&text).unwrap();
        assert_eq!((read.modes.clone(), read.mode()), (vec![PromptMode::Think], PromptMode::Think));
        // As the release before wrote it.
        assert_eq!(read.hash(), "6e914bddedf67461");
    }

    #[test]
    fn wrong_values_and_missing_fields_are_named() {
        let mut schema = PromptSchema::small();
        schema.max_engagements = 0;
        assert!(schema.validate().unwrap_err().to_string().contains("max_engagements"));
        for modes in [vec![], vec![PromptMode::Think, PromptMode::Think]] {
            let schema = PromptSchema { modes, ..PromptSchema::small() };
            assert!(schema.validate().unwrap_err().to_string().contains("modes"));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        std::fs::write(&path, "id = 'x'\n").unwrap();
        assert!(PromptSchema::load(&path).unwrap_err().to_string().contains("max_engagements"));
    }

    #[test]
    fn audit_02_a_schema_with_a_field_of_a_later_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prompt.toml");
        let schema = PromptSchema::small();
        schema.save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("later = 1\n{text}")).unwrap();
        assert_eq!(PromptSchema::load(&path).unwrap(), schema);
    }

    #[test]
    fn every_field_moves_the_hash() {
        let base = PromptSchema::small();
        let mut other = base.clone();
        other.max_queries += 1;
        assert_ne!(base.hash(), other.hash());
        other = base.clone();
        other.sensitive_attributes.pop();
        assert_ne!(base.hash(), other.hash());
        let modes = [vec![PromptMode::NoThink], vec![PromptMode::Think, PromptMode::NoThink]];
        let hashes = modes.map(|modes| PromptSchema { modes, ..base.clone() }.hash());
        assert!(hashes[0] != hashes[1] && !hashes.contains(&base.hash()));
    }
}
