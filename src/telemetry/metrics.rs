//! Every metric of the process, in one table. Names: prefix `taiji_`, base units, `_total` on counters.

use super::repeated::Repeated;
use crate::event::BadReason;
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Seconds, from a cache hit to a stuck call.
const LATENCY_BUCKETS: [f64; 19] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0,
];
/// Seconds from an event's acceptance to features that show it.
const FRESHNESS_BUCKETS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0];

macro_rules! metrics_table {
    ($($field:ident : $kind:ident [$($label:literal),*] $name:literal $help:literal $(in $buckets:ident)?;)*) => {
        /// The process's metrics; one instance, shared by `Arc`.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            /// Of the log lines that go with the numbers.
            pub(super) repeated: Repeated,
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Metrics {
            /// Registers every metric.
            pub fn new() -> Result<Metrics, prometheus::Error> {
                let registry = Registry::new();
                $(
                    let $field = metrics_table!(@make $kind $name, $help, [$($label),*] $(, $buckets)?);
                    registry.register(Box::new($field.clone()))?;
                )*
                #[cfg(target_os = "linux")]
                registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
                Ok(Metrics { registry, repeated: Repeated::default(), $($field,)* })
            }

            /// (name, help) of every metric of the table, for the documentation and its drift test.
            pub fn inventory() -> Vec<(&'static str, &'static str)> {
                vec![$(($name, $help),)*]
            }
        }
    };
    (@make Counter $name:literal, $help:literal, []) => { Counter::new($name, $help)? };
    (@make IntCounter $name:literal, $help:literal, []) => { IntCounter::new($name, $help)? };
    (@make IntGauge $name:literal, $help:literal, []) => { IntGauge::new($name, $help)? };
    (@make Gauge $name:literal, $help:literal, []) => { Gauge::new($name, $help)? };
    (@make IntCounterVec $name:literal, $help:literal, [$($label:literal),*]) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),*])?
    };
    (@make IntGaugeVec $name:literal, $help:literal, [$($label:literal),*]) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),*])?
    };
    (@make GaugeVec $name:literal, $help:literal, [$($label:literal),*]) => {
        GaugeVec::new(Opts::new($name, $help), &[$($label),*])?
    };
    (@make Histogram $name:literal, $help:literal, [], $buckets:ident) => {
        Histogram::with_opts(HistogramOpts::new($name, $help).buckets($buckets.to_vec()))?
    };
    (@make HistogramVec $name:literal, $help:literal, [$($label:literal),*], $buckets:ident) => {
        HistogramVec::new(HistogramOpts::new($name, $help).buckets($buckets.to_vec()), &[$($label),*])?
    };
}

metrics_table! {
    http_requests: IntCounterVec ["route", "status"] "taiji_http_requests_total" "HTTP requests by route and status.";
    http_duration: HistogramVec ["route"] "taiji_http_request_duration_seconds" "Time to answer an HTTP request." in LATENCY_BUCKETS;
    http_in_flight: IntGauge [] "taiji_http_requests_in_flight" "Requests being worked on.";
    http_shed: IntCounter [] "taiji_http_shed_total" "Requests refused with 429 because too many were in flight.";
    connections: IntGaugeVec ["port"] "taiji_connections" "Connections by port: public, openai, admin.";
    connections_closed: IntCounterVec ["port", "reason"] "taiji_connections_closed_total" "Connections closed by us, by reason: header_timeout, idle_timeout, write_timeout, port_full.";
    accept_failures: IntCounterVec ["port"] "taiji_accept_failures_total" "Connections that could not be accepted, most often for want of open files.";
    tls_handshakes_failed: IntCounterVec ["port", "reason"] "taiji_tls_handshakes_failed_total" "TLS handshakes that failed, by reason: failed, broken_off (the client went away), plain_http, no_tls.";
    certificate_ends: IntGauge [] "taiji_tls_certificate_expiry_timestamp_seconds" "When the certificate of our ports ends, in Unix seconds. 0 without TLS.";
    file_reloads: IntCounterVec ["file", "result"] "taiji_file_reloads_total" "Changed files of keys and certificates, by result: loaded, refused (broken: what was loaded stays).";
    waiting: IntGauge [] "taiji_waiting_requests" "Requests waiting for a refresh (wait_ms, deadline_ms).";
    waits: IntCounterVec ["result"] "taiji_waits_total" "Waits for refreshes by end: fresh, late (time over), draining, refused (too many wait).";
    reader_refreshes: IntCounterVec ["result"] "taiji_reader_refreshes_total" "Refreshes asked for by readers, by result: granted, over (the readers' budget).";
    events: IntCounterVec ["result"] "taiji_events_total" "Events by result: accepted, duplicate, rejected.";
    items: IntCounterVec ["result"] "taiji_items_total" "Catalogue items by result: accepted, rejected.";
    kafka_records: IntCounterVec ["topic", "outcome"] "taiji_kafka_records_total" "Kafka records by outcome: accepted, duplicate, dead_letter, dropped (taken away or rewound before their work began).";
    kafka_dead_letters: IntCounterVec ["reason"] "taiji_kafka_dead_letters_total" "Bad records set aside, by reason.";
    kafka_lag_records: IntGaugeVec ["topic", "partition"] "taiji_kafka_lag_records" "Records of our partitions that are not stored yet.";
    kafka_lag_seconds: GaugeVec ["topic", "partition"] "taiji_kafka_lag_seconds" "Age of the oldest record read and not stored yet.";
    kafka_in_flight: IntGauge [] "taiji_kafka_in_flight_records" "Records read and not stored yet.";
    kafka_paused: IntGauge [] "taiji_kafka_paused" "1 while reading is paused: too much is under way, or the store refuses.";
    kafka_offsets_held: IntGauge [] "taiji_kafka_offsets_held" "1 while no offset is released because fewer replicas than store.ack_replicas have what was stored.";
    kafka_rebalances: IntCounterVec ["kind"] "taiji_kafka_rebalances_total" "Rebalances by kind: assign, revoke, lost.";
    kafka_rewinds: IntCounter [] "taiji_kafka_rewinds_total" "Times the store may have lost its tail and records were read again.";
    kafka_commits: IntCounterVec ["result"] "taiji_kafka_commits_total" "Commits of offsets by result: ok, failed.";
    kafka_features: IntCounterVec ["result"] "taiji_kafka_features_total" "Users' features for the change feed, by result: published, dropped (too many were waiting).";
    kafka_served: IntCounterVec ["result"] "taiji_kafka_served_total" "Users' answers for the served topic, by result: published, dropped (too many were waiting, too large, or the process ended).";
    kafka_retries: IntCounterVec ["what"] "taiji_kafka_retries_total" "Failed and tried again, by what: append, items, dead_letter, features, served, incarnation, replicas, flush, seek, pause, poll, store_offsets.";
    served: IntCounterVec ["group", "status"] "taiji_served_values_total" "Feature groups served, by status: present or the reason of absence.";
    refreshes: IntCounterVec ["result"] "taiji_refreshes_total" "Refreshes by result: written, skipped, refused, failed, deferred (the LLM's queue was full); of the fast path: fast, fast_failed.";
    refresh_duration: Histogram [] "taiji_refresh_duration_seconds" "Time of one refresh, claim to release." in LATENCY_BUCKETS;
    stage_duration: HistogramVec ["stage"] "taiji_stage_duration_seconds" "Time of one stage of a refresh: read, prompt, llm, encode, retrieve, write." in LATENCY_BUCKETS;
    freshness: Histogram [] "taiji_freshness_seconds" "Time from due to features written." in FRESHNESS_BUCKETS;
    fast_freshness: Histogram [] "taiji_fast_freshness_seconds" "Time from due to a first answer of the fast path." in FRESHNESS_BUCKETS;
    queue_users: IntGaugeVec ["class"] "taiji_queue_users" "Users waiting for a refresh, by class (0 = most urgent).";
    queue_age: GaugeVec ["class"] "taiji_queue_oldest_age_seconds" "How long the longest-waiting user of a class has been due.";
    queue_fast: IntGauge [] "taiji_queue_fast_users" "Users waiting for the fast path.";
    queue_leased: IntGauge [] "taiji_queue_leased" "Users being refreshed now.";
    queue_held: IntGauge [] "taiji_queue_held_users" "Users behind by bulk history alone, whom the sweep passes over, as of the last sweep.";
    queue_swept: IntCounter [] "taiji_queue_swept_total" "Users the sweep found stale and in no queue.";
    skips: IntCounterVec ["reason"] "taiji_refresh_skips_total" "Refreshes that needed no LLM, by reason: unchanged (the prompt), no_events (nothing is kept).";
    budget_left: GaugeVec ["window"] "taiji_refresh_budget_left_tokens" "LLM tokens left for refreshes by window: second, day; below 0 is a debt. Absent without a limit.";
    budget_held: Counter [] "taiji_refresh_budget_held_seconds_total" "Time in which users were due and the worker had room, but the token budget let none begin.";
    erasures: IntCounterVec ["result"] "taiji_erasures_total" "Erasures of users by state: noted, finished; idle: begun for store.user_idle_ttl_ms.";
    answers: IntCounterVec ["mode", "format", "grounded"] "taiji_answers_total" "LLM answers by mode (think, no_think), format (ok, broken) and grounding (item, category, none).";
    llm_tokens: IntCounterVec ["kind"] "taiji_llm_tokens_total" "LLM tokens: prompt (read), cached (out of the prefix cache), generated.";
    llm_queue: IntGauge [] "taiji_llm_queue_requests" "Requests waiting for the LLM.";
    llm_queue_tokens: IntGauge [] "taiji_llm_queue_tokens" "Tokens, prompts and answers, that the waiting requests may take.";
    llm_rows: IntGauge [] "taiji_llm_rows" "Requests the LLM is working on.";
    llm_requests: IntCounterVec ["result"] "taiji_llm_requests_total" "LLM requests by end: done, failed, cancelled, deadline, overloaded, no_legal_token.";
    llm_steps: HistogramVec ["kind"] "taiji_llm_step_duration_seconds" "Time of one graph call of the LLM by kind: prefill, decode, beam." in LATENCY_BUCKETS;
    llm_first_token: HistogramVec ["priority"] "taiji_llm_first_token_seconds" "Time from queued to the first token, by class." in LATENCY_BUCKETS;
    llm_prefix: IntCounterVec ["result"] "taiji_llm_prefix_lookups_total" "Prompts looked up in the prefix cache: hit, miss.";
    llm_panics: IntCounter [] "taiji_llm_panics_total" "Panics caught in the LLM engine; from the first on the process is unready.";
    prompts_truncated: IntCounter [] "taiji_prompts_truncated_total" "Prompts that lost their oldest history to the token limit.";
    neighbours: IntCounterVec ["result"] "taiji_neighbours_total" "Neighbour searches by result: found, none.";
    index_vectors: IntGaugeVec ["part"] "taiji_index_vectors" "Users in the index: main (bundle), fresh (since).";
    store_duration: HistogramVec ["operation"] "taiji_store_operation_duration_seconds" "Time of a store call." in LATENCY_BUCKETS;
    store_errors: IntCounterVec ["operation"] "taiji_store_errors_total" "Store calls that failed.";
    store_unreadable: IntCounterVec ["kind"] "taiji_store_unreadable_total" "Records of the store that could not be read, by kind: state, history, features, referrers, vector, item, item_users, due, erasure, space, count.";
    store_reachable: IntGauge [] "taiji_store_reachable" "1 while the store can be asked; 0 while no node of it answers.";
    store_gauges_age: Gauge [] "taiji_store_gauges_age_seconds" "How old the numbers are that were read from the store: queues, leases, users, bytes.";
    store_users: IntGauge [] "taiji_store_users" "Users with a history.";
    store_bytes: IntGauge [] "taiji_store_disk_bytes" "Bytes of the embedded store on disk; 0 on Redis.";
    store_memory: IntGauge [] "taiji_store_memory_bytes" "Bytes of memory that Redis uses, all masters together; 0 on the embedded store.";
    catalogue_items: IntGaugeVec ["part"] "taiji_catalogue_items" "Items known: bundle, overlay.";
    bundle_info: IntGaugeVec ["epoch", "space", "model", "engine"] "taiji_bundle_info" "1 for the bundle being served.";
    build_info: IntGaugeVec ["version"] "taiji_build_info" "1 for the version of this program.";
    ready: IntGauge [] "taiji_ready" "1 when every readiness latch is released.";
}

impl Metrics {
    /// The Prometheus text exposition of everything registered.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut buffer = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }

    /// Makes label values appear at zero from the start, so that a rate is defined before the first happening.
    pub fn preset_labels(&self) {
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for result in ["accepted", "duplicate", "rejected"] {
            self.events.with_label_values(&[result]);
        }
        for reason in ["header_timeout", "idle_timeout", "write_timeout", "port_full"] {
            self.connections_closed.with_label_values(&["public", reason]);
        }
        for file in ["keys", "certificate"] {
            for result in ["loaded", "refused"] {
                self.file_reloads.with_label_values(&[file, result]);
            }
        }
        for reason in ["failed", "broken_off", "plain_http", "no_tls"] {
            self.tls_handshakes_failed.with_label_values(&["public", reason]);
        }
        for result in ["granted", "over"] {
            self.reader_refreshes.with_label_values(&[result]);
        }
        for result in ["fresh", "late", "draining", "refused"] {
            self.waits.with_label_values(&[result]);
        }
        for result in ["accepted", "rejected"] {
            self.items.with_label_values(&[result]);
        }
        for reason in BadReason::ALL {
            self.kafka_dead_letters.with_label_values(&[reason.as_str()]);
        }
        for kind in ["assign", "revoke", "lost"] {
            self.kafka_rebalances.with_label_values(&[kind]);
        }
        for result in ["published", "dropped"] {
            self.kafka_features.with_label_values(&[result]);
            self.kafka_served.with_label_values(&[result]);
        }
        for result in ["ok", "failed"] {
            self.kafka_commits.with_label_values(&[result]);
        }
        for result in ["written", "skipped", "refused", "failed", "deferred", "fast", "fast_failed"] {
            self.refreshes.with_label_values(&[result]);
        }
        for reason in ["unchanged", "no_events"] {
            self.skips.with_label_values(&[reason]);
        }
        for result in ["noted", "finished", "idle"] {
            self.erasures.with_label_values(&[result]);
        }
        for kind in ["prompt", "cached", "generated"] {
            self.llm_tokens.with_label_values(&[kind]);
        }
        for result in ["found", "none"] {
            self.neighbours.with_label_values(&[result]);
        }
        for part in ["main", "fresh"] {
            self.index_vectors.with_label_values(&[part]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_once_and_renders() {
        let metrics = Metrics::new().expect("register");
        metrics.preset_labels();
        metrics.events.with_label_values(&["accepted"]).inc();
        let text = metrics.render().expect("render");
        assert!(text.contains("taiji_events_total{result=\"accepted\"} 1"), "{text}");
        assert!(text.contains("process_resident_memory_bytes"), "{text}");
    }

    #[test]
    fn audit_08_buckets_reach_beyond_the_longest_wait_and_the_version_is_told() {
        let metrics = Metrics::new().expect("register");
        metrics.preset_labels();
        metrics.llm_first_token.with_label_values(&["0"]).observe(45.0);
        let text = metrics.render().expect("render");
        assert!(text.contains(&format!("taiji_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))), "{text}");
        for (bucket, count) in [("30", 0), ("60", 1), ("120", 1)] {
            let line = format!("taiji_llm_first_token_seconds_bucket{{priority=\"0\",le=\"{bucket}\"}} {count}");
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let page = include_str!("../../docs/ARCHITECTURE.md");
        let missing: Vec<&str> =
            Metrics::inventory().into_iter().map(|(name, _)| name).filter(|name| !page.contains(name)).collect();
        assert!(missing.is_empty(), "docs/ARCHITECTURE.md does not name {missing:?}");
    }

    #[test]
    fn names_follow_the_rules() {
        for (name, help) in Metrics::inventory() {
            assert!(name.starts_with("taiji_") && help.ends_with('.'), "{name}");
        }
    }
}
