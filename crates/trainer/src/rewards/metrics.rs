//! What `GET /metrics` says, in Prometheus' text form.

use crate::reward::RewardSet;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use std::time::Duration;

/// Of one service.
pub(super) struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    answers: IntCounter,
    seconds: Histogram,
    grounded: IntGaugeVec,
}

impl Metrics {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let requests = IntCounterVec::new(
            Opts::new("taiji_rewards_requests_total", "Calls of POST /v1/rewards by status."),
            &["status"],
        )?;
        let answers = IntCounter::new("taiji_rewards_answers_total", "Answers that were valued.")?;
        let seconds = Histogram::with_opts(
            HistogramOpts::new("taiji_rewards_round_seconds", "Time of the worker for what waited together.")
                .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
        )?;
        let grounded = IntGaugeVec::new(
            Opts::new(
                "taiji_rewards_simulated",
                "Answers by where the simulator knew their chance from, since the start.",
            ),
            &["level"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(answers.clone()))?;
        registry.register(Box::new(seconds.clone()))?;
        registry.register(Box::new(grounded.clone()))?;
        Ok(Self { registry, requests, answers, seconds, grounded })
    }

    pub(super) fn request(&self, status: u16) {
        self.requests.with_label_values(&[status.to_string()]).inc();
    }

    pub(super) fn valued(&self, answers: usize) {
        self.answers.inc_by(answers as u64);
    }

    pub(super) fn round(&self, took: Duration, rewards: &RewardSet) {
        self.seconds.observe(took.as_secs_f64());
        if let Some(telemetry) = rewards.telemetry() {
            self.grounded.with_label_values(&["none"]).set(telemetry.ungrounded as i64);
            for (level, count) in &telemetry.levels {
                self.grounded.with_label_values(&[level.name()]).set(*count as i64);
            }
        }
    }

    pub(super) fn text(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}
