//! Fuzz targets: what every decoder must do with any bytes at all.
//!
//! In: bytes. Out: whether they were accepted; a panic where a promise is broken. Callers: the tests beside this file run the
//! corpus (`fuzz/corpus/<target>/`) and seeded mutations of it on a stable compiler; `fuzz/` hands the same functions to
//! libFuzzer. Compiled for these two only.
// A target ends with a panic where a promise is broken: that is how a fuzzer is told.
#![allow(clippy::expect_used)]

mod answers;
mod events;
mod letters;
mod models;
mod requests;
mod rows;
#[cfg(test)]
mod seeds;
mod stores;
#[cfg(test)]
mod tests;

/// One decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Also the name of its corpus and of its program in `fuzz/`.
    pub name: &'static str,
    /// Decodes and checks; true when the decoder accepted the bytes.
    pub run: fn(&[u8]) -> bool,
    /// Most bytes it may hold at once: this many times its input …
    pub memory_factor: usize,
    /// … and this many beside.
    pub memory_base: usize,
    /// Pieces that a mutation may put in.
    pub words: &'static [&'static str],
}

const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\u0000",
    "\\ud83d",
    "null",
    "true",
    "1e999",
    "-0.0",
    "0.1",
    "9223372036854775808",
    "\"user_id\":\"u\"",
    "\"item_id\":\"i\"",
    "\"action\":\"click\"",
    "\"action\":\"search\"",
    "\"action\":\"profile\"",
    "\"ts_ms\":1700000000000",
    "\"context\":{\"query\":\"q\"}",
    "\"value\":0.1",
    "\"domain\":\"shop\"",
    "\"event_id\":\"e\"",
    "\"request_id\":1",
    "\u{0}",
    "\n",
    "é",
    "{}%",
];
const CLOUDEVENT: &[&str] = &[
    "\"specversion\":\"1.0\"",
    "\"id\":\"7\"",
    "\"source\":\"/s\"",
    "\"type\":\"t\"",
    "\"time\":\"2026-11-24T10:00:00.5Z\"",
    "\"data\":{}",
    "\"data_base64\":\"e30=\"",
    "ce_specversion: 1.0\n",
    "ce_id: 7\n",
    "ce_source: /s\n",
    "ce_type: t\n",
    "ce_time: 9999-12-31T23:59:59Z\n",
    "content-type: application/x-protobuf\n",
    "content-type: application/cloudevents+json\n",
    "\n\n",
    "{\"user_id\":\"u\",\"item_id\":\"i\",\"action\":\"click\"}",
];
const BINARY: &[&str] =
    &["\u{0}\u{0}\u{0}\u{0}", "\u{1}", "\u{7f}", "\u{0}\u{1}", "intra", "cross", "text", "rev", "emb"];
const REQUEST: &[&str] = &[
    "users",
    "groups",
    "intra",
    "user_id",
    "max_staleness_ms",
    "entities",
    "\u{0}\u{0}\u{0}\u{0}",
    "\u{1}\u{0}\u{0}\u{0}",
    "\u{7f}\u{7f}\u{7f}\u{7f}",
];
const TAGS: &[&str] =
    &["<think>", "</think>", "<answer>", "</answer>", "<|eot|>", "</s>", ": ", " > ", "<thi", "nk>", "\n"];
const LETTER: &[&str] =
    &["taiji.dlq.replays", "taiji.dlq.replayed_from", "__connect.errors.topic", "4294967295", "-1", "\u{0}"];
const GGUF: &[&str] = &[
    "GGUF",
    "\u{3}\u{0}\u{0}\u{0}",
    "\u{1}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}",
    "\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}",
    "general.architecture",
    "general.alignment",
    "llama.block_count",
    "qwen3.embedding_length",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "token_embd.weight",
    "blk.0.attn_q.weight",
];

/// All of them. The numbers are bounds that hold with room to spare, so that a decoder which believes a length it was told breaks them.
pub const TARGETS: [Target; 18] = [
    Target { name: "event_json", run: events::json, memory_factor: 100, memory_base: 16_384, words: JSON },
    Target { name: "event_mapped", run: events::mapped, memory_factor: 100, memory_base: 16_384, words: JSON },
    Target { name: "event_protobuf", run: events::protobuf, memory_factor: 100, memory_base: 16_384, words: BINARY },
    Target {
        name: "cloudevent_structured",
        run: events::cloudevent_structured,
        memory_factor: 100,
        memory_base: 16_384,
        words: CLOUDEVENT,
    },
    Target {
        name: "cloudevent_binary",
        run: events::cloudevent_binary,
        memory_factor: 100,
        memory_base: 16_384,
        words: CLOUDEVENT,
    },
    Target { name: "item_json", run: events::item, memory_factor: 100, memory_base: 16_384, words: JSON },
    Target { name: "batch_ndjson", run: events::batch, memory_factor: 200, memory_base: 16_384, words: JSON },
    Target { name: "redis_list", run: stores::redis_list, memory_factor: 20, memory_base: 4096, words: BINARY },
    Target { name: "kept_list", run: stores::kept_list, memory_factor: 100, memory_base: 16_384, words: BINARY },
    Target { name: "store_records", run: stores::records, memory_factor: 50, memory_base: 4096, words: BINARY },
    Target {
        name: "feature_fields",
        run: stores::feature_fields,
        memory_factor: 100,
        memory_base: 8192,
        words: BINARY,
    },
    Target {
        name: "feature_groups",
        run: stores::feature_groups,
        memory_factor: 300,
        memory_base: 8192,
        words: BINARY,
    },
    Target { name: "read_request", run: requests::read, memory_factor: 100, memory_base: 65_536, words: REQUEST },
    Target { name: "dead_letter", run: letters::headers, memory_factor: 100, memory_base: 16_384, words: LETTER },
    Target { name: "llm_answer", run: answers::answer, memory_factor: 20, memory_base: 4096, words: TAGS },
    Target { name: "rows_lines", run: rows::lines, memory_factor: 100, memory_base: 65_536, words: JSON },
    // A table is compressed: few bytes may rightly stand for many.
    Target { name: "rows_table", run: rows::table, memory_factor: 0, memory_base: 64 << 20, words: BINARY },
    // A model's tensors are listed before they are looked for; the list is bounded by the most layers.
    Target { name: "gguf", run: models::gguf, memory_factor: 200, memory_base: 16 << 20, words: GGUF },
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// What the targets in `fuzz/` call.
pub fn run(name: &str, bytes: &[u8]) {
    match target(name) {
        Some(target) => {
            (target.run)(bytes);
        }
        None => panic!("no fuzz target {name:?}"),
    }
}

/// A length byte, then so many bytes; fewer at the end. For targets that take several parts.
fn part<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let (length, rest) = bytes.split_first()?;
    let (taken, left) = rest.split_at(usize::from(*length).min(rest.len()));
    *bytes = left;
    Some(taken)
}
