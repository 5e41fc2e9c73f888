//! Validated events → history and due queue, in the order that makes a redelivery harmless.
//!
//! In: [`Event`]s from HTTP and from Kafka ([`kafka`]). Out: counts, after the store has them. Callers: `api`, `cli::wiring`,
//! `backfill` (bulk history from a file, beside what happens now).
//! DESIGN 5.2, Append: append, then mark due whenever the user's features are behind, **even for duplicates**, and
//! only then acknowledge: a crash between the two is healed by the client's retry.

mod backfill;
mod checkpoint;
pub mod kafka;
pub(crate) mod rows;

pub use backfill::{Backfill, BackfillError, BackfillOptions, BackfillReport, Progress, Rejection};
pub use checkpoint::{Checkpoint, CheckpointError};
pub use rows::{Rows, RowsError};

use crate::due::{CLASS_ROUTINE, DuePolicy, FastQueue};
use crate::event::decode::former_id;
use crate::event::{ActionClass, ActionTable, Event, OPT_OUT_ATTRIBUTE};
use crate::live::Spaces;
use crate::proto::Behaviour;
use crate::store::{AppendOutcome, DueEntry, Each, FeatureStore, Queue, Record, RecordBody, StoreError, UserBatch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Users released in one call.
const RELEASE_BATCH: usize = 500;

/// What became of one call's events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct AppendCounts {
    pub accepted: u64,
    pub duplicates: u64,
    /// Users whose time has come: a worker that sleeps should look.
    pub due_now: u64,
}

/// What the store did with one call's events.
#[derive(Debug, Default)]
pub struct Appended {
    /// Of those that are stored.
    pub counts: AppendCounts,
    /// Events of users whose records cannot be read, so that nothing can be added: their place in the list given, and why.
    pub refused: Vec<(usize, StoreError)>,
}

/// The way of an event into the store; one per process.
pub struct Ingest {
    store: Arc<dyn FeatureStore>,
    actions: ActionTable,
    policy: DuePolicy,
    fast: Option<FastQueue>,
}

impl Ingest {
    /// An ingest that marks users due by `policy`. In which spaces they may be behind each call is told.
    pub fn new(store: Arc<dyn FeatureStore>, actions: ActionTable, policy: DuePolicy) -> Ingest {
        Ingest { store, actions, policy, fast: None }
    }

    /// Marks users without features for the fast path, too.
    pub fn with_fast_path(self, fast: FastQueue) -> Ingest {
        Ingest { fast: Some(fast), ..self }
    }

    /// Appends events and marks their users due. When it returns, all but the refused ones survive a kill of this process.
    pub async fn append(&self, spaces: &Spaces, events: Vec<Event>) -> Result<Appended, StoreError> {
        self.store(spaces, &self.prepare(events)).await
    }

    /// Groups events by user; each user's stay in the order given.
    pub fn prepare(&self, events: Vec<Event>) -> Prepared {
        let mut users: BTreeMap<String, PreparedUser> = BTreeMap::new();
        for (position, event) in events.into_iter().enumerate() {
            // Who opts out of being shown to others waits for nothing.
            let immediate = self.policy.is_immediate(&event.action) || event.context.contains_key(OPT_OUT_ATTRIBUTE);
            let user = users.entry(event.user_id.clone()).or_default();
            user.immediate |= immediate;
            user.positions.push(position);
            user.records.push(self.record(event));
        }
        let mut prepared = Prepared::default();
        for (user, PreparedUser { records, immediate, positions }) in users {
            prepared.batches.push(UserBatch { user, records });
            prepared.immediate.push(immediate);
            prepared.positions.push(positions);
        }
        prepared
    }

    /// Stores prepared events and marks their users due; doing it again is harmless. When it returns, all but the refused ones
    /// survive a kill of this process.
    pub async fn store(&self, spaces: &Spaces, prepared: &Prepared) -> Result<Appended, StoreError> {
        // Asked for at once: one round trip less. A time from before the append makes nobody due too late.
        let append = self.store.append_each(spaces.all(), &prepared.batches);
        let (outcomes, now_ms) = futures::try_join!(append, self.store.now_ms())?;
        let (stored, mut appended) = prepared.sort_out(outcomes)?;
        let (mut due, mut without_features) = (Vec::new(), Vec::new());
        for (place, outcome) in &stored {
            let user = &prepared.batches[*place].user;
            if let Some((class, due_ms)) = self.policy.due(outcome, prepared.immediate[*place], now_ms) {
                appended.counts.due_now += u64::from(due_ms <= now_ms);
                due.push(DueEntry { user: user.clone(), class, due_ms });
                if self.policy.has_no_features(outcome, now_ms) {
                    without_features.push(user.clone());
                }
            }
        }
        unless_unreadable(self.store.mark_due(Queue::Due, &due).await)?;
        if let Some(fast) = &self.fast {
            unless_unreadable(fast.mark(self.store.as_ref(), &without_features, now_ms).await)?;
        }
        Ok(appended)
    }

    /// Appends events and marks nobody due: for bulk history, whose users get their turn by a plan. The sweep passes over them.
    pub async fn append_history(&self, spaces: &Spaces, events: Vec<Event>) -> Result<Appended, StoreError> {
        let prepared = self.prepare(events);
        let outcomes = self.store.append_bulk_each(spaces.all(), &prepared.batches).await?;
        Ok(prepared.sort_out(outcomes)?.1)
    }

    /// Marks those of the users due, in the order given, whose features are behind; each at its own time after now.
    /// Returns how many. Who cannot be read is left out.
    pub async fn mark_behind(
        &self,
        spaces: &Spaces,
        users: &[String],
        after_ms: impl Fn(usize) -> i64,
    ) -> Result<usize, StoreError> {
        let ask = |user: &String| UserBatch { user: user.clone(), records: Vec::new() };
        let asked: Vec<UserBatch> = users.iter().map(ask).collect();
        let mut outcomes = Vec::with_capacity(users.len());
        for (user, outcome) in users.iter().zip(self.store.append_each(spaces.all(), &asked).await?) {
            match outcome {
                Ok(outcome) => outcomes.push((user, outcome)),
                Err(error) if error.is_unreadable() => {}
                Err(error) => return Err(error),
            }
        }
        let now_ms = self.store.now_ms().await?;
        // An erased user has a seq, too, but nothing to refresh from.
        let seen = |outcome: &AppendOutcome| outcome.refreshed_seq.unwrap_or(0).max(outcome.state.erased_seq);
        let is_behind = |outcome: &AppendOutcome| outcome.state.seq > seen(outcome);
        let behind = outcomes.iter().filter(|(_, outcome)| is_behind(outcome)).enumerate();
        let due: Vec<DueEntry> = behind
            .map(|(place, (user, _))| DueEntry {
                user: user.to_string(),
                class: CLASS_ROUTINE,
                due_ms: now_ms.saturating_add(after_ms(place)),
            })
            .collect();
        self.store.mark_due(Queue::Due, &due).await?;
        // After the mark: who is lost in between is released once more.
        let marked: Vec<String> = due.into_iter().map(|entry| entry.user).collect();
        self.store.release_held_back(&marked).await?;
        Ok(marked.len())
    }

    /// Marks users due whom bulk history holds back, `rate` a second, at most `most` of them (0 = all), in no order; returns how many.
    pub async fn release_held(&self, spaces: &Spaces, rate: f64, most: usize) -> Result<usize, StoreError> {
        let (mut marked, mut place) = (0, String::new());
        loop {
            let (held, next) = self.store.held_back(spaces.all(), &place).await?;
            let left = if most == 0 { held.len() } else { most - marked };
            for some in held[..held.len().min(left)].chunks(RELEASE_BATCH) {
                let after_ms = |nth: usize| ((marked + nth) as f64 * 1000.0 / rate) as i64;
                marked += self.mark_behind(spaces, some, after_ms).await?;
            }
            if next.is_empty() || (most > 0 && marked >= most) {
                return Ok(marked);
            }
            place = next;
        }
    }

    fn record(&self, event: Event) -> Record {
        let rule = self.actions.get(&event.action);
        let weight = rule.map(|rule| rule.weight).unwrap_or(0.0);
        let class = rule.map(|rule| rule.class).unwrap_or(ActionClass::None);
        let (ts_ms, event_id, former_id) = (event.ts_ms, event.event_id.clone(), former_id(&event));
        let body = match class {
            ActionClass::None => side_record(event),
            ActionClass::Engagement | ActionClass::Impression => {
                RecordBody::Behaviour { class, behaviour: behaviour(event) }
            }
        };
        Record { ts_ms, event_id, former_id, weight, body }
    }
}

/// Events ready for the store, grouped by user.
#[derive(Debug, Default)]
pub struct Prepared {
    batches: Vec<UserBatch>,
    /// One of the user's events makes them due at once.
    immediate: Vec<bool>,
    /// Where each user's events stood in the list they came from.
    positions: Vec<Vec<usize>>,
}

#[derive(Default)]
struct PreparedUser {
    records: Vec<Record>,
    immediate: bool,
    positions: Vec<usize>,
}

impl Prepared {
    /// The outcomes of those who are stored, with their batches' places; counts of them, and the others' events. An error that
    /// is not one user's alone ends the call: it is repeated, and what is stored counts as duplicate then.
    fn sort_out(&self, outcomes: Each<AppendOutcome>) -> Result<(Vec<(usize, AppendOutcome)>, Appended), StoreError> {
        let (mut stored, mut appended) = (Vec::with_capacity(outcomes.len()), Appended::default());
        for (place, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(outcome) => {
                    appended.counts.accepted += u64::from(outcome.accepted);
                    appended.counts.duplicates += u64::from(outcome.duplicates);
                    stored.push((place, outcome));
                }
                Err(error) if error.is_unreadable() => {
                    appended.refused.extend(self.positions[place].iter().map(|position| (*position, error.clone())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((stored, appended))
    }
}

/// A queue whose key cannot be read keeps nobody's events out: the sweep marks their users when the key was put right.
fn unless_unreadable(marked: Result<(), StoreError>) -> Result<(), StoreError> {
    marked.or_else(|error| if error.is_unreadable() { Ok(()) } else { Err(error) })
}

/// A search is kept as its query; everything else that enters no history carries profile attributes.
fn side_record(event: Event) -> RecordBody {
    match event.context.get("query").and_then(|query| query.as_str()) {
        Some(query) if event.action == "search" => RecordBody::Query(query.to_string()),
        _ => RecordBody::Profile(event.context),
    }
}

fn behaviour(event: Event) -> Behaviour {
    Behaviour {
        ts_ms: event.ts_ms,
        event_id: event.event_id,
        item_id: event.item_id.unwrap_or_default(),
        action: event.action,
        value: event.value,
        domain: event.domain.map(|domain| domain.as_str().to_string()).unwrap_or_default(),
        request_id: event.request_id.unwrap_or_default(),
    }
}
