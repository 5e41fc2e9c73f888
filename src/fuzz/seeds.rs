//! The first files of every corpus: small, real and adversarial, made with the encoders themselves.
//!
//! `TAIJI_FUZZ_WRITE=1` with the tests beside this writes them to `fuzz/corpus/`; without it a test checks that they stand there.

use super::events::NOW_MS;
use crate::feature::{Group, GroupBlob, Version};
use crate::prompt::{PromptMode, completion};
use crate::proto::{Behaviour, CrossGroup, Event, GroupMeta, IntraGroup, TextGroup};
use crate::store::codec::*;
use crate::store::kept::KeptList;
use crate::store::redis::{entries, features};
use crate::store::{Erasure, FreshVector, StoredFeatures, UserState};
use prost::Message;
use std::collections::BTreeMap;

/// Target, name of the file, content.
pub(super) type Seed = (&'static str, String, Vec<u8>);

/// All of them.
pub(super) fn all() -> Vec<Seed> {
    let kinds = [json(), messages(), lists(), records(), fields(), groups(), letters(), answers(), tables(), models()];
    [kinds.concat(), requests()].concat()
}

/// Numbered files of texts.
fn texts(target: &'static str, texts: &[&str]) -> Vec<Seed> {
    texts.iter().enumerate().map(|(n, text)| (target, format!("seed-{n:02}"), text.as_bytes().to_vec())).collect()
}

fn bytes(target: &'static str, contents: Vec<Vec<u8>>) -> Vec<Seed> {
    contents.into_iter().enumerate().map(|(n, content)| (target, format!("seed-{n:02}"), content)).collect()
}

/// Bodies of a read behind the number of their encoding; Feast's in MessagePack is the last.
fn requests() -> Vec<Seed> {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    use serde_json::json;
    let asked = json!({ "users": ["u1", "u2"], "groups": ["intra"], "max_staleness_ms": 5, "deadline_ms": 7 });
    let feast = json!({ "features": ["taiji_intra:sparse_ids"], "entities": { "user_id": ["u1", 2] } });
    let message = crate::proto::FeaturesRequest {
        users: vec!["u1".into(), "u2".into()],
        groups: vec!["intra".into()],
        max_staleness_ms: Some(5),
        deadline_ms: None,
    };
    let pack = |value: &serde_json::Value| rmp_serde::to_vec_named(value).expect("msgpack");
    let stream = |columns: &[&str]| {
        let field = |name: &&str| arrow_schema::Field::new(*name, arrow_schema::DataType::Utf8, false);
        let metadata = [("groups".to_string(), "intra,cross".to_string())];
        let fields: Vec<_> = columns.iter().map(field).collect();
        let schema = std::sync::Arc::new(arrow_schema::Schema::new_with_metadata(fields, metadata));
        let values = || std::sync::Arc::new(StringArray::from(vec!["u1", "u2", ""])) as ArrayRef;
        let batch = RecordBatch::try_new(schema.clone(), columns.iter().map(|_| values()).collect()).expect("a batch");
        let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).expect("a stream");
        writer.write(&batch).expect("a batch");
        writer.into_inner().expect("a stream")
    };
    let numbered = |number: u8, body: Vec<u8>| [vec![number], body].concat();
    bytes(
        "read_request",
        vec![
            numbered(0, asked.to_string().into_bytes()),
            numbered(1, message.encode_to_vec()),
            numbered(2, pack(&asked)),
            numbered(3, stream(&["user_id"])),
            numbered(3, stream(&["name", "user_id"])),
            numbered(4, pack(&feast)),
            // Lengths that lie, and fields by number.
            numbered(3, vec![255, 255, 255, 255, 255, 255, 255, 127, 0, 0]),
            numbered(2, vec![0x81, 0, 0x91, 0xa1, b'u']),
        ],
    )
}

/// GGUF: a whole model, and lies about every length.
fn models() -> Vec<Seed> {
    let words = |values: &[u64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let header = |tensors: u64, keys: u64| [b"GGUF\x03\0\0\0".as_slice(), &words(&[tensors, keys])].concat();
    let text = |text: &str| [words(&[text.len() as u64]), text.as_bytes().to_vec()].concat();
    let value = |key: &str, kind: u32, value: Vec<u8>| [text(key), kind.to_le_bytes().to_vec(), value].concat();
    let list = |texts: &[&str]| {
        let (count, texts) = (texts.len() as u64, texts.iter().map(|one| text(one)).collect::<Vec<_>>().concat());
        [8_u32.to_le_bytes().to_vec(), words(&[count]), texts].concat()
    };
    let tensor = |name: &str, lengths: &[u64], kind: u32, offset: u64| {
        let axes = (lengths.len() as u32).to_le_bytes().to_vec();
        [text(name), axes, words(lengths), kind.to_le_bytes().to_vec(), words(&[offset])].concat()
    };
    let keys = |layers: u32| {
        let sizes = [
            ("block_count", layers),
            ("embedding_length", 16),
            ("feed_forward_length", 2),
            ("attention.head_count", 1),
            ("context_length", 64),
        ];
        let sizes = sizes.map(|(key, size)| value(&format!("llama.{key}"), 4, size.to_le_bytes().to_vec())).concat();
        let others = [
            value("general.architecture", 8, text("llama")),
            value("llama.attention.layer_norm_rms_epsilon", 6, 1e-5_f32.to_le_bytes().to_vec()),
            value("tokenizer.ggml.model", 8, text("gpt2")),
            value("tokenizer.ggml.pre", 8, text("smollm")),
            value("tokenizer.ggml.tokens", 9, list(&["a", "b", "ab"])),
            value("tokenizer.ggml.merges", 9, list(&["a b", "a b", "a b"])),
        ];
        [sizes, others.concat()].concat()
    };
    // Floats of 16 bits, zeros; in a file, tensors may stand in the same place.
    let places = [
        ("token_embd", [16, 3].as_slice()),
        ("output_norm", &[16]),
        ("blk.0.attn_norm", &[16]),
        ("blk.0.attn_q", &[16, 16]),
        ("blk.0.attn_k", &[16, 16]),
        ("blk.0.attn_v", &[16, 16]),
        ("blk.0.attn_output", &[16, 16]),
        ("blk.0.ffn_norm", &[16]),
        ("blk.0.ffn_gate", &[16, 2]),
        ("blk.0.ffn_up", &[16, 2]),
        ("blk.0.ffn_down", &[2, 16]),
    ];
    let table = places.map(|(name, lengths)| tensor(&format!("{name}.weight"), lengths, 1, 0)).concat();
    let data = vec![0; 32 + 512];
    let huge = u64::MAX;
    bytes(
        "gguf",
        vec![
            [header(11, 11), keys(1), table.clone(), data.clone()].concat(),
            [header(11, 11), keys(u32::MAX), table.clone(), data.clone()].concat(),
            [header(11, 11), keys(1000), table, data.clone()].concat(),
            header(0, 0),
            header(huge, 0),
            header(0, huge),
            [header(0, 1), words(&[huge])].concat(),
            [header(0, 1), value("k", 9, [4_u32.to_le_bytes().to_vec(), words(&[huge])].concat())].concat(),
            [header(1, 0), tensor("w", &[1 << 32, 1 << 31], 0, 0)].concat(),
            [header(1, 0), tensor("w", &[256], 12, huge - 31), data].concat(),
        ],
    )
}

fn json() -> Vec<Seed> {
    let click = format!(r#"{{"event_id":"e","user_id":"u","item_id":"i","action":"click","ts_ms":{NOW_MS}}}"#);
    let search =
        format!(r#"{{"user_id":"{{}} %é","action":"search","ts_ms":{NOW_MS},"context":{{"query":"red shoes"}}}}"#);
    let profile = format!(
        r#"{{"user_id":1,"action":"profile","ts_ms":{NOW_MS},"value":0.30000000000000004,"context":{{"age":30,"a":[{{}}]}}}}"#
    );
    let huge = format!(r#"{{"{}":1}}"#, "k\\n".repeat(400));
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(300), "]".repeat(300));
    let long_id = click.replace("\"u\"", &format!("\"{}\"", "x".repeat(129)));
    let framed = "\0\0\0\0*{}".to_string();
    let plain = [&click, &search, &profile, &huge, &deep, &long_id, &framed];
    let plain: Vec<&str> = plain.iter().map(|text| text.as_str()).collect();
    let mapped = format!(r#"{{"who":{{"id":7}},"what":["i"],"verb":"like","at":{NOW_MS},"more/1":{{}},"noise":true}}"#);
    let envelope = |data: &str| {
        format!(
            r#"{{"specversion":"1.0","type":"t","source":"/s","id":"7","time":"2023-11-14T22:13:20.5+01:00",{data}}}"#
        )
    };
    let structured = [
        envelope(r#""data":{"user_id":"u","item_id":"i","action":"click"}"#),
        envelope(r#""data_base64":"eyJ1c2VyX2lkIjoidSIsIml0ZW1faWQiOiJpIiwiYWN0aW9uIjoiY2xpY2sifQ==""#),
        envelope(r#""data_base64":"%""#),
        envelope(r#""data":null"#).replace("1.0", "0.3"),
    ];
    let headers = "ce_specversion: 1.0\nce_id: 7\nce_source: /s\nce_type: t\nce_time: 2023-11-14T22:13:20Z";
    let body = r#"{"user_id":"u","item_id":"i","action":"click"}"#;
    let binary = [
        format!("{headers}\ncontent-type: application/json\n\n{body}"),
        format!("{headers}\n\n{click}"),
        format!("ce_specversion: 1.0\nce_id: 7\n\n{body}"),
        format!("{headers}\ncontent-type: avro/binary\n\n{body}"),
        format!("content-type: application/cloudevents+json\nce_specversion: 9\n\n{}", structured[0]),
    ];
    let structured: Vec<&str> = structured.iter().map(String::as_str).collect();
    let binary: Vec<&str> = binary.iter().map(String::as_str).collect();
    let lines = format!("{click}\n{{broken\n\n  \r\n[1]\n{search}\n");
    let wrapped = format!(r#"{{"events":[{click},7,{search}]}}"#);
    let many = "{}\n".repeat(51);
    let item = r#"{"id":"i","title":"Green tea","categories":["a","b"],"brand":"b","price":1.5,"state":"paused"}"#;
    let bad_item = r#"{"id":"i","title":" ","price":-1e999,"x":{}}"#;
    [
        texts("event_json", &plain),
        texts("event_mapped", &[&mapped, &click, r#"{"who":[],"what":{"0":"i"}}"#]),
        texts("cloudevent_structured", &structured),
        texts("cloudevent_binary", &binary),
        texts("item_json", &[item, bad_item, r#"{"id":"i","title":"t"}"#]),
        texts("batch_ndjson", &[&lines, &wrapped, &click, &many, "{\"events\":[]}", "", "[1]"]),
        texts("rows_lines", &[&lines, &click, "\n\n", "\u{feff}{}"]),
    ]
    .concat()
}

fn messages() -> Vec<Seed> {
    let event = Event {
        event_id: "e".into(),
        user_id: "u".into(),
        item_id: "i".into(),
        action: "click".into(),
        ts_ms: NOW_MS,
        value: Some(f64::NAN),
        ..Event::default()
    };
    let good = Event { value: Some(0.1), ..event.clone() };
    let search = Event { action: "search".into(), item_id: String::new(), value: None, ..event.clone() };
    bytes(
        "event_protobuf",
        vec![good.encode_to_vec(), event.encode_to_vec(), search.encode_to_vec(), b"\x0a\xff".to_vec()],
    )
}

fn lists() -> Vec<Seed> {
    let body = Behaviour { item_id: "i".into(), action: "click".into(), ..Behaviour::default() }.encode_to_vec();
    let mut list = Vec::new();
    for n in 0..4 {
        let stored = [entries::time_bytes(NOW_MS - n).as_slice(), &body].concat();
        for part in [format!("e{n}").as_bytes(), &stored] {
            list.push(part.len() as u8);
            list.extend_from_slice(part);
        }
    }
    let mut kept = KeptList::default();
    for n in 0..40 {
        kept.insert(n, &n.to_string(), b"body", 100);
    }
    let stored = kept.encode();
    let tail = KeptList::default();
    let mut small = tail;
    small.insert(5, "id", b"b", 100);
    let main = stored.main.unwrap_or_default();
    let main = &main[..main.len().min(17 * 15)];
    let both = [&[main.len() as u8][..], main, &small.encode().tail].concat();
    [
        // The third has an id and no body, the fourth a time that is cut off.
        bytes("redis_list", vec![list.clone(), vec![], b"\x02id".to_vec(), b"\x02id\x03\x80ab".to_vec()]),
        bytes("kept_list", vec![[&[0][..], &small.encode().tail].concat(), both, vec![0, 0xff]]),
    ]
    .concat()
}

fn stored_record() -> FeatureRecord {
    let version = Version { seq: 7, turn: 2 };
    let blob = |group, bytes: Vec<u8>| GroupBlob { group, bytes: bytes.into(), tier: 1, version, expires_at_ms: 77 };
    let groups = vec![blob(Group::Intra, vec![1; 30]), blob(Group::Text, Vec::new())];
    let features = StoredFeatures { groups, refreshed_seq: Some(7), prompt_hash: 8, embedding: vec![0; 32] };
    FeatureRecord { features, refreshed: Some(version) }
}

fn records() -> Vec<Seed> {
    let state = UserState { seq: 9, weight: f64::NAN, last_refresh_ms: -1, era: 3, erased_before_ms: 4, erased_seq: 5 };
    let version = Version { seq: 7, turn: 2 };
    let user = UserRecord { state, refreshed: BTreeMap::from([("s1".to_string(), version)]), erasure_id: 6 };
    let vector = FreshVector { user: "ü".into(), era: 1, version, vector: Some(vec![1, 2]) };
    let erasure = Erasure { user: "u".into(), id: 9, finished_era: Some(4) };
    let kinds = [
        encode_user(&user),
        encode_features(&stored_record()),
        encode_vector(&vector),
        encode_due(3, -5),
        encode_erasure(&erasure),
    ];
    let mut contents: Vec<Vec<u8>> =
        kinds.iter().zip(0u8..).map(|(record, kind)| [&[kind][..], record].concat()).collect();
    // A length of 2^63.
    contents.push([&[1, 1][..], &[0; 25], &[0xff; 9], &[1]].concat());
    bytes("store_records", contents)
}

fn fields() -> Vec<Seed> {
    let mut content = Vec::new();
    let mut put = |part: &[u8]| {
        content.push(part.len() as u8);
        content.extend_from_slice(part);
    };
    for (name, value) in features::fields(&stored_record()) {
        put(name.as_bytes());
        put(&value);
    }
    put(b"rev");
    put(b"3");
    let short_header = b"\x05intra\x01\x01".to_vec();
    bytes("feature_fields", vec![content, short_header, b"\x05magic\x00".to_vec(), b"\x03rev\x01x".to_vec()])
}

fn groups() -> Vec<Seed> {
    let meta = Some(GroupMeta { epoch: 1, space: "s".into(), seq: 3, ..GroupMeta::default() });
    let intra =
        IntraGroup { meta: meta.clone(), sparse_ids: vec![5, 300], has_llm_feature: true, ..IntraGroup::default() };
    let cross = CrossGroup {
        meta: meta.clone(),
        item_ids: vec!["a".into(), "b".into()],
        actions: vec!["click".into(); 2],
        ts_ms: vec![i64::MIN, i64::MAX],
        ..CrossGroup::default()
    };
    let text = TextGroup { meta, reasoning: "r".into(), answer: "a".into(), ..TextGroup::default() };
    let kinds = [(0, intra.encode_to_vec()), (1, cross.encode_to_vec()), (3, text.encode_to_vec()), (2, vec![0xff])];
    bytes("feature_groups", kinds.into_iter().map(|(kind, message)| [&[kind][..], &message].concat()).collect())
}

fn letters() -> Vec<Seed> {
    let of = |headers: &[(&str, &[u8])]| {
        let part = |part: &[u8]| [&[part.len() as u8][..], part].concat();
        headers.iter().flat_map(|(name, value)| [part(name.as_bytes()), part(value)].concat()).collect::<Vec<u8>>()
    };
    let contents = vec![
        of(&[
            ("own", b"1"),
            ("__connect.errors.topic", b"taiji.events"),
            ("__connect.errors.offset", b"12"),
            ("taiji.dlq.replays", b"2"),
            ("taiji.dlq.replayed_from", b"0/4"),
        ]),
        of(&[("taiji.dlq.replays", b"4294967295"), ("TAIJI.DLQ.REPLAYS", b"-1"), ("__connect.errors.topic", b"\xff")]),
        of(&[]),
        b"\x02\xff\xfe\x01x".to_vec(),
    ];
    bytes("dead_letter", contents)
}

fn answers() -> Vec<Seed> {
    let good = completion("they like tea", "Food > Drinks: Green tea", PromptMode::Think);
    let long = format!("{}<think>", "<thi".repeat(60));
    texts(
        "llm_answer",
        &[
            &good,
            "<think> because\n</think>\n<answer> A > B: t </answer>\n</s><|im_end|>",
            "r</think></think><answer>a</answer>",
            "<thi<think>nk>a<|eot|><|",
            &long,
            "",
        ],
    )
}

fn tables() -> Vec<Seed> {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    let schema = "message events { required binary user_id (UTF8); optional binary context (UTF8);
        required int64 ts_ms (TIMESTAMP_MICROS); optional group tags (LIST) { repeated group list {
        optional binary element (UTF8); } } }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).expect("schema"));
    let mut content = Vec::new();
    let properties = std::sync::Arc::new(WriterProperties::builder().set_created_by("taiji".into()).build());
    let mut writer = SerializedFileWriter::new(&mut content, schema, properties).expect("writer");
    let mut group = writer.next_row_group().expect("group");
    let text = |values: &[&str]| values.iter().map(|value| ByteArray::from(*value)).collect::<Vec<ByteArray>>();
    let mut column = group.next_column().expect("column").expect("column");
    column.typed::<ByteArrayType>().write_batch(&text(&["u1", "u2"]), None, None).expect("write");
    column.close().expect("close");
    let mut column = group.next_column().expect("column").expect("column");
    column.typed::<ByteArrayType>().write_batch(&text(&["{\"query\":\"q\"}"]), Some(&[1, 0]), None).expect("write");
    column.close().expect("close");
    let mut column = group.next_column().expect("column").expect("column");
    column.typed::<Int64Type>().write_batch(&[NOW_MS * 1000, -1], None, None).expect("write");
    column.close().expect("close");
    let mut column = group.next_column().expect("column").expect("column");
    let (definitions, repetitions) = ([3, 3, 0], [0, 1, 0]);
    let levels = (Some(&definitions[..]), Some(&repetitions[..]));
    column.typed::<ByteArrayType>().write_batch(&text(&["a", "b"]), levels.0, levels.1).expect("write");
    column.close().expect("close");
    group.close().expect("close");
    writer.close().expect("close");
    let cut = content[..content.len() - 9].to_vec();
    bytes("rows_table", vec![content, cut, b"PAR1\0\0\0\0PAR1".to_vec(), b"PAR1\xff\xff\xff\x7fPAR1".to_vec()])
}
