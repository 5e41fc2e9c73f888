//! `reason`: a teacher that is told what was bought next writes why (RUPR).

use super::examples::read_origins;
use super::settings::{Context, KeyError, check_share, read, value};
use crate::data::write_jsonl;
use crate::reason::endpoint::{Endpoint, INDIFFERENT};
use crate::reason::{Group, Lesson, Origin, Planted, Refusals, RuleTeacher, derived_lesson, has_cause, sift};
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, write_json};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::PromptSchema;

/// What was written, refused and spent.
pub const REASON_FILE: &str = "reason.json";
/// Both parts of a folder of reasons.
pub const SPLITS: [&str; 2] = ["train", "validation"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Reasons asked for a prompt.
    #[serde(default = "three")]
    k: usize,
    /// A reason whose Jaccard index with an earlier one of its prompt is above this is left out; 1 = none is.
    #[serde(default = "nearly")]
    same: f64,
    /// Most prompts, the first ones [all].
    #[serde(skip_serializing_if = "Option::is_none")]
    prompts: Option<usize>,
    /// Of what is drawn.
    #[serde(default = "seven")]
    seed: u64,
    teacher: Teacher,
}

fn three() -> usize {
    3
}

fn nearly() -> f64 {
    0.9
}

fn seven() -> u64 {
    7
}

/// Who writes.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Teacher {
    /// Of a world whose purchases have causes.
    Rule(RuleTeacher),
    /// Of data whose reasons are read off the history.
    Derived {
        /// Share of reasons with somebody else's evidence.
        wrong: f64,
    },
    /// A language model behind an OpenAI-compatible endpoint.
    Openai(Endpoint),
}

impl Teacher {
    fn name(&self) -> &'static str {
        match self {
            Teacher::Rule(_) => "rule",
            Teacher::Derived { .. } => "derived",
            Teacher::Openai(_) => "openai",
        }
    }

    fn check(&self) -> Result<(), KeyError> {
        match self {
            Teacher::Rule(RuleTeacher { wrong, .. }) | Teacher::Derived { wrong } => {
                check_share("teacher.wrong", *wrong)
            }
            Teacher::Openai(endpoint) => endpoint.check().map_err(|(key, message)| KeyError::new(key, message)),
        }
    }
}

struct Reasons {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    settings.teacher.check()?;
    check_share("same", settings.same)?;
    if settings.k == 0 {
        return Err(KeyError::new("k", "must be positive"));
    }
    let mut value = value(&settings)?;
    if let Some(teacher) = value["teacher"].as_object_mut() {
        INDIFFERENT.iter().for_each(|key| drop(teacher.shift_remove(*key)));
    }
    Ok(Arc::new(Reasons { settings, value }))
}

/// What a teacher wrote for one prompt, and what each text is worth where that is known.
struct Written {
    texts: Vec<String>,
    planted: Option<Vec<Planted>>,
}

impl Stage for Reasons {
    fn kind(&self) -> &'static str {
        "reason"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Examples)]
    }

    fn output(&self) -> Artefact {
        Artefact::Reasons
    }

    /// What an endpoint has answered is kept.
    fn resumes(&self) -> bool {
        true
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let examples = inputs.one(Artefact::Examples)?;
        let max_title_chars = PromptSchema::load(&examples.join("prompt.toml"))?.max_title_chars;
        let mut report = BTreeMap::new();
        for (stream, split) in SPLITS.into_iter().enumerate() {
            let mut origins = read_origins(examples, split)?;
            origins.truncate(self.settings.prompts.unwrap_or(usize::MAX));
            let (written, spent) = match &self.settings.teacher {
                Teacher::Rule(teacher) => (self.by_rule(&origins, stream as u64, teacher)?, None),
                Teacher::Derived { wrong } => (self.derived(&origins, stream as u64, *wrong)?, None),
                Teacher::Openai(endpoint) => {
                    let own = folder.join(split);
                    std::fs::create_dir_all(&own).map_err(StageError::io(&own))?;
                    let (texts, spent) =
                        endpoint.ask(&origins, self.settings.k, max_title_chars, &own, inputs.progress())?;
                    (texts.into_iter().map(|texts| Written { texts, planted: None }).collect(), Some(spent))
                }
            };
            let mut counts = self.keep(split, origins, written, folder)?;
            counts["spent"] = json!(spent);
            inputs.progress().say(&format!("{split}: {} reasons for {} prompts", counts["reasons"], counts["prompts"]));
            report.insert(split, counts);
        }
        let report =
            json!({ "teacher": self.settings.teacher.name(), "asked_a_prompt": self.settings.k, "parts": report });
        write_json(&folder.join(REASON_FILE), &report)
    }
}

impl Reasons {
    /// Everybody has a stream of their own, so that the first prompts' reasons do not depend on how many there are.
    fn random(&self, stream: u64, prompt: usize) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        random.set_stream(2 * prompt as u64 + stream);
        random
    }

    /// Purchases of the world that have no cause (what everybody owns at the beginning) get no reason.
    fn by_rule(&self, origins: &[Origin], stream: u64, teacher: &RuleTeacher) -> Result<Vec<Written>, StageError> {
        if !origins.is_empty() && !origins.iter().any(|origin| has_cause(&origin.reasons)) {
            let message = "the purchases of these data have no known causes: give derived".to_string();
            return Err(StageError::Setting { key: "teacher.kind", message });
        }
        let lessons = |(place, origin): (usize, &Origin)| {
            let mut random = self.random(stream, place);
            let lessons = (0..self.settings.k).map_while(|_| teacher.write(&origin.reasons, &mut random));
            written(lessons)
        };
        Ok(origins.iter().enumerate().map(lessons).collect())
    }

    fn derived(&self, origins: &[Origin], stream: u64, wrong: f64) -> Result<Vec<Written>, StageError> {
        if origins.iter().any(|origin| has_cause(&origin.reasons)) {
            let message = "the purchases of these data have causes: give rule".to_string();
            return Err(StageError::Setting { key: "teacher.kind", message });
        }
        let lessons = |(place, origin): (usize, &Origin)| {
            let mut random = self.random(stream, place);
            // The next one in the file is mostly another purchase of the same user: half the file away is somebody else.
            let stranger = &origins[(place + origins.len() / 2) % origins.len()];
            written((0..self.settings.k).map(|_| derived_lesson(origin, stranger, wrong, &mut random)))
        };
        Ok(origins.iter().enumerate().map(lessons).collect())
    }

    /// Keeps what is a reason, writes it and what is known of it beside, and counts.
    fn keep(
        &self,
        split: &str,
        origins: Vec<Origin>,
        written: Vec<Written>,
        folder: &Path,
    ) -> Result<Value, StageError> {
        let mut refusals = Refusals::default();
        let (mut groups, mut flags) = (Vec::with_capacity(origins.len()), Vec::with_capacity(origins.len()));
        let mut without = 0;
        let mut planted: BTreeMap<Planted, usize> = BTreeMap::new();
        for (origin, Written { texts, planted: known }) in origins.into_iter().zip(written) {
            let kept = sift(&texts, &origin.title, self.settings.same, &mut refusals);
            let own: Vec<Planted> =
                known.iter().flat_map(|all| kept.iter().map(move |(place, _)| all[*place])).collect();
            own.iter().for_each(|one| *planted.entry(*one).or_default() += 1);
            without += usize::from(kept.is_empty());
            flags.push(own);
            groups.push(Group {
                user_id: origin.user_id,
                prompt: origin.prompt,
                categories: origin.categories,
                title: origin.title,
                teacher: self.settings.teacher.name().to_string(),
                reasons: kept.into_iter().map(|(_, text)| text).collect(),
            });
        }
        let reasons: usize = groups.iter().map(|group| group.reasons.len()).sum();
        let counts = json!({
            "prompts": groups.len(), "prompts_without_reason": without, "reasons": reasons,
            "planted": planted, "refused": refusals,
        });
        write_jsonl(&folder.join(format!("{split}.jsonl")), groups)?;
        if flags.iter().any(|own| !own.is_empty()) {
            write_jsonl(&folder.join(format!("{split}.planted.jsonl")), flags)?;
        }
        Ok(counts)
    }
}

fn written(lessons: impl Iterator<Item = Lesson>) -> Written {
    let (texts, planted) = lessons.map(|lesson| (lesson.text, lesson.planted)).unzip();
    Written { texts, planted: Some(planted) }
}
