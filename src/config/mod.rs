//! Typed settings: compiled-in defaults ← file ← environment ← flags, checked whole before anything is opened.
//!
//! In: an optional file, `TAIJI__SECTION__KEY` variables, flag overrides. Out: [`Settings`], or every error at once.
//! Callers: `main` (all commands). The commented `default.toml` is the reference for users.

pub(crate) mod kafka_properties;
mod keys_file;
mod layers;
mod validate;

pub use keys_file::ScopedKeys;
pub use layers::{DEFAULT_TOML, load};

use crate::event::ActionTable;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use thiserror::Error;

/// All configuration errors found, one a line.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigErrors(pub Vec<String>);

/// Everything that can be set. Field meanings are the comments of `default.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Settings {
    pub server: ServerSettings,
    pub auth: AuthSettings,
    pub tls: TlsSettings,
    pub store: StoreSettings,
    pub bundle: BundleSettings,
    pub engine: EngineSettings,
    pub events: EventSettings,
    pub kafka: KafkaSettings,
    pub refresh: RefreshSettings,
    pub retrieve: RetrieveSettings,
    pub catalogue: CatalogueSettings,
    pub erase: EraseSettings,
    pub openai: OpenAiSettings,
    pub telemetry: TelemetrySettings,
    pub log: LogSettings,
}

/// `[server]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ServerSettings {
    pub roles: Vec<Role>,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    pub max_body_bytes: usize,
    pub max_events: usize,
    pub max_users: usize,
    pub max_in_flight: usize,
    pub queue_ms: u64,
    pub max_connections: usize,
    pub max_streams: u32,
    pub header_timeout_ms: u64,
    pub body_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub max_pending_body_bytes: usize,
    pub max_waiting: usize,
    pub max_wait_ms: u64,
    pub drain_timeout_ms: u64,
    pub drain_delay_ms: u64,
}

impl ServerSettings {
    /// Whether this process has the role.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// What a process does (DESIGN 5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The public port: events and items in, features out.
    Api,
    /// Reads Kafka.
    Ingest,
    /// Refreshes users; the only one with models and the user index.
    Infer,
}

/// `[auth]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct AuthSettings {
    pub read_keys: Vec<String>,
    pub write_keys: Vec<String>,
    pub admin_keys: Vec<String>,
    pub keys_file: String,
}

impl AuthSettings {
    /// The keys that stand in the settings themselves.
    pub fn own_keys(&self) -> ScopedKeys {
        ScopedKeys {
            read_keys: self.read_keys.clone(),
            write_keys: self.write_keys.clone(),
            admin_keys: self.admin_keys.clone(),
        }
    }
}

/// Keys never reach a log.
impl std::fmt::Debug for AuthSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (read, write, admin) = (self.read_keys.len(), self.write_keys.len(), self.admin_keys.len());
        write!(formatter, "AuthSettings({read} read, {write} write, {admin} admin keys, file {:?})", self.keys_file)
    }
}

/// `[tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TlsSettings {
    pub certificate_file: String,
    pub key_file: String,
    pub ports: Vec<PortName>,
}

impl TlsSettings {
    /// Whether any port speaks TLS.
    pub fn is_on(&self) -> bool {
        !self.certificate_file.is_empty()
    }

    /// Whether this one does.
    pub fn covers(&self, port: PortName) -> bool {
        self.is_on() && self.ports.contains(&port)
    }
}

/// A port of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortName {
    /// `server.listen`
    Public,
    /// `openai.listen`
    OpenAi,
    /// `server.admin_listen`
    Admin,
}

/// `[store]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct StoreSettings {
    pub url: String,
    pub namespace: String,
    pub cluster: String,
    pub flush_interval_ms: u64,
    pub connect_timeout_ms: u64,
    pub response_timeout_ms: u64,
    pub read_deadline_ms: u64,
    pub retries: u32,
    pub ack: AckKind,
    pub ack_replicas: u32,
    pub ack_timeout_ms: u64,
    pub allow_eviction: bool,
    pub user_idle_ttl_ms: i64,
    pub shards: u32,
    pub ca_file: String,
    pub sentinel_user: String,
    pub sentinel_password: String,
}

/// What must have happened to a write before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckKind {
    /// The store has carried it out.
    Applied,
    /// Replicas have it, too.
    Replicated,
    /// It is on the disk of the master, and of replicas where there are any.
    Synced,
}

/// The url may hold a password, and the sentinels have one; neither ever reaches a log.
impl std::fmt::Debug for StoreSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "StoreSettings(namespace {})", self.namespace)
    }
}

/// `[bundle]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct BundleSettings {
    pub dir: std::path::PathBuf,
}

/// Which engine answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The bundle's models through ONNX Runtime.
    Onnx,
    /// Canned answers and vectors (DESIGN 5.7).
    Null,
}

/// Where the LLM computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// This machine's processor.
    Cpu,
    /// An NVIDIA GPU; an error where there is none.
    Cuda,
}

/// `[engine]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EngineSettings {
    pub kind: EngineKind,
    pub null_latency_ms: u64,
    pub null_hangs_after: u64,
    pub stall_ms: u64,
    pub onnxruntime: String,
    pub llm_threads: usize,
    pub encoder_threads: usize,
    pub llm_spin: bool,
    pub provider: ProviderKind,
    pub device: i32,
    pub cuda_graphs: bool,
    pub device_memory_bytes: usize,
    pub max_rows: usize,
    pub queue_limit: usize,
    pub queue_tokens: usize,
    pub max_batch_tokens: usize,
    pub prefill_chunk: usize,
    pub prepack_dir: String,
}

/// `[events]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EventSettings {
    pub field_map: BTreeMap<String, String>,
    pub actions: ActionTable,
}

/// `[kafka]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct KafkaSettings {
    pub brokers: String,
    pub group: String,
    pub events_topic: String,
    pub items_topic: String,
    pub dead_letter_topic: String,
    pub features_topic: String,
    pub served_topic: String,
    pub served_sample: f64,
    pub commit_delay_ms: u64,
    pub lanes: usize,
    pub batch_records: usize,
    pub max_in_flight_records: usize,
    pub max_in_flight_bytes: usize,
    pub max_record_bytes: usize,
    pub max_replays: u32,
    pub properties: BTreeMap<String, String>,
}

impl KafkaSettings {
    /// True when a broker is named.
    pub fn is_on(&self) -> bool {
        !self.brokers.is_empty()
    }
}

/// The properties hold passwords, which never reach a log.
impl std::fmt::Debug for KafkaSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let properties: Vec<&String> = self.properties.keys().collect();
        formatter
            .debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("group", &self.group)
            .field("events_topic", &self.events_topic)
            .field("items_topic", &self.items_topic)
            .field("properties", &properties)
            .finish_non_exhaustive()
    }
}

/// `[refresh]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RefreshSettings {
    pub enabled: bool,
    pub concurrency: usize,
    pub weight_threshold: f64,
    pub min_interval_ms: i64,
    pub max_interval_ms: i64,
    pub immediate_actions: Vec<String>,
    pub lease_ms: u64,
    pub deadline_ms: u64,
    pub poll_ms: u64,
    pub sweep_interval_ms: u64,
    pub ttl_ms: i64,
    pub retry_ms: i64,
    pub tokens_per_second: u64,
    pub tokens_per_day: u64,
    pub reader_refreshes: u32,
    pub reader_refreshes_per_key: u32,
    pub sparse_events: u64,
    pub returning_after_ms: i64,
    pub fast_path: bool,
    pub mode: RefreshModes,
}

/// `[refresh.mode]`: how the model is asked to answer, by due class.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RefreshModes {
    pub sync: RefreshMode,
    pub urgent: RefreshMode,
    pub threshold: RefreshMode,
    pub routine: RefreshMode,
}

/// How the model is asked to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefreshMode {
    /// As the bundle's prompt schema names first.
    Bundle,
    /// It reasons first, where the bundle has that.
    Think,
    /// It answers at once, where the bundle has that.
    NoThink,
}

/// `[retrieve]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RetrieveSettings {
    pub candidates: usize,
    pub tie_epsilon: f32,
    pub nprobe: usize,
    pub min_engagements: usize,
    pub max_referrers: usize,
    pub min_item_users: u32,
    pub tail_interval_ms: u64,
}

/// `[catalogue]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct CatalogueSettings {
    pub max_items: usize,
}

/// `[erase]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EraseSettings {
    pub retention_ms: i64,
    pub interval_ms: u64,
}

/// `[openai]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct OpenAiSettings {
    #[serde(deserialize_with = "address_or_empty")]
    pub listen: Option<SocketAddr>,
    pub max_tokens_default: usize,
    pub max_inputs: usize,
    pub max_in_flight: usize,
    pub deadline_ms: u64,
    pub template: String,
}

/// An address; empty text = none.
fn address_or_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

/// `[telemetry]`
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TelemetrySettings {
    pub id_key: String,
}

/// The key never reaches a log.
impl std::fmt::Debug for TelemetrySettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = if self.id_key.is_empty() { "no key" } else { "a key" };
        write!(formatter, "TelemetrySettings({key})")
    }
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LogSettings {
    pub level: String,
    pub format: String,
}
