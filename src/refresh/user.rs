//! One refresh of one user: read → prompt → LLM → embed → quantise → neighbour → write (`write`).
//!
//! In: a user and the due class. Out: what became of them. Caller: the `worker`. It works with one view of what is loaded
//! ([`Attempt`]) from its beginning to its end.

use super::neighbour::{Chooser, Seeker};
use super::write::Draft;
use super::{RefreshError, TokenBudget, UserEra, shown_neighbour};
use crate::answer::{AnswerError, Answering, Embedded, history_input};
use crate::bundle::Inference;
use crate::catalogue::Grounding;
use crate::clock::unix_ms;
use crate::config::{RefreshMode, RefreshModes, RefreshSettings, RetrieveSettings};
use crate::due::{CLASS_SYNC, CLASS_THRESHOLD, CLASS_URGENT};
use crate::feature::{CrossFinding, DecodedGroup, Group, GroupBlob, Version};
use crate::live::{Live, View};
use crate::llm::Priority;
use crate::prompt::{ParsedAnswer, PromptMode, RenderedPrompt, prompt_hash};
use crate::store::{
    FeaturePut, FeatureStore, FreshVector, PutBody, PutOutcome, PutRefusal, StoreResult, StoredFeatures, UserHistory,
};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What one refresh did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refreshed {
    /// New groups were written; `current_seq` is the store's now.
    Written {
        /// Version written.
        seq: u64,
        /// If above `seq`, the user is due again.
        current_seq: u64,
    },
    /// The prompt had not changed: only the marks moved.
    Skipped {
        /// Seq the marks moved to.
        seq: u64,
        /// As above.
        current_seq: u64,
    },
    /// The store refused; nothing changed.
    Refused(PutRefusal),
    /// No event of the user is kept; nothing to do.
    Unknown,
}

/// Refreshes users with what is active; shared by all tasks of a worker.
pub struct Refresher {
    pub(super) store: Arc<dyn FeatureStore>,
    pub(super) live: Arc<Live>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refresh: RefreshSettings,
    pub(super) retrieve: RetrieveSettings,
    pub(super) budget: TokenBudget,
}

/// One refresh under way, with what was active at its beginning.
pub(super) struct Attempt<'a> {
    pub shared: &'a Refresher,
    pub view: Arc<View>,
    pub models: Arc<Inference>,
}

/// What was read at the start of a refresh.
pub(super) struct Read {
    pub history: UserHistory,
    pub stored: StoredFeatures,
    pub now_ms: i64,
}

/// What the models made of a prompt, or of a history.
pub(super) struct ModelOutputs {
    pub parsed: ParsedAnswer,
    pub grounding: Grounding,
    pub vector: Vec<f32>,
    pub sparse_ids: Vec<u32>,
}

/// What every refresh writes.
pub(super) const WRITTEN: [Group; 3] = [Group::Intra, Group::Cross, Group::Text];

impl Refresher {
    /// A refresher over these parts.
    pub fn new(
        store: Arc<dyn FeatureStore>,
        live: Arc<Live>,
        metrics: Arc<Metrics>,
        refresh: RefreshSettings,
        retrieve: RetrieveSettings,
    ) -> Refresher {
        let view = live.view();
        let schema = &view.bundle().schema;
        // The first refreshes are taken to cost the most they can. (This process's clock: the store's would cost a call.)
        let most = schema.max_prompt_tokens + schema.max_new_tokens;
        let budget = TokenBudget::new(refresh.tokens_per_second, refresh.tokens_per_day, most, unix_ms());
        Refresher { store, live, metrics, refresh, retrieve, budget }
    }

    /// Longest time of one refresh.
    pub(super) fn deadline(&self) -> Duration {
        Duration::from_millis(self.refresh.deadline_ms)
    }

    /// Whether a model of this process makes no step: whoever it takes out of the queue would only lose time.
    pub(super) fn is_stalled(&self) -> bool {
        !self.live.view().stalls().is_empty()
    }

    /// Refreshes one user, once; the due class decides who goes first at the LLM.
    pub async fn refresh(&self, user: &str, class: u8) -> Result<Refreshed, RefreshError> {
        self.begin()?.refresh(user, class).await
    }

    /// A refresh with what is active now.
    pub(super) fn begin(&self) -> Result<Attempt<'_>, RefreshError> {
        let view = self.live.view();
        let models = view.models().cloned().ok_or(RefreshError::NotLoaded)?;
        Ok(Attempt { shared: self, view, models })
    }
}

impl Attempt<'_> {
    /// The space it writes.
    pub(super) fn space(&self) -> &str {
        self.view.space()
    }

    /// Of what is made from a history.
    pub(super) fn version(&self, history: &UserHistory) -> Version {
        Version { seq: history.state.seq, turn: self.view.turn() }
    }

    async fn refresh(&self, user: &str, class: u8) -> Result<Refreshed, RefreshError> {
        let until = Instant::now() + self.shared.deadline();
        let Some(read) = self.timed("read", self.read(user)).await? else {
            return Ok(Refreshed::Unknown);
        };
        if !read.history.state.has_events() {
            return Ok(Refreshed::Unknown);
        }
        let version = self.version(&read.history);
        let mode = self.mode(class);
        let prompt = self.prompt(&read.history, mode);
        let hash = prompt_hash(&prompt.text, self.view.epoch());
        let previous = shown_neighbour(&read.stored);
        let is_answered = self.unchanged(&read, hash) || self.is_reasoned_already(&read, mode);
        if is_answered && !self.must_go(previous.as_ref()).await? {
            return self.skip(user, &read, version).await;
        }
        let made = self.run_models(&prompt, (class, mode), until).await?;
        self.count_answer(&made, mode);
        let chosen =
            self.timed("retrieve", self.neighbour(user, &read.history, &made.vector, previous.as_ref())).await?;
        let draft = Draft { tier: 1, version, hash, truncated: prompt.truncated, made, chosen, previous };
        self.timed("write", self.write(user, &read, draft)).await
    }

    pub(super) async fn read(&self, user: &str) -> Result<Option<Read>, RefreshError> {
        let users = [user.to_string()];
        // Features that cannot be read are as good as none: the put writes over them.
        let features = async { readable_or_none(self.shared.store.features(self.space(), &users).await) };
        // At once: whatever changes in between, the put compares era and version.
        let (mut histories, mut stored, now_ms) =
            tokio::try_join!(self.shared.store.histories(&users), features, self.shared.store.now_ms())?;
        let Some(history) = histories.pop().flatten() else { return Ok(None) };
        Ok(Some(Read { history, stored: stored.pop().flatten().unwrap_or_default(), now_ms }))
    }

    /// How the model is asked to answer for a due class: as the settings say where the bundle can, else as it says first.
    fn mode(&self, class: u8) -> PromptMode {
        let schema = &self.view.bundle().schema;
        let asked = match mode_of_class(&self.shared.refresh.mode, class) {
            RefreshMode::Bundle => return schema.mode(),
            RefreshMode::Think => PromptMode::Think,
            RefreshMode::NoThink => PromptMode::NoThink,
        };
        if schema.modes.contains(&asked) { asked } else { schema.mode() }
    }

    fn prompt(&self, history: &UserHistory, mode: PromptMode) -> RenderedPrompt {
        let started = Instant::now();
        let prompt = self.answering(mode).prompt(&history_input(history, &self.view.bundle().catalogue));
        if prompt.truncated {
            self.shared.metrics.prompts_truncated.inc();
        }
        self.observe("prompt", started);
        prompt
    }

    /// No skip when a group is missing, expired, blanked, undecodable or made by the fast path (DESIGN 5.2).
    fn unchanged(&self, read: &Read, hash: u64) -> bool {
        let is_whole = |blob: &GroupBlob| blob.tier == 1 && DecodedGroup::decode(blob).is_ok();
        let is_fresh = |group: Group| read.stored.living(group, read.now_ms).is_some_and(is_whole);
        read.stored.prompt_hash == hash && WRITTEN.into_iter().all(is_fresh)
    }

    /// Whether what is asked for without reasoning was answered with it: that is not given up for less.
    fn is_reasoned_already(&self, read: &Read, mode: PromptMode) -> bool {
        let schema = &self.view.bundle().schema;
        if mode == PromptMode::Think || !schema.modes.contains(&PromptMode::Think) {
            return false;
        }
        let input = history_input(&read.history, &self.view.bundle().catalogue);
        let prompt = self.answering(PromptMode::Think).prompt(&input);
        self.unchanged(read, prompt_hash(&prompt.text, self.view.epoch()))
    }

    /// Whether the neighbour now shown asked since not to be, was erased, or nobody can say: then `cross` must be made anew.
    async fn must_go(&self, neighbour: Option<&UserEra>) -> Result<bool, RefreshError> {
        let Some(neighbour) = neighbour else { return Ok(false) };
        let history = match self.shared.store.histories(std::slice::from_ref(&neighbour.user)).await {
            Err(error) if error.is_unreadable() => return Ok(true),
            histories => histories?.pop().flatten(),
        };
        Ok(history.is_some_and(|history| history.is_opted_out() || history.state.era != neighbour.era))
    }

    async fn skip(&self, user: &str, read: &Read, version: Version) -> Result<Refreshed, RefreshError> {
        // An opt-out does not change the prompt, but it must reach the index: as a tombstone, or as the vector again.
        let shown = !read.history.is_opted_out() && !read.stored.embedding.is_empty();
        let vector = shown.then(|| read.stored.embedding.clone());
        let era = read.history.state.era;
        self.shared
            .store
            .append_vector(self.space(), &FreshVector { user: user.to_string(), era, version, vector })
            .await?;
        let put = FeaturePut {
            user: user.to_string(),
            era,
            version,
            tier: 1,
            body: PutBody::Skip { source_ts_ms: newest_event(&read.history) },
        };
        Ok(match self.shared.store.put(self.space(), put).await? {
            PutOutcome::Written { current_seq } => Refreshed::Skipped { seq: version.seq, current_seq },
            PutOutcome::Refused(refusal) => Refreshed::Refused(refusal),
        })
    }

    /// The bundle's parts that make answers.
    pub(super) fn answering(&self, mode: PromptMode) -> Answering<'_> {
        Answering {
            schema: &self.view.bundle().schema,
            mode,
            llm: self.models.llm.as_ref(),
            encoder: &self.models.encoder,
            codebook: &self.view.bundle().codebook,
            catalogue: &self.view.bundle().catalogue,
        }
    }

    /// LLM, then what is made of its text.
    async fn run_models(
        &self,
        prompt: &RenderedPrompt,
        (class, mode): (u8, PromptMode),
        until: Instant,
    ) -> Result<ModelOutputs, RefreshError> {
        let priority = if class == CLASS_SYNC { Priority::Synchronous } else { Priority::Background };
        let answering = self.answering(mode);
        let generate =
            async { Ok(answering.generate(std::slice::from_ref(&prompt.text), priority, Some(until)).await?) };
        let generations = self.timed("llm", generate).await?;
        let spent = generations.iter().map(|generation| generation.prompt_tokens + generation.new_tokens).sum();
        self.shared.budget.spend(spent, unix_ms());
        let mut answers = self.timed("encode", async { Ok(answering.complete(generations).await?) }).await?;
        let answer = answers.pop().ok_or_else(|| RefreshError::Task("no answer".to_string()))?;
        let sparse_ids = self.view.bundle().codebook.sparse_ids(&answer.codes).map_err(AnswerError::from)?;
        Ok(ModelOutputs { parsed: answer.parsed, grounding: answer.grounding, vector: answer.vector, sparse_ids })
    }

    /// Vector and sparse IDs of a text.
    pub(super) async fn embed(&self, text: String) -> Result<(Vec<f32>, Vec<u32>), RefreshError> {
        let answering = self.answering(self.view.bundle().schema.mode());
        let mut embedded = self.timed("encode", async { Ok(answering.embed(vec![text]).await?) }).await?;
        let Embedded { vector, codes } = embedded.pop().ok_or_else(|| RefreshError::Task("no vector".to_string()))?;
        let sparse_ids = self.view.bundle().codebook.sparse_ids(&codes).map_err(AnswerError::from)?;
        Ok((vector, sparse_ids))
    }

    pub(super) async fn neighbour(
        &self,
        user: &str,
        history: &UserHistory,
        vector: &[f32],
        previous: Option<&UserEra>,
    ) -> Result<Option<CrossFinding>, RefreshError> {
        let chooser = Chooser {
            store: self.shared.store.as_ref(),
            index: &self.models.index,
            catalogue: &self.view.bundle().catalogue,
            snapshot: &self.models.snapshot,
            settings: &self.shared.retrieve,
            view: &self.view,
        };
        let seeker = Seeker::new(user, vector, history, previous.map(|seen| seen.user.as_str()));
        let chosen = chooser.choose(&seeker).await?;
        let result = if chosen.is_some() { "found" } else { "none" };
        self.shared.metrics.neighbours.with_label_values(&[result]).inc();
        Ok(chosen)
    }

    fn count_answer(&self, made: &ModelOutputs, mode: PromptMode) {
        let format = if made.parsed.format_ok { "ok" } else { "broken" };
        let grounded = match made.grounding {
            Grounding::Item { .. } => "item",
            Grounding::Category(_) => "category",
            Grounding::None => "none",
        };
        self.shared.metrics.answers.with_label_values(&[mode.name(), format, grounded]).inc();
    }

    pub(super) async fn timed<T>(
        &self,
        stage: &str,
        work: impl Future<Output = Result<T, RefreshError>>,
    ) -> Result<T, RefreshError> {
        let started = Instant::now();
        let result = work.await;
        self.observe(stage, started);
        result
    }

    fn observe(&self, stage: &str, started: Instant) {
        self.shared.metrics.stage_duration.with_label_values(&[stage]).observe(started.elapsed().as_secs_f64());
    }
}

/// What the settings say of a class.
fn mode_of_class(modes: &RefreshModes, class: u8) -> RefreshMode {
    match class {
        CLASS_SYNC => modes.sync,
        CLASS_URGENT => modes.urgent,
        CLASS_THRESHOLD => modes.threshold,
        _ => modes.routine,
    }
}

/// The answers about one user, or that of a user without any where the record cannot be read.
fn readable_or_none<T>(answers: StoreResult<Vec<Option<T>>>) -> StoreResult<Vec<Option<T>>> {
    answers.or_else(|error| if error.is_unreadable() { Ok(vec![None]) } else { Err(error) })
}

/// Newest event of a history, unix ms; 0 when it holds none.
pub(super) fn newest_event(history: &UserHistory) -> i64 {
    let engagement = history.engagements.first().map(|behaviour| behaviour.ts_ms);
    let impression = history.impressions.first().map(|behaviour| behaviour.ts_ms);
    let query = history.queries.first().map(|(ts_ms, _)| *ts_ms);
    let profile = history.profile.values().map(|(ts_ms, _)| *ts_ms).max();
    [engagement, impression, query, profile].into_iter().flatten().max().unwrap_or(0)
}
