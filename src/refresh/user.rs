//! One refresh of one user: read → prompt → LLM → embed → quantise → neighbour → write.
//!
//! The order of the writes is DESIGN 5.2's: referrer, vector, put, then the look back at the eras. A crash anywhere costs
//! one repeated refresh.

use super::neighbour::Chooser;
use super::{CLASS_SYNC, RefreshError, Seen, TokenBudget, is_opted_out, look_back, prompt_input, shown_neighbour};
use crate::bundle::{Bundle, Inference};
use crate::catalogue::Grounding;
use crate::clock::unix_ms;
use crate::config::{RefreshSettings, RetrieveSettings};
use crate::feature::proto::GroupMeta;
use crate::feature::{CrossFinding, Finding, assemble, flags};
use crate::llm::{GenerateRequest, Generation, Priority};
use crate::prompt::{ParsedAnswer, RenderedPrompt, parse, prompt_hash, render};
use crate::retrieve::encode_f16;
use crate::store::{
    FeaturePut, FeatureStore, FreshVector, Group, PutBody, PutOutcome, PutRefusal, StoredFeatures, UserHistory, Version,
};
use crate::telemetry::Metrics;
use std::sync::Arc;
use std::time::Instant;

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

/// Refreshes users with one bundle; shared by all tasks of a worker.
pub struct Refresher {
    pub(super) store: Arc<dyn FeatureStore>,
    pub(super) bundle: Arc<Bundle>,
    pub(super) models: Arc<Inference>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refresh: RefreshSettings,
    pub(super) retrieve: RetrieveSettings,
    pub(super) budget: TokenBudget,
}

/// What was read at the start of a refresh.
struct Read {
    history: UserHistory,
    stored: StoredFeatures,
    now_ms: i64,
}

/// What the models made of a prompt.
struct Made {
    parsed: ParsedAnswer,
    grounding: Grounding,
    vector: Vec<f32>,
    sparse_ids: Vec<u32>,
}

impl Refresher {
    /// A refresher over these parts; `models` are those of the bundle.
    pub fn new(
        store: Arc<dyn FeatureStore>,
        bundle: Arc<Bundle>,
        models: Arc<Inference>,
        metrics: Arc<Metrics>,
        refresh: RefreshSettings,
        retrieve: RetrieveSettings,
    ) -> Refresher {
        // The first refreshes are taken to cost the most they can. (This process's clock: the store's would cost a call.)
        let most = bundle.schema.max_prompt_tokens + bundle.schema.max_new_tokens;
        let budget = TokenBudget::new(refresh.tokens_per_second, refresh.tokens_per_day, most, unix_ms());
        Refresher { store, bundle, models, metrics, refresh, retrieve, budget }
    }

    /// The space it writes.
    pub fn space(&self) -> &str {
        &self.bundle.manifest.space
    }

    /// Refreshes one user, once; the due class decides who goes first at the LLM.
    pub async fn refresh(&self, user: &str, class: u8) -> Result<Refreshed, RefreshError> {
        let Some(read) = self.timed("read", self.read(user)).await? else {
            return Ok(Refreshed::Unknown);
        };
        if !read.history.state.has_events() {
            return Ok(Refreshed::Unknown);
        }
        let version = Version { seq: read.history.state.seq, turn: 0 };
        let prompt = self.prompt(&read.history);
        let hash = prompt_hash(&prompt.text, self.bundle.manifest.epoch);
        let previous = shown_neighbour(&read.stored);
        if self.unchanged(&read, hash) && !self.must_go(previous.as_ref()).await? {
            return self.skip(user, &read, version).await;
        }
        let made = self.run_models(&prompt, class).await?;
        self.count_answer(&made);
        let chosen = self
            .timed("retrieve", self.neighbour(user, &made, previous.as_ref().map(|seen| seen.user.as_str())))
            .await?;
        let started = Instant::now();
        let written = self.write(user, &read, version, hash, &prompt, made, chosen, previous).await;
        self.observe("write", started);
        written
    }

    async fn read(&self, user: &str) -> Result<Option<Read>, RefreshError> {
        let users = [user.to_string()];
        let Some(history) = self.store.histories(&users).await?.pop().flatten() else { return Ok(None) };
        let stored = self.store.features(self.space(), &users).await?.pop().flatten().unwrap_or_default();
        Ok(Some(Read { history, stored, now_ms: self.store.now_ms().await? }))
    }

    fn prompt(&self, history: &UserHistory) -> RenderedPrompt {
        let started = Instant::now();
        let input = prompt_input(history, &self.bundle.catalogue);
        let count = |text: &str| self.models.llm.count_tokens(text);
        let prompt = render(&self.bundle.schema, &input, &count);
        if prompt.truncated {
            self.metrics.prompts_truncated.inc();
        }
        self.observe("prompt", started);
        prompt
    }

    /// No skip when a group is missing, expired, blanked or made by the fast path (DESIGN 5.2).
    fn unchanged(&self, read: &Read, hash: u64) -> bool {
        let fresh = |group: Group| {
            read.stored.groups.iter().any(|blob| {
                blob.group == group && blob.tier == 1 && (blob.expires_at_ms == 0 || blob.expires_at_ms > read.now_ms)
            })
        };
        read.stored.prompt_hash == hash && [Group::Intra, Group::Cross, Group::Text].into_iter().all(fresh)
    }

    /// Whether the neighbour now shown asked since not to be, or was erased: then `cross` must be made anew.
    async fn must_go(&self, neighbour: Option<&Seen>) -> Result<bool, RefreshError> {
        let Some(neighbour) = neighbour else { return Ok(false) };
        let history = self.store.histories(std::slice::from_ref(&neighbour.user)).await?.pop().flatten();
        Ok(history.is_some_and(|history| is_opted_out(&history) || history.state.era != neighbour.era))
    }

    async fn skip(&self, user: &str, read: &Read, version: Version) -> Result<Refreshed, RefreshError> {
        // An opt-out does not change the prompt, but it must reach the index: as a tombstone, or as the vector again.
        let shown = !is_opted_out(&read.history) && !read.stored.embedding.is_empty();
        let vector = shown.then(|| read.stored.embedding.clone());
        let era = read.history.state.era;
        self.store.append_vector(self.space(), &FreshVector { user: user.to_string(), era, version, vector }).await?;
        let put = FeaturePut {
            user: user.to_string(),
            era,
            version,
            tier: 1,
            body: PutBody::Skip { source_ts_ms: newest_event(&read.history) },
        };
        Ok(match self.store.put(self.space(), put).await? {
            PutOutcome::Written { current_seq } => Refreshed::Skipped { seq: version.seq, current_seq },
            PutOutcome::Refused(refusal) => Refreshed::Refused(refusal),
        })
    }

    /// LLM, parser, grounding, encoder, quantiser.
    async fn run_models(&self, prompt: &RenderedPrompt, class: u8) -> Result<Made, RefreshError> {
        let request = GenerateRequest {
            priority: if class == CLASS_SYNC { Priority::Synchronous } else { Priority::Background },
            ..GenerateRequest::new(prompt.text.clone(), self.bundle.schema.max_new_tokens)
        };
        let generation: Generation = self.timed("llm", async { Ok(self.models.llm.generate(request).await?) }).await?;
        self.budget.spend(generation.prompt_tokens + generation.new_tokens, unix_ms());
        let parsed = parse(&generation.text);
        let grounding = self.bundle.catalogue.ground(&parsed.answer);
        let text = parsed.embedding_text();
        let encoder = self.models.encoder.clone();
        let started = Instant::now();
        let encoded = tokio::task::spawn_blocking(move || encoder.encode(&[&text]))
            .await
            .map_err(|error| RefreshError::Task(error.to_string()))??;
        self.observe("encode", started);
        let vector = encoded.into_iter().next().unwrap_or_default();
        let codes = self.bundle.codebook.encode(&vector)?;
        let sparse_ids = self.bundle.codebook.sparse_ids(&codes)?;
        Ok(Made { parsed, grounding, vector, sparse_ids })
    }

    async fn neighbour(
        &self,
        user: &str,
        made: &Made,
        previous: Option<&str>,
    ) -> Result<Option<CrossFinding>, RefreshError> {
        let candidates = self.models.index.search(&made.vector, self.retrieve.candidates, user)?;
        let chooser = Chooser {
            store: self.store.as_ref(),
            catalogue: &self.bundle.catalogue,
            snapshot: &self.models.snapshot,
            settings: &self.retrieve,
            space: self.space(),
        };
        let chosen = chooser.choose(&candidates, previous).await?;
        let result = if chosen.is_some() { "found" } else { "none" };
        self.metrics.neighbours.with_label_values(&[result]).inc();
        Ok(chosen)
    }

    #[allow(clippy::too_many_arguments)] // every argument is a named result of an earlier step of the same refresh
    async fn write(
        &self,
        user: &str,
        read: &Read,
        version: Version,
        hash: u64,
        prompt: &RenderedPrompt,
        made: Made,
        chosen: Option<CrossFinding>,
        previous: Option<Seen>,
    ) -> Result<Refreshed, RefreshError> {
        let (space, era) = (self.space().to_string(), read.history.state.era);
        let embedding = encode_f16(&made.vector);
        let neighbour = chosen.as_ref().map(|chosen| Seen { user: chosen.user.clone(), era: chosen.era });
        if let Some(neighbour) = &neighbour {
            self.store.add_referrer(&space, &neighbour.user, user).await?;
        }
        // Who opted out is not indexed; the tombstone hides a vector of before.
        let vector = (!is_opted_out(&read.history)).then(|| embedding.clone());
        self.store.append_vector(&space, &FreshVector { user: user.to_string(), era, version, vector }).await?;
        let finding = self.finding(read, version, prompt, made, chosen);
        let put = FeaturePut {
            user: user.to_string(),
            era,
            version,
            tier: 1,
            body: PutBody::Write { groups: assemble(finding), prompt_hash: hash, embedding },
        };
        let current_seq = match self.store.put(&space, put).await? {
            PutOutcome::Written { current_seq } => current_seq,
            PutOutcome::Refused(refusal) => {
                self.take_note_back(user, refusal, neighbour.as_ref(), previous.as_ref()).await?;
                return Ok(Refreshed::Refused(refusal));
            }
        };
        let current = neighbour.as_ref().map(|neighbour| neighbour.user.as_str());
        if let Some(old) = previous.filter(|old| Some(old.user.as_str()) != current) {
            self.store.remove_referrer(&space, &old.user, user).await?;
        }
        if let Some(neighbour) = &neighbour {
            let seen = Seen { user: user.to_string(), era };
            look_back(self.store.as_ref(), &space, &seen, neighbour).await?;
        }
        Ok(Refreshed::Written { seq: version.seq, current_seq })
    }

    /// After a refused put: what stands in the store still shows the previous neighbour, or nobody if the user was erased.
    async fn take_note_back(
        &self,
        user: &str,
        refusal: PutRefusal,
        noted: Option<&Seen>,
        previous: Option<&Seen>,
    ) -> Result<(), RefreshError> {
        let Some(noted) = noted else { return Ok(()) };
        let still_shown = previous.is_some_and(|previous| previous.user == noted.user);
        if refusal == PutRefusal::Era || !still_shown {
            self.store.remove_referrer(self.space(), &noted.user, user).await?;
        }
        Ok(())
    }

    fn finding(
        &self,
        read: &Read,
        version: Version,
        prompt: &RenderedPrompt,
        made: Made,
        chosen: Option<CrossFinding>,
    ) -> Finding {
        let (grounded_item_id, category_ids) = match made.grounding {
            Grounding::Item { id, categories } => (id, categories),
            Grounding::Category(path) => (String::new(), path),
            Grounding::None => (String::new(), Vec::new()),
        };
        let fallback = self.models.canned;
        let set = |flag: u32, on: bool| if on { flag } else { 0 };
        let ttl = self.refresh.ttl_ms;
        let meta = GroupMeta {
            epoch: self.bundle.manifest.epoch,
            space: self.space().to_string(),
            catalogue_generation: self.bundle.manifest.generation,
            index_generation: self.bundle.manifest.generation,
            generated_at_ms: read.now_ms,
            source_ts_ms: newest_event(&read.history),
            expires_at_ms: if ttl == 0 { 0 } else { read.now_ms.saturating_add(ttl) },
            seq: version.seq,
            turn: version.turn,
            tier: 1,
            flags: set(flags::FORMAT_OK, made.parsed.format_ok)
                | set(flags::GROUNDED, !category_ids.is_empty() || !grounded_item_id.is_empty())
                | set(flags::TRUNCATED, prompt.truncated)
                | set(flags::FALLBACK, fallback),
            fallback_reason: if fallback { "null_engine".into() } else { String::new() },
        };
        Finding {
            meta,
            sparse_ids: made.sparse_ids,
            category_ids,
            cross: chosen,
            reasoning: made.parsed.reasoning,
            answer: made.parsed.answer,
            grounded_item_id,
        }
    }

    fn count_answer(&self, made: &Made) {
        let format = if made.parsed.format_ok { "ok" } else { "broken" };
        let grounded = match made.grounding {
            Grounding::Item { .. } => "item",
            Grounding::Category(_) => "category",
            Grounding::None => "none",
        };
        self.metrics.answers.with_label_values(&[format, grounded]).inc();
    }

    async fn timed<T>(
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
        self.metrics.stage_duration.with_label_values(&[stage]).observe(started.elapsed().as_secs_f64());
    }
}

/// Newest event of a history, unix ms; 0 when it holds none.
fn newest_event(history: &UserHistory) -> i64 {
    let engagement = history.engagements.first().map(|behaviour| behaviour.ts_ms);
    let impression = history.impressions.first().map(|behaviour| behaviour.ts_ms);
    let query = history.queries.first().map(|(ts_ms, _)| *ts_ms);
    let profile = history.profile.values().map(|(ts_ms, _)| *ts_ms).max();
    [engagement, impression, query, profile].into_iter().flatten().max().unwrap_or(0)
}
