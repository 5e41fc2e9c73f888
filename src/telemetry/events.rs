//! Happenings worth a log line and a counter: one struct each, so that the two cannot disagree.

use super::{Metrics, Stall};
use crate::log_id::LogId;
use crate::store::PutRefusal;
use std::time::Instant;

/// Events of one call were stored.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct EventsStored {
    pub accepted: u64,
    pub duplicates: u64,
    pub rejected: u64,
}

impl EventsStored {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.events.with_label_values(&["accepted"]).inc_by(self.accepted);
        metrics.events.with_label_values(&["duplicate"]).inc_by(self.duplicates);
        metrics.events.with_label_values(&["rejected"]).inc_by(self.rejected);
        tracing::debug!(
            accepted = self.accepted,
            duplicates = self.duplicates,
            rejected = self.rejected,
            "events stored"
        );
    }
}

/// Items of one call were stored.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct ItemsStored {
    pub accepted: u64,
    pub rejected: u64,
}

impl ItemsStored {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.items.with_label_values(&["accepted"]).inc_by(self.accepted);
        metrics.items.with_label_values(&["rejected"]).inc_by(self.rejected);
        tracing::debug!(accepted = self.accepted, rejected = self.rejected, "items stored");
    }
}

/// How one refresh ended.
#[allow(missing_docs)]
pub enum RefreshEnded<'a> {
    Written {
        user: &'a str,
        seq: u64,
        seconds: f64,
    },
    Skipped {
        user: &'a str,
        seq: u64,
    },
    /// No event of the user is kept.
    Nothing {
        user: &'a str,
    },
    Refused {
        user: &'a str,
        refusal: PutRefusal,
    },
    Failed {
        user: &'a str,
        error: &'a dyn std::fmt::Display,
    },
    /// The LLM's queue was full; the user waits.
    Deferred {
        user: &'a str,
    },
}

impl RefreshEnded<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        let count = |result: &str| metrics.refreshes.with_label_values(&[result]).inc();
        match self {
            RefreshEnded::Written { user, seq, seconds } => {
                count("written");
                metrics.refresh_duration.observe(*seconds);
                tracing::debug!(user, seq, seconds, "refresh written");
            }
            RefreshEnded::Skipped { user, seq } => {
                count("skipped");
                metrics.skips.with_label_values(&["unchanged"]).inc();
                tracing::debug!(user, seq, "refresh skipped: prompt unchanged");
            }
            RefreshEnded::Nothing { user } => {
                count("skipped");
                metrics.skips.with_label_values(&["no_events"]).inc();
                tracing::debug!(user, "refresh skipped: no event is kept");
            }
            RefreshEnded::Refused { user, refusal } => {
                count("refused");
                tracing::info!(user = %LogId(user), ?refusal, "refresh refused by the store");
                tracing::debug!(user, "refresh refused by the store");
            }
            RefreshEnded::Failed { user, error } => {
                count("failed");
                tracing::warn!(user = %LogId(user), %error, "refresh failed; the user stays due");
                tracing::debug!(user, "refresh failed");
            }
            RefreshEnded::Deferred { user } => {
                count("deferred");
                tracing::debug!(user, "refresh deferred: llm queue full");
            }
        }
    }
}

/// A model of this process stopped making steps, or goes on.
#[allow(missing_docs)]
pub struct ModelStalled<'a> {
    pub stalls: &'a [Stall],
    pub is_over: bool,
}

impl ModelStalled<'_> {
    /// Logs; `/readyz` says it, too.
    pub fn emit(&self) {
        match self.is_over {
            true => tracing::info!("the models make steps again: users are taken out of the queue"),
            false => {
                tracing::error!(stalls = ?self.stalls, "a model has work and makes no step: nobody is taken out of the queue")
            }
        }
    }
}

/// How one user's turn at the fast path ended.
#[allow(missing_docs)]
pub enum QuickEnded<'a> {
    /// Seconds of the work, and since the user became due.
    Written {
        user: &'a str,
        seq: u64,
        seconds: f64,
        waited: f64,
    },
    /// The user has living features, or no event that has words.
    Needless {
        user: &'a str,
    },
    /// The LLM was quicker, or the user was erased.
    Refused {
        user: &'a str,
    },
    Failed {
        user: &'a str,
        error: &'a dyn std::fmt::Display,
    },
}

impl QuickEnded<'_> {
    /// Counts and logs. Only what was written is a refresh; a failure is counted as one, so that it shows.
    pub fn emit(&self, metrics: &Metrics) {
        match self {
            QuickEnded::Written { user, seq, seconds, waited } => {
                metrics.refreshes.with_label_values(&["fast"]).inc();
                metrics.fast_freshness.observe(*waited);
                tracing::debug!(user, seq, seconds, "quick answer written");
            }
            QuickEnded::Needless { user } => tracing::debug!(user, "no quick answer is needed"),
            QuickEnded::Refused { user } => tracing::debug!(user, "quick answer came too late"),
            QuickEnded::Failed { user, error } => {
                metrics.refreshes.with_label_values(&["fast_failed"]).inc();
                tracing::warn!(user = %LogId(user), %error, "quick answer failed; the user stays due for the llm");
                tracing::debug!(user, "quick answer failed");
            }
        }
    }
}

/// An erasure was asked for; the user can no longer be read.
#[allow(missing_docs)]
pub struct ErasureNoted<'a> {
    pub user: &'a str,
    pub referrers: usize,
}

impl ErasureNoted<'_> {
    /// Counts and logs; who it was only at debug level.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.erasures.with_label_values(&["noted"]).inc();
        tracing::info!(referrers = self.referrers, "erasure noted; the user can no longer be read");
        tracing::debug!(user = self.user, "erasure noted");
    }
}

/// The last step of an erasure was done.
#[allow(missing_docs)]
pub struct ErasureFinished<'a> {
    pub user: &'a str,
    pub referrers: usize,
}

impl ErasureFinished<'_> {
    /// Counts and logs; who it was only at debug level.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.erasures.with_label_values(&["finished"]).inc();
        tracing::info!(referrers = self.referrers, "erasure finished");
        tracing::debug!(user = self.user, "erasure finished");
    }
}

/// The store is not there yet at the start, and is asked again.
#[allow(missing_docs)]
pub struct StoreAwaited<'a> {
    pub error: &'a dyn std::fmt::Display,
}

impl StoreAwaited<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.store_errors.with_label_values(&["open"]).inc();
        match metrics.repeated.admit("open", Instant::now()) {
            Some(held_back) => tracing::warn!(error = %self.error, held_back, "waiting for the store"),
            None => tracing::debug!(error = %self.error, "waiting for the store"),
        }
    }
}

/// A store call failed. While the store is away calls fail many times a second: the log has a line a minute and operation.
#[allow(missing_docs)]
pub struct StoreCallFailed<'a> {
    pub operation: &'a str,
    pub error: &'a dyn std::fmt::Display,
}

impl StoreCallFailed<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.store_errors.with_label_values(&[self.operation]).inc();
        let StoreCallFailed { operation, error } = *self;
        match metrics.repeated.admit(operation, Instant::now()) {
            Some(held_back) => tracing::error!(operation, %error, held_back, "store call failed"),
            None => tracing::debug!(operation, %error, "store call failed"),
        }
    }
}

/// A connection was closed by us.
#[allow(missing_docs)]
pub struct ConnectionClosed {
    pub port: &'static str,
    pub reason: &'static str,
}

impl ConnectionClosed {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.connections_closed.with_label_values(&[self.port, self.reason]).inc();
        tracing::debug!(port = self.port, reason = self.reason, "connection closed");
    }
}

/// A client did not come to speak TLS with us.
#[allow(missing_docs)]
pub struct HandshakeFailed<'a> {
    pub port: &'static str,
    pub reason: &'static str,
    pub error: &'a str,
}

impl HandshakeFailed<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.tls_handshakes_failed.with_label_values(&[self.port, self.reason]).inc();
        tracing::debug!(port = self.port, reason = self.reason, error = self.error, "no handshake");
    }
}

/// A file of keys or certificates changed: what it holds counts from now on, or it is broken and changes nothing.
#[allow(missing_docs)]
pub struct FileReloaded<'a> {
    /// keys, certificate.
    pub file: &'static str,
    pub result: &'a Result<(), String>,
}

impl FileReloaded<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        let count = |result: &str| metrics.file_reloads.with_label_values(&[self.file, result]).inc();
        match self.result {
            Ok(()) => {
                count("loaded");
                tracing::info!(file = self.file, "a changed file was read; what it holds counts from now on");
            }
            Err(error) => {
                count("refused");
                tracing::error!(file = self.file, error, "a changed file cannot be used; what was loaded stays");
            }
        }
    }
}

/// A connection could not be accepted.
#[allow(missing_docs)]
pub struct AcceptFailed<'a> {
    pub port: &'static str,
    pub error: &'a dyn std::fmt::Display,
    /// Whether it is worth a line, or one was written not long ago.
    pub is_logged: bool,
}

impl AcceptFailed<'_> {
    /// Counts and logs.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.accept_failures.with_label_values(&[self.port]).inc();
        if self.is_logged {
            tracing::error!(port = self.port, error = %self.error, "connections cannot be accepted");
        }
    }
}
