//! What the pipeline makes of users as of moments of the past.
//!
//! In: moments. Out: a text each, and of each distinct text its vector. Called by `stages`, read by `features`.

use super::{Generations, LiftError};
use crate::data::{Cut, Dataset, day_of, read_lines, write_jsonl};
use crate::index::has_opted_out;
use crate::nn::TensorFile;
use crate::rank::Point;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use taiji::prompt::{ParsedAnswer, PromptInput};

const ROWS_FILE: &str = "backfill.jsonl";
const TEXTS_FILE: &str = "texts.jsonl";
const VECTORS_FILE: &str = "vectors.safetensors";
const GENERATIONS_FILE: &str = "generations.jsonl";

/// What is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Embed {
    /// As served: answer and reason.
    #[default]
    Served,
    /// The answer alone.
    Answer,
    /// The reason alone.
    Reason,
    /// The history itself: no language model is asked.
    History,
    /// Nothing: items have no texts. For neighbours that need none.
    Nothing,
}

impl Embed {
    /// The text of what was written.
    pub fn of(self, written: &ParsedAnswer) -> String {
        match self {
            Embed::Answer => written.answer.clone(),
            Embed::Reason => written.reasoning.clone(),
            Embed::Nothing => String::new(),
            Embed::Served | Embed::History => written.embedding_text(),
        }
    }
}

/// What a history says without a language model: searches, then what was done, newest first.
pub fn history_text(input: &PromptInput) -> String {
    let engaged = input.engagements.iter().map(|item| format!("{}: {}", item.categories.join(" > "), item.title));
    input.queries.iter().cloned().chain(engaged).collect::<Vec<_>>().join(". ")
}

/// Settings of a backfill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackfillSettings {
    /// What is embedded.
    pub embed: Embed,
    /// Features are made so long before a point.
    pub age_ms: i64,
    /// Sessions that the features have not seen: 0 = made just before the point.
    pub sessions_behind: usize,
    /// Index generations, at most.
    pub generations: usize,
    /// Who has done less before a generation is not in it.
    pub min_engagements: usize,
}

impl Default for BackfillSettings {
    fn default() -> Self {
        Self { embed: Embed::Served, age_ms: 0, sessions_behind: 0, generations: 8, min_engagements: 5 }
    }
}

impl BackfillSettings {
    /// Refuses what cannot be made, naming the setting.
    pub fn check(&self) -> Result<(), LiftError> {
        let fail = |field, message: String| Err(LiftError::Settings { field, message });
        match (self.generations, self.age_ms) {
            (0, _) => fail("generations", "must be positive".into()),
            (_, ..0) => fail("age_ms", format!("must not be negative, got {}", self.age_ms)),
            _ => Ok(()),
        }
    }
}

/// A user as of an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Index into the dataset's users.
    pub user: usize,
    /// Only what lies before it is looked at.
    pub cut: Cut,
}

impl Moment {
    /// Of a user, before an instant.
    pub(super) fn before(dataset: &Dataset, user: usize, ms: i64) -> Self {
        Moment { user, cut: dataset.users[user].cut_before(ms) }
    }
}

/// As of when the features of each point are made; `None` where there was nothing yet to make them of. `points` by time.
pub fn moments(dataset: &Dataset, points: &[Point], settings: &BackfillSettings) -> Vec<Option<Moment>> {
    let mut earlier: HashMap<usize, Vec<i64>> = HashMap::new();
    let moment = |point: &Point| {
        let sessions = earlier.entry(point.user).or_default();
        sessions.push(point.cut.before_ms);
        let seen = sessions.len().checked_sub(settings.sessions_behind + 1)?;
        let moment = Moment::before(dataset, point.user, sessions[seen].saturating_sub(settings.age_ms));
        let user = &dataset.users[point.user];
        let has_searched = user.queries.first().is_some_and(|(ts_ms, _)| *ts_ms < moment.cut.before_ms);
        (moment.cut.engagements > 0 || has_searched).then_some(moment)
    };
    points.iter().map(moment).collect()
}

/// Who is in each generation, as of its beginning.
pub fn member_moments(dataset: &Dataset, generations: &Generations, min_engagements: usize) -> Vec<Vec<Moment>> {
    let members = |start: &i64| {
        let all = (0..dataset.users.len()).filter(|user| !has_opted_out(&dataset.users[*user]));
        let moments = all.map(|user| Moment::before(dataset, user, *start));
        moments.filter(|moment| moment.cut.engagements >= min_engagements.max(1)).collect()
    };
    generations.starts_ms().iter().map(members).collect()
}

/// A text with its vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedded {
    /// As it was embedded.
    pub text: String,
    /// Of the encoder, norm 1.
    pub vector: Vec<f32>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    user_id: String,
    as_of_ms: i64,
    /// The session it is for; none: a member of a generation.
    point_ms: Option<i64>,
    generation: Option<usize>,
    /// Place among the distinct texts.
    text: usize,
}

/// Whose, as of when, and the place of the text.
pub(super) type Entry = (usize, i64, usize);

/// All of it, as it lies in a folder.
#[derive(Debug, Default)]
pub struct Backfill {
    pub(super) generations: Generations,
    /// By user and point.
    pub(super) points: HashMap<(usize, i64), Entry>,
    /// By generation.
    pub(super) members: Vec<Vec<Entry>>,
    pub(super) texts: Vec<String>,
    /// [texts, dim].
    pub(super) vectors: Vec<f32>,
    pub(super) dim: usize,
}

impl Backfill {
    /// Gathers what was made: of the points that have a moment, and of the generations' members, in the order of their moments.
    pub fn new(
        generations: &Generations,
        points: Vec<(i64, Moment, Embedded)>,
        members: Vec<Vec<(Moment, Embedded)>>,
    ) -> Self {
        let mut backfill = Backfill { generations: generations.clone(), ..Backfill::default() };
        let mut known: HashMap<String, usize> = HashMap::new();
        for (point_ms, moment, embedded) in points {
            let text = backfill.text(&mut known, embedded);
            backfill.points.insert((moment.user, point_ms), (moment.user, moment.cut.before_ms, text));
        }
        for generation in members {
            let mut entries = Vec::with_capacity(generation.len());
            for (moment, embedded) in generation {
                entries.push((moment.user, moment.cut.before_ms, backfill.text(&mut known, embedded)));
            }
            backfill.members.push(entries);
        }
        backfill
    }

    fn text(&mut self, known: &mut HashMap<String, usize>, embedded: Embedded) -> usize {
        if let Some(&place) = known.get(&embedded.text) {
            return place;
        }
        self.dim = embedded.vector.len();
        self.vectors.extend(embedded.vector);
        known.insert(embedded.text.clone(), self.texts.len());
        self.texts.push(embedded.text);
        self.texts.len() - 1
    }

    /// Vector of a text.
    pub(super) fn vector(&self, text: usize) -> &[f32] {
        &self.vectors[text * self.dim..][..self.dim]
    }

    /// Distinct texts.
    pub fn distinct(&self) -> usize {
        self.texts.len()
    }

    /// Writes all files.
    pub fn write(&self, dataset: &Dataset, folder: &Path) -> Result<(), LiftError> {
        let id = |user: usize| dataset.users[user].user_id.clone();
        let mut points: Vec<(&(usize, i64), &Entry)> = self.points.iter().collect();
        points.sort();
        let of_points = points.into_iter().map(|(&(user, point_ms), &(_, as_of_ms, text))| Row {
            user_id: id(user),
            as_of_ms,
            point_ms: Some(point_ms),
            generation: None,
            text,
        });
        let of_members = self.members.iter().enumerate().flat_map(|(generation, entries)| {
            entries.iter().map(move |&(user, as_of_ms, text)| Row {
                user_id: id(user),
                as_of_ms,
                point_ms: None,
                generation: Some(generation),
                text,
            })
        });
        write_jsonl(&folder.join(ROWS_FILE), of_points.chain(of_members))?;
        write_jsonl(&folder.join(GENERATIONS_FILE), self.generations.starts_ms())?;
        write_jsonl(&folder.join(TEXTS_FILE), &self.texts)?;
        let tensors = vec![("vectors".to_string(), vec![self.texts.len(), self.dim], self.vectors.clone())];
        Ok(TensorFile { tensors, ..TensorFile::default() }.write(&folder.join(VECTORS_FILE))?)
    }

    /// Reads a folder.
    pub fn read(folder: &Path, dataset: &Dataset) -> Result<Self, LiftError> {
        let refuse = |name: &str, message: String| LiftError::Backfill {
            path: folder.join(name).display().to_string(),
            message,
        };
        let texts: Vec<String> = read_lines(&folder.join(TEXTS_FILE))?.collect::<Result<_, _>>()?;
        let starts: Vec<i64> = read_lines(&folder.join(GENERATIONS_FILE))?.collect::<Result<_, _>>()?;
        let path = folder.join(VECTORS_FILE);
        let file = TensorFile::read(&path)?;
        let (dim, vectors) = match file.tensors.into_iter().next() {
            Some((_, shape, values)) if shape.len() == 2 && shape[0] == texts.len() => (shape[1], values),
            _ => return Err(refuse(VECTORS_FILE, format!("does not hold {} vectors", texts.len()))),
        };
        let members = vec![Vec::new(); starts.len()];
        let generations = Generations::from_starts(starts);
        let mut backfill = Backfill { generations, members, texts, vectors, dim, points: HashMap::new() };
        for row in read_lines::<Row>(&folder.join(ROWS_FILE))? {
            let row = row?;
            let found = dataset.users.binary_search_by(|user| user.user_id.cmp(&row.user_id));
            let user = found.map_err(|_| refuse(ROWS_FILE, format!("user {} is not in the data", row.user_id)))?;
            if row.text >= backfill.texts.len() {
                return Err(refuse(ROWS_FILE, format!("text {} is not there", row.text)));
            }
            let entry = (user, row.as_of_ms, row.text);
            match (row.point_ms, row.generation.and_then(|place| backfill.members.get_mut(place))) {
                (Some(point_ms), None) => drop(backfill.points.insert((user, point_ms), entry)),
                (None, Some(generation)) => generation.push(entry),
                _ => return Err(refuse(ROWS_FILE, format!("a row of user {} is for nothing", row.user_id))),
            }
        }
        Ok(backfill)
    }
}

/// Whether nothing of a generation is of its day or later.
pub(super) fn is_before_day(as_of_ms: i64, point_ms: i64) -> bool {
    as_of_ms <= day_of(point_ms)
}
