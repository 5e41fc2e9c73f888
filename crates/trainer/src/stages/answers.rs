//! `answers`: what a checkpoint writes for held-out users, beside what they bought: the figures of one run of an experiment.
//!
//! Language model alone, greedy unless a temperature is given, by the service's engine. Each user's hits are kept, so that arms can be compared
//! user by user. With an encoder among the inputs, and in a generated world, also what the answers are worth (`answers_worth`). Instead of a
//! checkpoint a rule may answer: what alignments are beside.

use super::answers_worth::Worth;
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
use taiji::prompt::{ParsedAnswer, PromptMode, PromptSchema, answer_text, completion, parse, render, split_answer};
use taiji_export::Precision;

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
    /// At which answers are drawn; greedy where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    /// Decides the draws.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// Who answers in place of a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<Rule>,
}

/// Answers without a language model.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    /// What was engaged with last.
    Newest,
    /// What was bought next: nothing is more similar.
    Truth,
    /// The item of highest true chance.
    BestChance,
}

struct Answers {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    if settings.temperature.is_some_and(|temperature| !(temperature > 0.0 && temperature.is_finite())) {
        return Err(KeyError::new("temperature", "must be positive; leave it out for greedy answers"));
    }
    let unused = [
        ("at", settings.rule.is_some() && !settings.at.is_empty()),
        ("temperature", settings.rule.is_some() && settings.temperature.is_some()),
        ("seed", settings.temperature.is_none() && settings.seed.is_some()),
    ];
    if let Some((key, _)) = unused.into_iter().find(|(_, unused)| *unused) {
        return Err(KeyError::new(key, "is not read here: a rule draws nothing, and greedy answers have no seed"));
    }
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
        let checkpoint = self.settings.rule.is_none().then_some(Artefact::Checkpoint);
        let needed = [Artefact::Data, Artefact::Examples].into_iter().chain(checkpoint).map(Input::one);
        needed.chain([Artefact::Encoder, Artefact::Codebook].map(Input::optional)).collect()
    }

    fn output(&self) -> Artefact {
        Artefact::Judgement
    }

    fn run(&self, inputs: &Inputs, folder: &Path, threads: Option<usize>) -> Result<(), StageError> {
        let examples = inputs.one(Artefact::Examples)?;
        let schema = PromptSchema::load(&examples.join("prompt.toml"))?;
        let (dataset, _) = dataset(inputs)?;
        let chosen = examples.join(FILTER_FILE);
        let pairs: Option<Value> = if chosen.is_file() { Some(read_json(&chosen)?) } else { None };
        let form = pairs.as_ref().and_then(|pairs| Form::deserialize(&pairs["form"]).ok()).unwrap_or_default();
        let users = self.settings.users.unwrap_or(usize::MAX);
        let cases = test_cases(&dataset, DEFAULT_TARGET, schema.max_engagements, users).cases;
        let worth = Worth::of(inputs, &dataset, schema.max_title_chars, threads)?;
        let sampling = match self.settings.temperature {
            None => Sampling::GREEDY,
            Some(temperature) => Sampling { temperature, ..Sampling::GREEDY },
        };
        let seed = self.settings.seed.unwrap_or(0);
        let threads = threads.unwrap_or(0);
        let judged = Judged { schema, form, cases, dataset: &dataset, threads, folder, worth, sampling, seed };
        let mut looks = Vec::new();
        match self.settings.rule {
            Some(rule) => looks.push(judged.judge(None, judged.by_rule(rule)?)?),
            None => {
                let checkpoint = inputs.one(Artefact::Checkpoint)?;
                let steps = self.settings.at.iter().map(|step| (Some(*step), kept_folder(checkpoint, *step)));
                for (step, weights) in steps.chain([(None, checkpoint.to_path_buf())]) {
                    looks.push(judged.look(step, &weights)?);
                }
            }
        }
        for look in &looks {
            let mean = |metric: &str| look.metrics.get(metric).map(PerUser::mean);
            let at = look.step.map_or("at the end".to_string(), |step| format!("after step {step}"));
            let shown = ["l3", "similarity", "ctcvr_percent", "format"];
            let figures = shown.into_iter().filter_map(|name| Some(format!("{name} {:.4}", mean(name)?)));
            inputs.progress().say(&format!("{at}: {}", figures.collect::<Vec<_>>().join(", ")));
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
    worth: Option<Worth>,
    sampling: Sampling,
    seed: u64,
}

impl Judged<'_> {
    fn look(&self, step: Option<u64>, weights: &Path) -> Result<LookFigures, StageError> {
        if !weights.join(taiji_export::CONFIG_FILE).is_file() {
            let message = format!("{} is not there: let the training keep its weights (keep_at)", weights.display());
            return Err(StageError::Setting { key: "at", message });
        }
        self.judge(step, self.generate(weights)?)
    }

    fn judge(&self, step: Option<u64>, texts: Vec<String>) -> Result<LookFigures, StageError> {
        let parsed: Vec<ParsedAnswer> = texts.iter().map(|text| parse(text, self.form.mode())).collect();
        let mut hits: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        for (case, parsed) in self.cases.iter().zip(&parsed) {
            for (name, hit) in self.hits(case, parsed) {
                hits.entry(name).or_default().push(hit);
            }
        }
        let mut metrics: BTreeMap<String, PerUser> =
            hits.into_iter().map(|(name, hits)| (name.to_string(), PerUser::Hits(Hits::new(&hits)))).collect();
        let mut figures = BTreeMap::new();
        if let Some(worth) = &self.worth {
            let (more, of_all) = worth.metrics(&self.cases, &parsed)?;
            metrics.extend(more);
            figures = of_all;
        }
        Ok(LookFigures { step, metrics, figures, texts: texts.into_iter().take(SHOWN).collect() })
    }

    /// What a rule would have written, in the format.
    fn by_rule(&self, rule: Rule) -> Result<Vec<String>, StageError> {
        let best = match (rule, &self.worth) {
            (Rule::BestChance, Some(worth)) => worth.best_items(&self.cases),
            (Rule::BestChance, None) => return Err(StageError::Input { artefact: Artefact::Encoder.name() }),
            _ => Vec::new(),
        };
        let item = |(place, case): (usize, &TestCase)| match rule {
            Rule::Newest => {
                case.prompt.engagements.first().map(|newest| (newest.categories.clone(), newest.title.clone()))
            }
            Rule::Truth => case.target.as_ref().map(|item| (item.categories.clone(), item.title.clone())),
            Rule::BestChance => {
                let item = &self.dataset.items[best[place]];
                Some((item.categories.clone(), item.title.clone()))
            }
        };
        let text = |named: Option<(Vec<String>, String)>| {
            let answer = named.map(|(path, title)| answer_text(&path, &title, self.schema.max_title_chars));
            completion("by rule", &answer.unwrap_or_default(), self.form.mode())
        };
        Ok(self.cases.iter().enumerate().map(item).map(text).collect())
    }

    /// The answers of the weights in a folder, in the order of the users.
    fn generate(&self, weights: &Path) -> Result<Vec<String>, StageError> {
        let graphs = self.folder.join("graphs");
        export_for_engine(weights, &graphs, Precision::F32)?;
        let most = self.schema.max_new_tokens;
        let options = LlmOptions {
            threads: self.threads,
            max_rows: ROWS,
            // The form may close the thinking: one token of our own tokenizers, several of others', and never more than it has bytes.
            max_len: self.schema.max_prompt_tokens + self.form.prompt("").len() + most,
            queue_limit: ROWS,
            queue_tokens: usize::MAX,
            ..LlmOptions::default()
        };
        let llm = OnnxLlm::load(&graphs, options)?;
        let count = |text: &str| llm.count_tokens(text);
        let request = |(place, case): (usize, &TestCase)| {
            let prompt = self.form.prompt(&render(&self.schema, &case.prompt, PromptMode::Think, &count).text);
            let sampling = Sampling { seed: self.seed << 32 | place as u64, ..self.sampling };
            GenerateRequest { sampling: Some(sampling), ..GenerateRequest::new(prompt, most) }
        };
        let requests: Vec<GenerateRequest> = self.cases.iter().enumerate().map(request).collect();
        let written = llm.generate_all(&requests).into_iter().collect::<Result<Vec<_>, _>>()?;
        drop(llm);
        std::fs::remove_dir_all(&graphs).map_err(StageError::io(&graphs))?;
        Ok(written.into_iter().map(|generation| generation.text).collect())
    }

    /// What of a text is right. Evidence is judged where the purchase's causes are known.
    fn hits(&self, case: &TestCase, parsed: &ParsedAnswer) -> Vec<(&'static str, bool)> {
        let compared = GenerationCase::new(parsed.clone(), case.target.as_ref(), self.schema.max_title_chars);
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
