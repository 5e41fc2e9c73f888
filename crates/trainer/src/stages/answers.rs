//! `answers`: what a checkpoint writes for held-out users, beside what they bought: the figures of one run of an experiment.
//!
//! Language model alone, greedy, by the service's engine. Each user's hits are kept, so that arms can be compared user by user.

use super::filter::FILTER_FILE;
use super::judge::JUDGED_FILE;
use super::settings::{Context, KeyError, read, value};
use super::source::dataset;
use crate::data::{DEFAULT_TARGET, Dataset, TestCase, test_cases};
use crate::evaluate::{GenerationCase, Hits, LookFigures, PerUser};
use crate::models::export_for_engine;
use crate::reason::{Form, check, has_cause};
use crate::sft::training::kept_folder;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, read_json, write_json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use taiji::llm::{GenerateRequest, LlmEngine, LlmOptions, OnnxLlm, Sampling};
use taiji::prompt::{PromptMode, PromptSchema, parse, render, split_answer};

/// Prompts of one call of the engine, and rows of its pool.
const ROWS: usize = 32;
/// Texts kept for reading.
const SHOWN: usize = 8;

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Most users; by default all of the data.
    users: Option<usize>,
    /// Steps that are looked at before the last one; the training keeps their weights (`keep_at`).
    at: Vec<u64>,
}

struct Answers {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    let value = value(&settings)?;
    Ok(Arc::new(Answers { settings, value }))
}

impl Stage for Answers {
    fn kind(&self) -> &'static str {
        "answers"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    /// The data are the held-out ones.
    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Data), Input::one(Artefact::Examples), Input::one(Artefact::Checkpoint)]
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let (examples, checkpoint) = (inputs.one(Artefact::Examples)?, inputs.one(Artefact::Checkpoint)?);
        let schema = PromptSchema::load(&examples.join("prompt.toml"))?;
        let (dataset, _) = dataset(inputs)?;
        let chosen = examples.join(FILTER_FILE);
        let pairs: Option<Value> = if chosen.is_file() { Some(read_json(&chosen)?) } else { None };
        let form = pairs.as_ref().and_then(|pairs| Form::deserialize(&pairs["form"]).ok()).unwrap_or_default();
        let users = self.settings.users.unwrap_or(usize::MAX);
        let cases = test_cases(&dataset, DEFAULT_TARGET, schema.max_engagements, users).cases;
        let judged = Judged { schema, form, cases, dataset: &dataset, threads: threads.unwrap_or(0), folder };
        let steps = self.settings.at.iter().map(|step| (Some(*step), kept_folder(checkpoint, *step)));
        let mut looks = Vec::new();
        for (step, weights) in steps.chain([(None, checkpoint.to_path_buf())]) {
            let look = judged.look(step, &weights)?;
            let l3 = look.metrics.get("l3").map_or(0.0, PerUser::mean);
            let at = step.map_or("at the end".to_string(), |step| format!("after step {step}"));
            inputs.progress().say(&format!("{at}: l3 {l3:.4}"));
            looks.push(look);
        }
        write_json(&folder.join(JUDGED_FILE), &json!({ "pairs": pairs, "looks": looks }))
    }
}

struct Judged<'a> {
    schema: PromptSchema,
    form: Form,
    cases: Vec<TestCase>,
    dataset: &'a Dataset,
    threads: usize,
    folder: &'a Path,
}

impl Judged<'_> {
    fn look(&self, step: Option<u64>, weights: &Path) -> Result<LookFigures, StageError> {
        if !weights.join(taiji_export::CONFIG_FILE).is_file() {
            let message = format!("{} is not there: let the training keep its weights (keep_at)", weights.display());
            return Err(StageError::Setting { key: "at", message });
        }
        let texts = self.generate(weights)?;
        let mut metrics: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        for (case, text) in self.cases.iter().zip(&texts) {
            for (name, hit) in self.hits(case, text) {
                metrics.entry(name).or_default().push(hit);
            }
        }
        let metrics =
            metrics.into_iter().map(|(name, hits)| (name.to_string(), PerUser::Hits(Hits::new(&hits)))).collect();
        Ok(LookFigures { step, metrics, texts: texts.into_iter().take(SHOWN).collect() })
    }

    /// The answers of the weights in a folder, in the order of the users.
    fn generate(&self, weights: &Path) -> Result<Vec<String>, StageError> {
        let graphs = self.folder.join("graphs");
        export_for_engine(weights, &graphs)?;
        let most = self.schema.max_new_tokens;
        let options = LlmOptions {
            threads: self.threads,
            max_rows: ROWS,
            // The form may close the thinking: a token more.
            max_len: self.schema.max_prompt_tokens + 1 + most,
            queue_limit: ROWS,
            queue_tokens: usize::MAX,
            ..LlmOptions::default()
        };
        let llm = OnnxLlm::load(&graphs, options)?;
        let count = |text: &str| llm.count_tokens(text);
        let request = |case: &TestCase| {
            let prompt = self.form.prompt(&render(&self.schema, &case.prompt, PromptMode::Think, &count).text);
            GenerateRequest { sampling: Some(Sampling::GREEDY), ..GenerateRequest::new(prompt, most) }
        };
        let requests: Vec<GenerateRequest> = self.cases.iter().map(request).collect();
        let written = llm.generate_all(&requests).into_iter().collect::<Result<Vec<_>, _>>()?;
        drop(llm);
        std::fs::remove_dir_all(&graphs).map_err(StageError::io(&graphs))?;
        Ok(written.into_iter().map(|generation| generation.text).collect())
    }

    /// What of a text is right. Evidence is judged where the purchase's causes are known.
    fn hits(&self, case: &TestCase, text: &str) -> Vec<(&'static str, bool)> {
        let parsed = parse(text, self.form.mode());
        let compared = GenerationCase::new(parsed, case.target.as_ref(), self.schema.max_title_chars);
        let right = compared.hits();
        let mut hits = vec![("format", right.format), ("title", right.title)];
        let levels = ["l1", "l2", "l3"].into_iter().zip(right.levels);
        hits.extend(levels.map(|(name, hit)| (name, hit.unwrap_or(false))));
        let latent = self.dataset.users[case.user].latent.as_ref();
        let reasons = latent.and_then(|latent| latent.next_purchase.as_ref()).map(|next| next.reasons.as_slice());
        let known = reasons.filter(|reasons| has_cause(reasons));
        if let Some(reasons) = known {
            let (path, _) = split_answer(&compared.written.answer);
            let checked = check(&compared.written.reasoning, &path, reasons);
            hits.push(("evidence", checked.evidence));
            hits.push(("cause", checked.decides));
            hits.push(("follows", checked.follows));
        }
        hits
    }
}
