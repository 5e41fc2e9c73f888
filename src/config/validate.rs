//! Ranges and relations that types cannot express; every violation is reported.

use super::{AckKind, ConfigErrors, Role, Settings, kafka_properties};
use crate::event::ActionClass;
use crate::store::redis::Address;

pub(super) fn validate(settings: &Settings) -> Result<(), ConfigErrors> {
    let mut errors = Vec::new();
    let mut check = |ok: bool, message: String| {
        if !ok {
            errors.push(message);
        }
    };
    let server = &settings.server;
    for (key, value) in [
        ("server.max_body_bytes", server.max_body_bytes),
        ("server.max_events", server.max_events),
        ("server.max_users", server.max_users),
        ("server.max_in_flight", server.max_in_flight),
        ("server.max_waiting", server.max_waiting),
        ("server.max_connections", server.max_connections),
        ("server.max_pending_body_bytes", server.max_pending_body_bytes),
        ("engine.llm_threads", settings.engine.llm_threads),
        ("engine.encoder_threads", settings.engine.encoder_threads),
        ("engine.max_rows", settings.engine.max_rows),
        ("engine.queue_limit", settings.engine.queue_limit),
        ("engine.queue_tokens", settings.engine.queue_tokens),
        ("engine.prefill_chunk", settings.engine.prefill_chunk),
        ("openai.max_tokens_default", settings.openai.max_tokens_default),
        ("openai.max_inputs", settings.openai.max_inputs),
        ("openai.max_in_flight", settings.openai.max_in_flight),
        ("kafka.lanes", settings.kafka.lanes),
        ("kafka.batch_records", settings.kafka.batch_records),
        ("kafka.max_in_flight_records", settings.kafka.max_in_flight_records),
        ("kafka.max_in_flight_bytes", settings.kafka.max_in_flight_bytes),
        ("kafka.max_record_bytes", settings.kafka.max_record_bytes),
        ("refresh.concurrency", settings.refresh.concurrency),
        ("retrieve.candidates", settings.retrieve.candidates),
        ("retrieve.nprobe", settings.retrieve.nprobe),
    ] {
        check(value > 0, format!("{key} must be at least 1"));
    }
    check(!server.roles.is_empty(), "server.roles must name at least one of api, ingest, infer".to_string());
    check(
        server.roles != [Role::Ingest] || settings.kafka.is_on(),
        "server.roles is ingest alone, which needs kafka.brokers".to_string(),
    );
    check(
        settings.openai.listen.is_none() || server.has(Role::Infer),
        "openai.listen needs the role infer, which alone has the models".to_string(),
    );
    check(
        server.drain_delay_ms <= server.drain_timeout_ms,
        "server.drain_delay_ms must not be above server.drain_timeout_ms".to_string(),
    );
    check(server.max_streams > 0, "server.max_streams must be at least 1".to_string());
    for (key, value) in [
        ("server.header_timeout_ms", server.header_timeout_ms),
        ("server.body_timeout_ms", server.body_timeout_ms),
        ("server.idle_timeout_ms", server.idle_timeout_ms),
    ] {
        check(value >= 100, format!("{key} must be at least 100"));
    }
    let id_key = &settings.telemetry.id_key;
    check(id_key.is_empty() || id_key.len() >= 16, "telemetry.id_key has at least 16 characters".to_string());
    check(server.max_wait_ms > 0, "server.max_wait_ms must be at least 1".to_string());
    check(settings.engine.stall_ms > 0, "engine.stall_ms must be at least 1".to_string());
    check(settings.refresh.deadline_ms > 0, "refresh.deadline_ms must be at least 1".to_string());
    let ties = settings.retrieve.tie_epsilon;
    check((0.0..=2.0).contains(&ties), "retrieve.tie_epsilon must be 0 to 2".to_string());
    check(settings.engine.device >= 0, "engine.device must not be negative".to_string());
    let same_port = server.listen.port() != 0 && server.listen == server.admin_listen;
    check(!same_port, "server.listen and server.admin_listen must differ".to_string());
    if let Some(listen) = settings.openai.listen {
        let taken = listen.port() != 0 && (listen == server.listen || listen == server.admin_listen);
        check(!taken, "openai.listen must differ from server.listen and server.admin_listen".to_string());
    }
    let auth = &settings.auth;
    let own = auth.own_keys();
    for wrong in own.violations("auth.") {
        check(false, wrong);
    }
    check(
        auth.keys_file.is_empty() || own.is_empty(),
        "auth.keys_file takes the place of auth.read_keys, write_keys and admin_keys: set the one or the others"
            .to_string(),
    );
    let tls = &settings.tls;
    check(
        tls.certificate_file.is_empty() == tls.key_file.is_empty(),
        "tls.certificate_file and tls.key_file go together: set both or none".to_string(),
    );
    check(!tls.ports.is_empty(), "tls.ports must name at least one of public, openai, admin".to_string());
    if let Err(message) = check_store_url(&settings.store.url) {
        check(false, message);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let namespace = &settings.store.namespace;
    check(
        (1..=64).contains(&namespace.len()) && namespace.bytes().all(plain),
        "store.namespace must be 1 to 64 letters, digits, '_' or '-'".to_string(),
    );
    let cluster = &settings.store.cluster;
    check(
        cluster.len() <= 64 && cluster.bytes().all(plain),
        "store.cluster must be at most 64 letters, digits, '_' or '-'".to_string(),
    );
    check(settings.store.connect_timeout_ms > 0, "store.connect_timeout_ms must be at least 1".to_string());
    check(settings.store.response_timeout_ms > 0, "store.response_timeout_ms must be at least 1".to_string());
    check(settings.store.read_deadline_ms > 0, "store.read_deadline_ms must be at least 1".to_string());
    check(settings.store.ack_timeout_ms > 0, "store.ack_timeout_ms must be at least 1".to_string());
    check(settings.store.user_idle_ttl_ms >= 0, "store.user_idle_ttl_ms must be at least 0".to_string());
    check(settings.store.ack_replicas <= 16, "store.ack_replicas must be 0 to 16".to_string());
    check(
        settings.store.ack != AckKind::Replicated || settings.store.ack_replicas > 0,
        "store.ack is replicated, which needs store.ack_replicas of at least 1".to_string(),
    );
    check(
        settings.store.ack == AckKind::Applied || Address::is_redis(&settings.store.url),
        "store.ack other than applied needs a Redis as store.url".to_string(),
    );
    check(
        Address::is_sentinel(&settings.store.url)
            || (settings.store.sentinel_user.is_empty() && settings.store.sentinel_password.is_empty()),
        "store.sentinel_user and store.sentinel_password need redis+sentinel:// or rediss+sentinel:// as store.url"
            .to_string(),
    );
    check(settings.store.retries <= 100, "store.retries must be 0 to 100".to_string());
    check((1..=1024).contains(&settings.store.shards), "store.shards must be 1 to 1024".to_string());
    check(settings.store.flush_interval_ms > 0, "store.flush_interval_ms must be at least 1".to_string());
    let kafka = &settings.kafka;
    for (key, value) in [
        ("kafka.group", &kafka.group),
        ("kafka.events_topic", &kafka.events_topic),
        ("kafka.dead_letter_topic", &kafka.dead_letter_topic),
    ] {
        check(!value.is_empty(), format!("{key} must not be empty"));
    }
    // Redis with the usual append-only file may lose two seconds (DESIGN 5.5).
    check(kafka.commit_delay_ms >= 2000, "kafka.commit_delay_ms must be at least 2000".to_string());
    check((0.0..=1.0).contains(&kafka.served_sample), "kafka.served_sample must lie between 0 and 1".to_string());
    for name in kafka.properties.keys().filter(|name| kafka_properties::is_owned(name)) {
        check(false, format!("kafka.properties: {name} is taiji's own; remove it"));
    }
    let refresh = &settings.refresh;
    check(refresh.lease_ms >= 1000, "refresh.lease_ms must be at least 1000".to_string());
    check(refresh.poll_ms > 0, "refresh.poll_ms must be at least 1".to_string());
    check(refresh.sweep_interval_ms > 0, "refresh.sweep_interval_ms must be at least 1".to_string());
    check(
        0 <= refresh.min_interval_ms && refresh.min_interval_ms <= refresh.max_interval_ms,
        "refresh.min_interval_ms must lie between 0 and refresh.max_interval_ms".to_string(),
    );
    check(refresh.ttl_ms >= 0, "refresh.ttl_ms must not be negative".to_string());
    check(refresh.retry_ms >= 100, "refresh.retry_ms must be at least 100".to_string());
    check(refresh.returning_after_ms >= 0, "refresh.returning_after_ms must not be negative".to_string());
    for action in &refresh.immediate_actions {
        let known = settings.events.actions.get(action).is_some();
        check(known, format!("refresh.immediate_actions: {action:?} is not in events.actions"));
    }
    for (action, rule) in &settings.events.actions.0 {
        let ok = rule.weight.is_finite() && rule.weight >= 0.0;
        check(ok, format!("events.actions.{action}.weight must be a number that is not negative"));
        // Only these two have a place outside the histories to be kept in.
        let keepable = rule.class != ActionClass::None || matches!(action.as_str(), "search" | "profile");
        check(keepable, format!("events.actions.{action}.class: none is for search and profile only"));
    }
    for (field, pointer) in &settings.events.field_map {
        check(pointer.starts_with('/'), format!("events.field_map.{field} must be a json pointer that starts with /"));
    }
    check((1..=5).contains(&settings.retrieve.min_item_users), "retrieve.min_item_users must be 1 to 5".to_string());
    check(settings.retrieve.tail_interval_ms > 0, "retrieve.tail_interval_ms must be at least 1".to_string());
    check(settings.erase.retention_ms > 0, "erase.retention_ms must be at least 1".to_string());
    check(settings.erase.interval_ms > 0, "erase.interval_ms must be at least 1".to_string());
    if let Err(error) = tracing_subscriber::EnvFilter::try_new(&settings.log.level) {
        check(false, format!("log.level {:?}: {error}", settings.log.level));
    }
    check(
        matches!(settings.log.format.as_str(), "text" | "json"),
        format!("log.format {:?} must be text or json", settings.log.format),
    );
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
}

/// The message never repeats a url that may hold a password.
fn check_store_url(url: &str) -> Result<(), String> {
    if Address::is_redis(url) {
        return Address::parse(url).map(|_| ()).map_err(|message| format!("store.url: {message}"));
    }
    match url.strip_prefix("embedded:") {
        Some(folder) if !folder.is_empty() => Ok(()),
        Some(_) => Err("store.url: embedded: is followed by a folder".to_string()),
        None => {
            Err("store.url must begin with embedded:, redis://, rediss://, redis+cluster:// or redis+sentinel:// (rediss+… \
                 with TLS)"
                .into())
        }
    }
}
