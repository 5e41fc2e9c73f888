//! `filter`: which pairs of prompt and reason a student is taught (ORFT), and in what form.

use super::examples::{Line, read_lines};
use super::score::{SCORES_FILE, read_groups, read_planted};
use super::settings::{Context, KeyError, check_share, read, value};
use crate::data::write_jsonl;
use crate::reason::choose::{Chosen, Method, Pair, choose, draw, threshold};
use crate::reason::{Form, Group, Planted, Scores};
use crate::sft::tokenizer::TOKENIZER_FILE;
use crate::stage::{Artefact, Input, Inputs, Stage, StageError, copy_file, read_json, write_json};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use taiji::prompt::PromptSchema;

/// What was taken and left, and why.
pub const FILTER_FILE: &str = "filter.json";
/// Pairs that were left and are shown, the dearest and those just above the threshold.
const SHOWN: usize = 5;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    method: Method,
    /// Share of the validation subset that lies below the threshold.
    #[serde(default = "median")]
    percentile: f64,
    /// Most pairs of the validation subset.
    #[serde(default = "subset")]
    subset: usize,
    /// So many pairs of those taken, at random; fewer is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pairs: Option<usize>,
    #[serde(default)]
    form: Form,
    /// Of what is drawn.
    #[serde(default = "seven")]
    seed: u64,
}

fn median() -> f64 {
    0.5
}

/// As the paper's.
fn subset() -> usize {
    2_300
}

fn seven() -> u64 {
    7
}

struct Filter {
    settings: Settings,
    value: Value,
}

pub(super) fn make(table: toml::Table, _: &Context) -> Result<Arc<dyn Stage>, KeyError> {
    let settings: Settings = read(table)?;
    check_share("percentile", settings.percentile)?;
    let value = value(&settings)?;
    Ok(Arc::new(Filter { settings, value }))
}

/// What is chosen from.
struct Offered {
    groups: Vec<Group>,
    scores: Vec<Scores>,
    planted: Option<Vec<Vec<Planted>>>,
}

impl Stage for Filter {
    fn kind(&self) -> &'static str {
        "filter"
    }

    fn version(&self) -> u32 {
        1
    }

    fn settings(&self) -> Value {
        self.value.clone()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![Input::one(Artefact::Examples), Input::one(Artefact::Reasons), Input::optional(Artefact::Scores)]
    }

    fn output(&self) -> Artefact {
        Artefact::Examples
    }

    fn run(&self, inputs: &Inputs, folder: &Path, _: Option<usize>) -> Result<(), StageError> {
        let examples = inputs.one(Artefact::Examples)?;
        let [train, validation] = [self.offered(inputs, "train")?, self.offered(inputs, "validation")?];
        let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
        let Settings { method, percentile, subset, .. } = self.settings;
        let threshold = threshold(method, &validation.groups, &validation.scores, percentile, subset);
        let chosen = choose(method, &train.groups, &train.scores, threshold.unwrap_or(f64::INFINITY), &mut random);
        let taken = self.so_many(chosen.taken.clone(), &mut random)?;
        let schema = PromptSchema::load(&examples.join("prompt.toml"))?;
        let firsts = choose(Method::One, &validation.groups, &[], 0.0, &mut random).taken;
        for (name, part, pairs) in [("train", &train, &taken), ("validation", &validation, &firsts)] {
            let lines = self.lines(&part.groups, pairs, schema.max_title_chars, &mut random);
            write_jsonl(&folder.join(format!("{name}.jsonl")), lines)?;
        }
        for file in ["codebook.jsonl", TOKENIZER_FILE, "prompt.toml"] {
            copy_file(&examples.join(file), &folder.join(file))?;
        }
        let mut report = self.report(&train, &chosen, &taken, threshold);
        if let Some(scores) = inputs.optional(Artefact::Scores) {
            report["scores"] = read_json(&scores.join(SCORES_FILE))?;
        }
        inputs.progress().say(&format!("{} pairs of {} prompts", report["pairs"], report["distinct_prompts"]));
        write_json(&folder.join(FILTER_FILE), &report)
    }
}

impl Filter {
    fn offered(&self, inputs: &Inputs, split: &str) -> Result<Offered, StageError> {
        let reasons = inputs.one(Artefact::Reasons)?;
        let scores = match inputs.optional(Artefact::Scores) {
            Some(folder) => read_lines(&folder.join(format!("{split}.jsonl")))?,
            None if self.settings.method.needs_scores() => {
                return Err(StageError::Input { artefact: Artefact::Scores.name() });
            }
            None => Vec::new(),
        };
        let groups = read_groups(reasons, split)?;
        let fits = |(group, scores): (&Group, &Scores)| group.reasons.len() == scores.with.len();
        if !scores.is_empty() && (groups.len() != scores.len() || !groups.iter().zip(&scores).all(fits)) {
            let message = "the scores are those of other reasons: let both stages stand on the same".to_string();
            return Err(StageError::Setting { key: "from", message });
        }
        Ok(Offered { planted: read_planted(reasons, split)?, groups, scores })
    }

    fn so_many(&self, taken: Vec<Pair>, random: &mut ChaCha8Rng) -> Result<Vec<Pair>, StageError> {
        let Some(wanted) = self.settings.pairs else { return Ok(taken) };
        if taken.len() < wanted {
            let message =
                format!("{wanted} are asked for and {} are left: lower it, or make more reasons", taken.len());
            return Err(StageError::Setting { key: "pairs", message });
        }
        Ok(draw(taken, wanted, random))
    }

    fn lines(&self, groups: &[Group], pairs: &[Pair], max_title_chars: usize, random: &mut ChaCha8Rng) -> Vec<Line> {
        // Each one's stranger is the next in a random order: nobody is their own.
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        crate::draw::shuffle(&mut order, random);
        let mut stranger = vec![0; pairs.len()];
        for (place, own) in order.iter().enumerate() {
            stranger[*own] = order[(place + 1) % order.len()];
        }
        let reason = |(group, reason): Pair| groups[group].reasons[reason].as_str();
        let form = self.settings.form;
        let line = |(place, pair): (usize, &Pair)| {
            let group = &groups[pair.0];
            let completion = form.completion(group, reason(*pair), reason(pairs[stranger[place]]), max_title_chars);
            Line { prompt: form.prompt(&group.prompt), completion }
        };
        pairs.iter().enumerate().map(line).collect()
    }

    fn report(&self, train: &Offered, chosen: &Chosen, taken: &[Pair], threshold: Option<f64>) -> Value {
        let planted = |pairs: &mut dyn Iterator<Item = Pair>| {
            let mut counts: BTreeMap<Planted, usize> = BTreeMap::new();
            for (group, reason) in pairs {
                let known = train.planted.as_ref().map(|all| all[group][reason]);
                known.into_iter().for_each(|one| *counts.entry(one).or_default() += 1);
            }
            counts
        };
        let mut left = chosen.left.clone();
        left.sort_by(|one, other| other.1.total_cmp(&one.1));
        let show = |((group, reason), cost): &(Pair, f64)| {
            let Group { reasons, title, .. } = &train.groups[*group];
            json!({ "nats": cost, "reason": reasons[*reason], "title": title })
        };
        json!({
            "method": self.settings.method,
            "form": self.settings.form,
            "threshold_nats": threshold,
            "pairs_offered": crate::reason::choose::pairs(&train.groups).count(),
            "pairs_taken_by_method": chosen.taken.len(),
            "pairs_left_by_method": chosen.left.len(),
            "pairs_too_long_to_score": chosen.unscored.len(),
            "pairs": taken.len(),
            "distinct_prompts": taken.iter().map(|(group, _)| group).collect::<BTreeSet<_>>().len(),
            "planted_offered": planted(&mut crate::reason::choose::pairs(&train.groups)),
            "planted_taken": planted(&mut taken.iter().copied()),
            "dearest_left": left.iter().take(SHOWN).map(show).collect::<Vec<_>>(),
            "cheapest_left": left.iter().rev().take(SHOWN).map(show).collect::<Vec<_>>(),
        })
    }
}
