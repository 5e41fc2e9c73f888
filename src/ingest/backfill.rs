//! Bulk history: a file's events into the store, then their users into the due queue, the busiest first.
//!
//! In: [`Rows`] and an [`Ingest`]. Out: counts. Caller: `taiji backfill`. Appends are idempotent, so what is done twice
//! after a crash counts as duplicate. While the file is read nobody becomes due by it: a million users without features
//! would stand before everybody with a fresh event. Afterwards each user behind gets a due time of its own, as far apart as
//! the budget says, in the routine class; an event of today brings its user forward as ever. Whom the budget leaves out stays held
//! back: the sweep passes over them, `taiji backfill release` marks them due.

use super::{AppendCounts, Appended, Checkpoint, CheckpointError, Ingest, Rows, RowsError};
use crate::backoff::Backoff;
use crate::event::{Event, EventDecoder};
use crate::live::Spaces;
use crate::store::StoreError;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Times a batch is tried before the backfill ends; it can be started again.
const MAX_ATTEMPTS: u32 = 6;
/// First pause between two tries; it doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// Time between two checkpoints.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// Users asked about and marked in one call.
const MARK_BATCH: usize = 500;

/// Why a backfill ended early. What it did stays; started again it goes on.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum BackfillError {
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("{source}; started again the backfill goes on after row {rows}")]
    Store { source: StoreError, rows: u64 },
    #[error("rejected rows cannot be written: {0}")]
    Rejections(String),
}

/// How to do it.
#[derive(Debug, Clone)]
pub struct BackfillOptions {
    /// Rows of one append.
    pub batch: usize,
    /// Appends under way at once.
    pub concurrency: usize,
    /// Rows a second; 0 = as fast as they are taken.
    pub rate: u64,
    /// Users that become due a second afterwards; 0 = none does.
    pub refresh_rate: f64,
    /// Most users that become due; 0 = all.
    pub refresh_users: usize,
}

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rejection {
    /// Its number, from 1.
    pub row: u64,
    /// Field of the event; `row` where it is no JSON.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Part of the file that was read, in [`Rows::position`]'s unit.
    Read(u64),
    /// Users looked at for the due queue, of so many.
    Marked(usize, usize),
}

/// What it did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackfillReport {
    /// Rows of the file.
    pub rows: u64,
    /// Rows an earlier run had done.
    pub done_before: u64,
    /// New events, and those that were there or are too old to be kept; of this run.
    pub counts: AppendCounts,
    /// Rows refused by this run.
    pub rejected: u64,
    /// Of them those whose user's records the store cannot read.
    pub unreadable: u64,
    /// Users of the file.
    pub users: usize,
    /// Users that became due.
    pub marked: usize,
}

/// One backfill.
pub struct Backfill<'a> {
    /// Where events go.
    pub ingest: &'a Ingest,
    /// How rows become events.
    pub decoder: &'a EventDecoder,
    /// Where users may be behind.
    pub spaces: &'a Spaces,
    /// How to do it.
    pub options: BackfillOptions,
}

/// An append under way and the rows that are done when it is.
type Appending<'a> = BoxFuture<'a, (u64, Result<Stored, StoreError>)>;

/// What the store took of an append, and the rows it refused because it cannot read what it keeps of their users.
type Stored = (AppendCounts, Vec<Rejection>);

impl Backfill<'_> {
    /// Reads the file to its end. `now_ms`: the wall clock, for the check of event times. Rejections go to `reject` in the
    /// file's order.
    pub async fn run(
        &self,
        mut rows: Rows,
        checkpoint: &mut Checkpoint,
        now_ms: i64,
        mut progress: impl FnMut(Progress),
        mut reject: impl FnMut(&Rejection) -> Result<(), String>,
    ) -> Result<BackfillReport, BackfillError> {
        let mut report = BackfillReport { done_before: checkpoint.rows(), ..BackfillReport::default() };
        let mut activity: HashMap<String, u32> = HashMap::new();
        let mut appending: FuturesOrdered<Appending<'_>> = FuturesOrdered::new();
        let mut saved = Instant::now();
        let started = Instant::now();
        loop {
            let (mut events, mut numbers) = (Vec::with_capacity(self.options.batch), Vec::new());
            let read_before = report.rows;
            while ((report.rows - read_before) as usize) < self.options.batch {
                let Some(row) = rows.next() else { break };
                report.rows += 1;
                let is_done = report.rows <= report.done_before;
                match decode(self.decoder, row?, now_ms) {
                    Ok(event) => {
                        *activity.entry(event.user_id.clone()).or_default() += 1;
                        if !is_done {
                            events.push(event);
                            numbers.push(report.rows);
                        }
                    }
                    Err(_) if is_done => {}
                    Err((field, reason)) => {
                        report.rejected += 1;
                        reject(&Rejection { row: report.rows, field, reason }).map_err(BackfillError::Rejections)?;
                    }
                }
            }
            let is_end = report.rows == read_before;
            while !appending.is_empty() && (is_end || appending.len() >= self.options.concurrency.max(1)) {
                for rejection in self.settle(&mut appending, checkpoint, &mut saved, &mut report).await? {
                    reject(&rejection).map_err(BackfillError::Rejections)?;
                }
            }
            progress(Progress::Read(rows.position()));
            if is_end {
                break;
            }
            self.keep_rate(started, report.rows.saturating_sub(report.done_before)).await;
            appending.push_back(self.append(report.rows, events, numbers));
        }
        if report.rows > checkpoint.rows() {
            checkpoint.save(report.rows)?;
        }
        report.users = activity.len();
        report.marked = self.mark(activity, report.rows, progress).await?;
        Ok(report)
    }

    /// Waits for the oldest append, and notes how far all before it have come. Returns the rows it refused.
    async fn settle(
        &self,
        appending: &mut FuturesOrdered<Appending<'_>>,
        checkpoint: &mut Checkpoint,
        saved: &mut Instant,
        report: &mut BackfillReport,
    ) -> Result<Vec<Rejection>, BackfillError> {
        let Some((rows, result)) = appending.next().await else { return Ok(Vec::new()) };
        let failed = |source| BackfillError::Store { source, rows: checkpoint.rows() };
        let (counts, refused) = match result {
            Ok(stored) => stored,
            Err(source) => return Err(failed(source)),
        };
        report.rejected += refused.len() as u64;
        report.unreadable += refused.len() as u64;
        report.counts.accepted += counts.accepted;
        report.counts.duplicates += counts.duplicates;
        if rows > checkpoint.rows() && saved.elapsed() >= CHECKPOINT_INTERVAL {
            checkpoint.save(rows)?;
            *saved = Instant::now();
        }
        Ok(refused)
    }

    /// `numbers`: the events' rows.
    fn append(&self, rows: u64, events: Vec<Event>, numbers: Vec<u64>) -> Appending<'_> {
        let stored = move |appended: Appended| {
            let refused = appended.refused.into_iter().map(|(place, error)| Rejection {
                row: numbers[place],
                field: "user_id".to_owned(),
                reason: format!("cannot be stored: {error}"),
            });
            (appended.counts, refused.collect())
        };
        Box::pin(async move {
            if events.is_empty() {
                return (rows, Ok(Stored::default()));
            }
            let mut backoff = Backoff::new(PAUSE, PAUSE * 2_u32.pow(MAX_ATTEMPTS));
            for _ in 1..MAX_ATTEMPTS {
                match self.ingest.append_history(self.spaces, events.clone()).await {
                    // The store may be full or starting again.
                    Err(error) => tracing::warn!(%error, "append failed, trying again"),
                    Ok(appended) => return (rows, Ok(stored(appended))),
                }
                tokio::time::sleep(backoff.pause()).await;
            }
            (rows, self.ingest.append_history(self.spaces, events).await.map(stored))
        })
    }

    /// A schedule, not a pause after each batch: a slow answer does not lower the rate.
    async fn keep_rate(&self, started: Instant, rows: u64) {
        if self.options.rate > 0 {
            let due = started + Duration::from_secs_f64(rows as f64 / self.options.rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
    }

    /// Gives the users behind their due times, the most active first.
    async fn mark(
        &self,
        activity: HashMap<String, u32>,
        rows: u64,
        mut progress: impl FnMut(Progress),
    ) -> Result<usize, BackfillError> {
        if self.options.refresh_rate <= 0.0 {
            return Ok(0);
        }
        let mut ranked: Vec<(u32, String)> = activity.into_iter().map(|(user, events)| (events, user)).collect();
        ranked.sort_unstable_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
        let most = if self.options.refresh_users == 0 { ranked.len() } else { self.options.refresh_users };
        let users: Vec<String> = ranked.into_iter().map(|(_, user)| user).collect();
        let (mut marked, mut looked_at) = (0, 0);
        while marked < most && looked_at < users.len() {
            // No more than may still become due: some of them may be up to date.
            let end = users.len().min(looked_at + MARK_BATCH.min(most - marked));
            let after_ms = |place: usize| ((marked + place) as f64 * 1000.0 / self.options.refresh_rate) as i64;
            let more = self.ingest.mark_behind(self.spaces, &users[looked_at..end], after_ms).await;
            marked += more.map_err(|source| BackfillError::Store { source, rows })?;
            looked_at = end;
            progress(Progress::Marked(looked_at, users.len()));
        }
        Ok(marked)
    }
}

fn decode(
    decoder: &EventDecoder,
    row: Result<serde_json::Value, String>,
    now_ms: i64,
) -> Result<Event, (String, String)> {
    let value = row.map_err(|reason| ("row".to_owned(), reason))?;
    decoder.decode(&value, now_ms).map_err(|error| (error.field, error.reason))
}

#[cfg(test)]
mod tests;
