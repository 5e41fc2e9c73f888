//! Judging a bundle on held-out users: does it write well, do its codes and neighbours mean something?

use crate::data::{DEFAULT_TARGET, Dataset, TestCase, TestSet, test_cases};
use crate::evaluate::{
    EvaluationReport, GenerationCase, RuleFigure, Written, code_health, compare_with_fitted, compare_with_rules,
    jaccard_with_neighbours, neighbour_agreement, score_generations,
};
use crate::models::{DEFAULT_THREADS, ModelFolders, ServedModels};
use crate::stage::StageError;
use crate::stats::StatsError;
use crate::synth::{self, DEFAULT_WORLD_SEED, Rules, SynthSettings, WorldKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use taiji::answer::Answer;
use taiji::bundle::{CODEBOOK_FILE, ENCODER_FOLDER, LLM_FOLDER, Manifest, generation_dir};
use taiji::catalogue::{Grounding, read_catalogue};
use taiji::event::{ActionTable, Item};
use taiji::prompt::{PromptInput, PromptMode, PromptSchema};
use taiji::retrieve::{FaissUserIndex, UserIndex, UserSnapshot};

/// Lists searched per query; all of a small index.
const NPROBE: usize = 64;

/// What `report.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Judged {
    /// Users judged and where they come from.
    pub users: usize,
    /// In words.
    pub source: String,
    /// Whether the model reasoned before its answers.
    #[serde(default)]
    pub mode: PromptMode,
    /// The figures.
    pub report: EvaluationReport,
    /// The same prompts answered twice gave the same codes.
    pub repeatable: bool,
    /// Mean tokens.
    pub prompt_tokens: f64,
    /// Mean tokens.
    pub new_tokens: f64,
}

/// Judges models and a generation on the last purchases of at most so many users of a data set, evenly over it. `source`: in
/// words, for the report.
pub fn judge_held_out(
    dataset: &Dataset,
    users: usize,
    models: &ServedModels,
    generation: &Path,
    seed: u64,
    source: String,
) -> Result<Judged, StageError> {
    judge_cases(&last_targets(dataset, models, users), dataset, models, generation, (seed, None), source)
}

/// On whom a finished bundle is judged.
#[derive(Debug, Clone)]
pub enum HeldOut {
    /// Users of a generated world, of a seed that training did not see.
    World(WorldKind),
    /// The ends of the histories of a data folder.
    Files(PathBuf),
}

/// Judges a finished bundle: `taiji-trainer evaluate`. `mode`: by default the bundle's first.
pub fn evaluate_bundle(
    bundle: &Path,
    held_out_users: &HeldOut,
    mode: Option<PromptMode>,
    seed: u64,
    users: usize,
) -> Result<Judged, StageError> {
    let (mut models, generation) = open_bundle(bundle)?;
    models.ask(mode.unwrap_or(models.schema.mode()))?;
    match held_out_users {
        HeldOut::World(kind) => {
            let world = SynthSettings { kind: *kind, ..SynthSettings::default() };
            let (dataset, cases) = held_out(world, users, seed, &models);
            let source = format!("generated users of seed {seed}, never seen in training");
            judge_cases(&cases, &dataset, &models, &generation, (seed, fitted_rules(*kind)), source)
        }
        HeldOut::Files(folder) => {
            let dataset = Dataset::load(folder, &ActionTable::default())?;
            let source = format!("last items of {}", folder.display());
            judge_held_out(&dataset, users, &models, &generation, seed, source)
        }
    }
}

/// Rules for a world that has some, fitted on as many users as the demo's recipe trains on, and on the same ones.
fn fitted_rules(kind: WorldKind) -> Option<Rules> {
    const USERS: usize = 12_000;
    let settings = SynthSettings { kind, users: USERS, ..SynthSettings::default() };
    match kind {
        WorldKind::Interests => None,
        WorldKind::Reason => Rules::fitted(&synth::generate(&settings).dataset(), DEFAULT_WORLD_SEED),
    }
}

/// The models of a finished bundle, and the folder of its generation.
pub fn open_bundle(bundle: &Path) -> Result<(ServedModels, PathBuf), StageError> {
    let manifest = Manifest::read(bundle)?;
    manifest.verify(bundle)?;
    let schema = PromptSchema::load(&bundle.join("prompt.toml"))?;
    let generation = generation_dir(bundle, manifest.generation);
    let items = items_of(&generation)?;
    let folders = ModelFolders {
        llm: bundle.join(LLM_FOLDER),
        encoder: bundle.join(ENCODER_FOLDER),
        codebook: bundle.join(CODEBOOK_FILE),
    };
    Ok((ServedModels::open(&folders, &schema, &items, DEFAULT_THREADS)?, generation))
}

/// The items of a generation's catalogue.
pub fn items_of(generation: &Path) -> Result<Vec<Item>, StageError> {
    let rows = read_catalogue(&generation.join("catalogue.parquet"))?;
    Ok(rows.iter().map(|row| (*row.item).clone()).collect())
}

/// Prompts of generated users that training never saw, and the data set they come from.
pub(super) fn held_out(world: SynthSettings, users: usize, seed: u64, models: &ServedModels) -> (Dataset, TestSet) {
    let per_user = world.events as f64 / world.users.max(1) as f64;
    let events = (per_user * users as f64) as usize;
    let dataset = synth::generate(&SynthSettings { users, events, seed, ..world }).dataset();
    let cases = last_targets(&dataset, models, users);
    (dataset, cases)
}

/// The last target of each user, at most `users` of them, evenly over the file.
fn last_targets(dataset: &Dataset, models: &ServedModels, users: usize) -> TestSet {
    test_cases(dataset, DEFAULT_TARGET, models.schema.max_engagements, users)
}

fn judge_cases(
    set: &TestSet,
    dataset: &Dataset,
    models: &ServedModels,
    generation: &Path,
    (seed, rules): (u64, Option<Rules>),
    source: String,
) -> Result<Judged, StageError> {
    let inputs: Vec<PromptInput> = set.cases.iter().map(|case| case.prompt.clone()).collect();
    let answers = models.answer(&inputs)?;
    let again = models.answer(&inputs[..inputs.len().min(64)])?;
    let repeatable = again.iter().zip(&answers).all(|(second, first)| second.codes == first.codes);
    let title_chars = models.schema.max_title_chars;
    let written: Vec<Written> =
        set.cases.iter().zip(&answers).map(|(case, answer)| written(case, answer, title_chars)).collect();
    let comparison = compare_with_rules(dataset, set, &written, DEFAULT_TARGET, title_chars)?;
    let fitted_rules = rules.map(|fitted| beside(&fitted, &set.cases, &written)).transpose()?.unwrap_or_default();
    let cases: Vec<GenerationCase> = written.into_iter().map(|written| written.case).collect();
    let codes: Vec<Vec<u16>> = answers.iter().map(|answer| answer.codes.clone()).collect();
    let people = People::new(&set.cases, dataset, models, generation)?;
    let neighbours = people.neighbours(&set.cases, &answers, models, generation)?;
    let mean =
        |pick: fn(&Answer) -> usize| answers.iter().map(pick).sum::<usize>() as f64 / answers.len().max(1) as f64;
    Ok(Judged {
        users: set.cases.len(),
        source,
        mode: models.mode,
        report: EvaluationReport {
            protocol: Some(set.protocol.clone()),
            generations: Some(score_generations(&cases)),
            comparison: Some(comparison),
            fitted_rules,
            codes: Some(code_health(&codes)),
            neighbours: Some(neighbour_agreement(&people.top_categories, &neighbours)),
            histories: Some(jaccard_with_neighbours(&people.histories, &neighbours, seed)),
        },
        repeatable,
        prompt_tokens: mean(|answer| answer.prompt_tokens),
        new_tokens: mean(|answer| answer.new_tokens),
    })
}

fn written(case: &TestCase, answer: &Answer, max_title_chars: usize) -> Written {
    let (item_id, categories) = match &answer.grounding {
        Grounding::Item { id, categories } => (Some(id.clone()), categories.clone()),
        Grounding::Category(path) => (None, path.clone()),
        Grounding::None => (None, Vec::new()),
    };
    let case = GenerationCase::new(answer.parsed.clone(), case.target.as_ref(), max_title_chars);
    Written { case, item_id, categories }
}

/// The leaves that the rules name, beside those that the model names.
fn beside(rules: &Rules, cases: &[TestCase], written: &[Written]) -> Result<Vec<RuleFigure>, StatsError> {
    let mut model = Vec::new();
    let mut hits: Vec<(&str, Vec<bool>)> = Vec::new();
    for (case, written) in cases.iter().zip(written) {
        let Some((guesses, bought)) = rules.guesses(&case.prompt).zip(case.target.as_ref()) else { continue };
        model.push(written.case.hits().levels[2] == Some(true));
        hits.resize_with(guesses.len(), Default::default);
        for ((name, hits), guess) in hits.iter_mut().zip(&guesses) {
            *name = guess.rule;
            hits.push(guess.path == bought.categories);
        }
    }
    compare_with_fitted(&model, &hits)
}

/// The judged users followed by the users of the index: one numbering for both.
struct People {
    top_categories: Vec<Option<String>>,
    histories: Vec<BTreeSet<String>>,
    /// Users of the index by row; the first has the number `judged`, the others follow.
    index_users: Vec<String>,
    judged: usize,
}

impl People {
    fn new(
        cases: &[TestCase],
        dataset: &Dataset,
        models: &ServedModels,
        generation: &Path,
    ) -> Result<People, StageError> {
        let (users, snapshot) = UserSnapshot::read(&generation.join("users.parquet"))?;
        let mut people =
            People { top_categories: Vec::new(), histories: Vec::new(), index_users: Vec::new(), judged: cases.len() };
        for case in cases {
            // What lies behind the cut, the target first, is not history.
            let seen = dataset.users[case.user].engagements_before(case.cut).iter();
            people.add(seen.map(|behaviour| behaviour.item_id.clone()).collect(), models);
        }
        for user in &users {
            let items = snapshot.engagements(user).unwrap_or_default();
            people.add(items.into_iter().map(|behaviour| behaviour.item_id).collect(), models);
        }
        people.index_users = users;
        Ok(people)
    }

    fn add(&mut self, items: Vec<String>, models: &ServedModels) {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for item in &items {
            if let Some(category) = models.catalogue.get(item).and_then(|item| item.categories.first().cloned()) {
                *counts.entry(category).or_default() += 1;
            }
        }
        let top = counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then_with(|| b.0.cmp(&a.0)));
        self.top_categories.push(top.map(|(category, _)| category));
        self.histories.push(items.into_iter().collect());
    }

    /// The neighbour each judged user gets from the index, never oneself.
    fn neighbours(
        &self,
        cases: &[TestCase],
        answers: &[Answer],
        models: &ServedModels,
        generation: &Path,
    ) -> Result<Vec<Option<usize>>, StageError> {
        let places = self.index_users.iter().enumerate();
        let numbers: HashMap<&str, usize> = places.map(|(row, user)| (user.as_str(), self.judged + row)).collect();
        let users = self.index_users.clone();
        let index = FaissUserIndex::load(&generation.join("users.faiss"), users, models.encoder.dim(), NPROBE)?;
        let mut neighbours = Vec::new();
        for (case, answer) in cases.iter().zip(answers) {
            let found = index.search(&answer.vector, 1, &case.user_id)?;
            neighbours.push(found.first().and_then(|neighbour| numbers.get(neighbour.user.as_str()).copied()));
        }
        // Users of the index are there to be neighbours; they have none themselves.
        neighbours.resize(self.histories.len(), None);
        Ok(neighbours)
    }
}
