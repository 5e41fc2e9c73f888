"""What the dashboard shows: rows of panels, each with its queries. dashboard.py makes Grafana's JSON of it.

A metric of a taiji process stands here without the dashboard's filter; dashboard.py adds it. Gauges that processes read from one
store are the same in all of them, hence `max`; counters and histograms count one process, hence `sum`.
"""

RATE = "[$__rate_interval]"
READS = 'route=~".*features"'
GREEN, ORANGE, RED = "green", "orange", "red"


def stat(title, unit, query, steps, about):
    """One number, coloured by `steps`: (from which value, colour), the first from None."""
    return {"kind": "stat", "title": title, "unit": unit, "queries": [(query, "")], "steps": steps, "about": about}


def series(title, unit, about, *queries, stacked=False):
    """Lines over time; a query is (expression, legend)."""
    return {"kind": "series", "title": title, "unit": unit, "queries": list(queries), "about": about, "stacked": stacked}


def table(title, about, *queries):
    """The labels of series that say 1."""
    return {"kind": "table", "title": title, "unit": "short", "queries": list(queries), "about": about}


def rate(metric, by, selector=""):
    chosen = f"{{{selector}}}" if selector else ""
    return f"sum by ({by}) (rate({metric}{chosen}{RATE}))"


def quantile(share, metric, by="", selector=""):
    """A quantile of a histogram, all processes together."""
    return f"histogram_quantile({share}, {rate(metric + '_bucket', f'{by}, le' if by else 'le', selector)})"


def quantiles(metric, by="", selector=""):
    """Median and p99, with legends."""
    name = f"{{{{{by}}}}} " if by else ""
    return [(quantile(share, metric, by, selector), f"{name}p{share * 100:.0f}") for share in (0.5, 0.99)]


def share(metric, part, whole=""):
    """Which part of a counter's rate has labels `part`; 0 where nothing has."""
    chosen = f"{{{whole}}}" if whole else ""
    part = f"{whole},{part}" if whole else part
    return (f"(sum(rate({metric}{{{part}}}{RATE})) or vector(0)) / sum(rate({metric}{chosen}{RATE}))")


GLANCE = [
    stat("Processes not ready", "short", "count(taiji_ready == 0) or vector(0)", [(None, GREEN), (1, RED)],
         "Processes that hold a readiness latch; /readyz on their operators' port names it."),
    stat("Reads", "reqps", f"sum(rate(taiji_http_requests_total{{{READS}}}{RATE}))", [(None, GREEN)], "Calls of rankers a second."),
    stat("Reads that fail", "percentunit", share("taiji_http_requests_total", 'status=~"5.."', READS),
         [(None, GREEN), (0.001, ORANGE), (0.01, RED)], "Share of rankers' calls answered 5xx."),
    stat("Read p99", "s", quantile(0.99, "taiji_http_request_duration_seconds", "", READS),
         [(None, GREEN), (0.05, ORANGE), (0.1, RED)], "Calls that ask to wait for fresh features (deadline_ms) are in it."),
    stat("Users with features", "percentunit", share("taiji_served_values_total", 'status="present"', 'group="intra"'),
         [(None, RED), (0.3, ORANGE), (0.6, GREEN)], "Of the users asked for, those whose intra group was there."),
    stat("Oldest due user", "s", "max(taiji_queue_oldest_age_seconds)", [(None, GREEN), (600, ORANGE), (1800, RED)],
         "How far features are behind events."),
    stat("Store", "short", "min(taiji_store_reachable)", [(None, RED), (1, GREEN)], "1 while every process can ask the store."),
    stat("Kafka lag", "s", "max(taiji_kafka_lag_seconds)", [(None, GREEN), (60, ORANGE), (300, RED)],
         "Age of the oldest record read and not stored yet."),
    series("Alerts firing", "short", "docs/runbook.md says what each asks.",
           ('sum by (alertname, severity) (ALERTS{namespace=~"$namespace",alertname=~"Taiji.+",alertstate="firing"})', "{{alertname}} ({{severity}})")),
    table("What runs", "Versions and bundles; more than one space at a time is an alert.",
          ("max by (version) (taiji_build_info)", ""), ("max by (epoch, space, model, engine) (taiji_bundle_info)", "")),
]

READ = [
    series("Requests by route", "reqps", "", (rate("taiji_http_requests_total", "route"), "{{route}}")),
    series("Requests by status", "reqps", "", (rate("taiji_http_requests_total", "status"), "{{status}}")),
    series("Time to answer", "s", "Up to the head of the answer.", *quantiles("taiji_http_request_duration_seconds", "route")),
    series("Refused", "reqps", "429: too much is under way, or too many wait.", ("sum(rate(taiji_http_shed_total[$__rate_interval]))", "overloaded"),
           (rate("taiji_waits_total", "result", 'result="refused"'), "waiting room full"),
           (rate("taiji_reader_refreshes_total", "result", 'result="over"'), "refresh over budget")),
    series("Under way", "short", "", ("sum(taiji_http_requests_in_flight)", "requests"), ("sum(taiji_waiting_requests)", "waiting for a refresh")),
    series("Intra groups served, by status", "short", "present, or the reason of absence.",
           (rate("taiji_served_values_total", "status", 'group="intra"'), "{{status}}"), stacked=True),
    series("Values served, by group", "short", "", (rate("taiji_served_values_total", "group"), "{{group}}")),
    series("Waits by end", "short", "Callers who wait for a refresh.", (rate("taiji_waits_total", "result"), "{{result}}")),
    series("Refreshes asked for by readers", "short", "", (rate("taiji_reader_refreshes_total", "result"), "{{result}}")),
]

EVENTS = [
    series("Events", "short", "By HTTP and Kafka together.", (rate("taiji_events_total", "result"), "{{result}}")),
    series("Items", "short", "", (rate("taiji_items_total", "result"), "{{result}}")),
    series("Kafka: lag", "s", "Age of the oldest record read and not stored yet.",
           ("max by (topic) (taiji_kafka_lag_seconds)", "{{topic}}")),
    series("Kafka: records behind", "short", "", ("sum by (topic) (taiji_kafka_lag_records)", "{{topic}}"),
           ("sum(taiji_kafka_in_flight_records)", "read and not stored")),
    series("Kafka: records", "short", "", (rate("taiji_kafka_records_total", "topic, outcome"), "{{topic}} {{outcome}}")),
    series("Kafka: dead letters", "short", "`taiji dlq list` shows them.", (rate("taiji_kafka_dead_letters_total", "reason"), "{{reason}}")),
    series("Kafka: held up", "short", "Processes that do not read, or release no offsets.",
           ("sum(taiji_kafka_paused)", "paused"), ("sum(taiji_kafka_offsets_held)", "offsets held")),
    series("Kafka: failed and tried again", "short", "", (rate("taiji_kafka_retries_total", "what"), "{{what}}"),
           (rate("taiji_kafka_commits_total", "result", 'result="failed"'), "commit")),
    series("Kafka: rebalances and rewinds", "short", "", (rate("taiji_kafka_rebalances_total", "kind"), "{{kind}}"),
           (f"sum(rate(taiji_kafka_rewinds_total{RATE}))", "rewind")),
    series("Kafka: published", "short", "Change feed and served topic.", (rate("taiji_kafka_features_total", "result"), "features {{result}}"),
           (rate("taiji_kafka_served_total", "result"), "served {{result}}")),
]

REFRESH = [
    series("Refreshes", "short", "", (rate("taiji_refreshes_total", "result"), "{{result}}")),
    series("Users due", "short", "Class 0: a caller waits; 1: urgent; 2: threshold; 3: routine.",
           ("max by (class) (taiji_queue_users)", "class {{class}}"), ("max(taiji_queue_fast_users)", "fast path"), stacked=True),
    series("Age of the oldest due user", "s", "", ("max by (class) (taiji_queue_oldest_age_seconds)", "class {{class}}")),
    series("From due to written", "s", "", *quantiles("taiji_freshness_seconds"),
           (quantile(0.5, "taiji_fast_freshness_seconds"), "fast path p50")),
    series("Stages of a refresh, p99", "s", "", (quantile(0.99, "taiji_stage_duration_seconds", "stage"), "{{stage}}"),
           (quantile(0.99, "taiji_refresh_duration_seconds"), "all of it")),
    series("Where a refresh spends its time", "short", "Seconds a second: how many refreshes stand in each stage.",
           (rate("taiji_stage_duration_seconds_sum", "stage"), "{{stage}}"), stacked=True),
    series("Being refreshed, held", "short", "Held: users behind by bulk history alone.", ("max(taiji_queue_leased)", "being refreshed"),
           ("max(taiji_queue_held_users)", "held")),
    series("Needed no LLM; found by the sweep", "short", "", (rate("taiji_refresh_skips_total", "reason"), "skipped: {{reason}}"),
           (f"sum(rate(taiji_queue_swept_total{RATE}))", "swept")),
    series("Token budget", "short", "What is left, by window; below 0 is a debt.",
           ("min by (window) (taiji_refresh_budget_left_tokens)", "left this {{window}}")),
    series("Held back by the token budget", "percentunit", "Share of the time, all processes added up.",
           (f"sum(rate(taiji_refresh_budget_held_seconds_total{RATE}))", "held back")),
]

LLM = [
    series("Tokens", "short", "", (rate("taiji_llm_tokens_total", "kind"), "{{kind}}")),
    series("One step", "s", "One call of the graph.", *quantiles("taiji_llm_step_duration_seconds", "kind")),
    series("First token", "s", "From queued to the first token.", *quantiles("taiji_llm_first_token_seconds", "priority")),
    series("Requests", "short", "", ("sum(taiji_llm_rows)", "under way"), ("sum(taiji_llm_queue_requests)", "waiting")),
    series("Tokens that wait", "short", "What the waiting requests may take.", ("sum(taiji_llm_queue_tokens)", "tokens")),
    series("Requests by end", "short", "", (rate("taiji_llm_requests_total", "result"), "{{result}}")),
    series("Prefix cache", "percentunit", "Share of prompts whose beginning was known.",
           (share("taiji_llm_prefix_lookups_total", 'result="hit"'), "hits")),
    series("Answers", "short", "Form and grounding; `broken` or `none` is nothing a ranker can use.",
           (rate("taiji_answers_total", "mode, format, grounded"), "{{mode}} {{format}} {{grounded}}")),
    series("Prompts cut, panics", "short", "", (f"sum(rate(taiji_prompts_truncated_total{RATE}))", "prompts cut"),
           ("sum(taiji_llm_panics_total)", "panics")),
    series("Neighbour searches", "short", "", (rate("taiji_neighbours_total", "result"), "{{result}}")),
]

STORE = [
    series("Store calls of the public port", "s", "", *quantiles("taiji_store_operation_duration_seconds", "operation")),
    series("Store calls that failed", "short", "", (rate("taiji_store_errors_total", "operation"), "{{operation}}")),
    series("Records that cannot be read", "short", "Since the processes began.", ("sum by (kind) (taiji_store_unreadable_total)", "{{kind}}")),
    series("Users, items, vectors", "short", "", ("max(taiji_store_users)", "users"), ("max by (part) (taiji_catalogue_items)", "items: {{part}}"),
           ("max by (part) (taiji_index_vectors)", "vectors: {{part}}")),
    series("Bytes of the store", "bytes", "Embedded: on disk. Redis: memory, all masters together.",
           ("max(taiji_store_disk_bytes)", "disk"), ("max(taiji_store_memory_bytes)", "memory")),
    series("Age of the store's numbers", "s", "Queues, leases, users and bytes are so old.", ("max(taiji_store_gauges_age_seconds)", "age")),
    series("Erasures", "short", "", (rate("taiji_erasures_total", "result"), "{{result}}")),
]

PROCESS = [
    series("Memory", "bytes", "Resident.", ("process_resident_memory_bytes", "{{instance}}")),
    series("Processor time", "short", "Cores.", (f"rate(process_cpu_seconds_total{RATE})", "{{instance}}")),
    series("Open files", "percentunit", "Share of the limit.", ("process_open_fds / process_max_fds", "{{instance}}")),
    series("Threads", "short", "", ("process_threads", "{{instance}}")),
    series("Connections", "short", "", ("sum by (port) (taiji_connections)", "{{port}}")),
    series("Connections closed or not taken", "short", "", (rate("taiji_connections_closed_total", "reason"), "{{reason}}"),
           (f"sum(rate(taiji_accept_failures_total{RATE}))", "not accepted"),
           (rate("taiji_tls_handshakes_failed_total", "reason"), "no handshake: {{reason}}")),
    series("Keys and certificates read again", "short", "`refused`: the file is broken, what was loaded before holds.",
           (rate("taiji_file_reloads_total", "file, result"), "{{file}} {{result}}")),
    series("Certificate's time left", "s", "Of the ports that speak TLS.",
           ("(taiji_tls_certificate_expiry_timestamp_seconds > 0) - time()", "{{instance}}")),
    series("Time since the start", "s", "", ("time() - process_start_time_seconds", "{{instance}}")),
]

MACHINES = [
    series("Container restarts", "short", "kube-state-metrics.",
           ('sum by (pod) (kube_pod_container_status_restarts_total{namespace=~"$namespace",pod=~"taiji.*"})', "{{pod}}")),
    series("Container memory of its limit", "percentunit", "cAdvisor and kube-state-metrics.",
           ('max by (pod) (container_memory_working_set_bytes{namespace=~"$namespace",pod=~"taiji.*",container!=""})'
            ' / max by (pod) (kube_pod_container_resource_limits{namespace=~"$namespace",pod=~"taiji.*",resource="memory"})', "{{pod}}")),
    series("Volume left", "percentunit", "kubelet.",
           ('kubelet_volume_stats_available_bytes{namespace=~"$namespace",persistentvolumeclaim=~".*taiji.*"}'
            ' / kubelet_volume_stats_capacity_bytes{namespace=~"$namespace",persistentvolumeclaim=~".*taiji.*"}', "{{persistentvolumeclaim}}")),
    series("GPU busy", "percent", "NVIDIA's DCGM exporter.", ("DCGM_FI_DEV_GPU_UTIL", "{{Hostname}} {{gpu}}")),
    series("GPU memory used", "decmbytes", "NVIDIA's DCGM exporter.", ("DCGM_FI_DEV_FB_USED", "{{Hostname}} {{gpu}}")),
    series("Redis: memory of its limit, keys evicted", "short", "redis_exporter.",
           ('redis_memory_used_bytes{namespace=~"$namespace"} / (redis_memory_max_bytes{namespace=~"$namespace"} > 0)', "memory {{instance}}"),
           (f'rate(redis_evicted_keys_total{{namespace=~"$namespace"}}{RATE})', "evicted a second {{instance}}")),
]

ROWS = [
    ("At a glance", GLANCE), ("Reads", READ), ("Events and Kafka", EVENTS), ("Refreshes", REFRESH), ("LLM", LLM), ("Store", STORE),
    ("Processes", PROCESS), ("Kubernetes, GPU, Redis (exporters of their own)", MACHINES),
]
