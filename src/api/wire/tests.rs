//! One read in every encoding, and what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::feature::{FromBlob, Group, GroupBlob, GroupStatus, Version};
use crate::proto::{self, CrossGroup, GroupMeta, IntraGroup};
use crate::store::{Each, StoredFeatures};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int64Type, UInt8Type, UInt32Type, UInt64Type};
use arrow_ipc::reader::StreamReader;
use axum::body::to_bytes;
use axum::http::HeaderMap;
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

const GROUPS: [Group; 3] = [Group::Intra, Group::Cross, Group::Scid];

fn blob(group: Group, bytes: Vec<u8>) -> GroupBlob {
    GroupBlob { group, bytes: bytes.into(), tier: 1, version: Version::default(), expires_at_ms: 0 }
}

fn meta() -> Option<GroupMeta> {
    Some(GroupMeta {
        epoch: 7,
        space: "s".into(),
        generated_at_ms: 90,
        seq: 4,
        tier: 1,
        flags: 3,
        ..GroupMeta::default()
    })
}

/// `a` has everything, `b` nothing, of `c` the time is over.
fn views<R: FromBlob>() -> ReadViews<R> {
    let intra = IntraGroup {
        meta: meta(),
        sparse_ids: vec![5, 300],
        category_ids: vec!["Outdoor".into(), "läufe".into()],
        has_llm_feature: true,
    };
    let cross = CrossGroup {
        meta: meta(),
        item_ids: vec!["i1".into(), "i2".into()],
        actions: vec!["click".into(), "purchase".into()],
        ts_ms: vec![1_000, 40],
        similarity: 0.9,
        ..CrossGroup::default()
    };
    let features = |expires_at_ms| {
        let blobs = [blob(Group::Intra, intra.encode_to_vec()), blob(Group::Cross, cross.encode_to_vec())];
        let groups = blobs.map(|blob| GroupBlob { expires_at_ms, ..blob }).to_vec();
        Some(StoredFeatures { groups, ..StoredFeatures::default() })
    };
    let stored: Each<Option<StoredFeatures>> = vec![Ok(features(0)), Ok(None), Ok(features(100))];
    ReadViews::of(["a", "b", "c"].map(String::from).to_vec(), GROUPS.to_vec(), stored, (100, 2))
}

fn body(response: Response) -> Vec<u8> {
    assert!(response.status().is_success());
    futures::executor::block_on(to_bytes(response.into_body(), usize::MAX)).unwrap().to_vec()
}

fn answered(encoding: Encoding) -> Vec<u8> {
    let live = crate::live::Live::new(crate::bundle::testing::bundle(7, "s", None));
    body(columnar(encoding, &live.view(), &views()).unwrap())
}

fn json_answer() -> Value {
    serde_json::from_slice(&answered(Encoding::Json)).unwrap()
}

#[test]
fn json_has_a_value_a_user_in_every_column() {
    let answer = json_answer();
    assert_eq!(answer["users"], json!(["a", "b", "c"]));
    assert_eq!(answer["status"], json!(["PRESENT", "MISSING", "MISSING"]));
    assert_eq!(answer["groups"]["intra"]["reason"], json!([null, "no_features", "expired"]));
    assert_eq!(answer["groups"]["scid"]["reason"], json!(["not_built", "not_built", "not_built"]));
    assert_eq!(answer["groups"]["cross"]["seq"], json!([4, 0, 0]));
    assert_eq!(answer["features"]["intra.sparse_ids"], json!([[5, 300], [0, 0], [0, 0]]));
    assert_eq!(answer["features"]["intra.has_llm_feature"], json!([1, 0, 0]));
    assert_eq!(answer["features"]["cross.ts_ms"], json!([[1000, 960], [], []]));
    assert!(String::from_utf8(answered(Encoding::Json)).unwrap().contains(r#""cross.similarity":[0.9,0.0,0.0]"#));
    assert_eq!(answer["provenance"].as_object().unwrap().keys().collect::<Vec<_>>(), ["7"]);
    let keys: Vec<&String> = answer["features"].as_object().unwrap().keys().collect();
    let table: Vec<&str> = GROUPS.iter().flat_map(|group| group.features()).map(|feature| feature.key).collect();
    assert_eq!(keys, table, "in the table's order");
}

#[test]
fn message_pack_says_what_json_says() {
    let answer: Value = rmp_serde::from_slice(&answered(Encoding::MessagePack)).unwrap();
    let mut expected = json_answer();
    // JSON's shortest text of a float of 32 bits is read as one of 64.
    expected["features"]["cross.similarity"] = json!([f64::from(0.9f32), 0.0, 0.0]);
    assert_eq!(answer, expected);
}

#[test]
fn protobuf_is_the_message_of_the_store_with_defaults_and_reasons() {
    let live = crate::live::Live::new(crate::bundle::testing::bundle(7, "s", None));
    let passed_on = body(protobuf(&live.view(), &views::<GroupStatus>()));
    assert_eq!(passed_on, answered(Encoding::Protobuf), "whether it was taken apart or not");
    let answer = proto::FeaturesResponse::decode(passed_on.as_slice()).unwrap();
    assert_eq!(answer.space, "s");
    assert_eq!(answer.provenance.keys().copied().collect::<Vec<_>>(), [7]);
    let [a, b, c] = <[proto::UserFeatures; 3]>::try_from(answer.users).unwrap();
    assert_eq!((a.user_id.as_str(), a.status.as_str()), ("a", "PRESENT"));
    assert_eq!(a.missing.into_iter().collect::<Vec<_>>(), [("scid".to_string(), "not_built".to_string())]);
    let cross = a.cross.unwrap();
    assert_eq!((cross.similarity, cross.ts_ms), (0.9, vec![1_000, 40]));
    assert_eq!(a.intra.unwrap().meta, meta());
    assert_eq!((b.status.as_str(), b.missing["intra"].as_str()), ("MISSING", "no_features"));
    assert_eq!(b.intra.unwrap().sparse_ids, [0, 0]);
    assert_eq!((c.missing["cross"].as_str(), c.cross), ("expired", Some(CrossGroup::default())));
}

#[test]
fn arrow_has_a_row_a_user_and_a_column_a_feature() {
    let mut reader = StreamReader::try_new(std::io::Cursor::new(answered(Encoding::Arrow)), None).unwrap();
    let batch = reader.next().unwrap().unwrap();
    assert!(reader.next().is_none());
    let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("{name}")).clone();
    let texts =
        |name: &str| column(name).as_string::<i32>().iter().map(|text| text.map(String::from)).collect::<Vec<_>>();
    let some = |text: &str| Some(text.to_string());
    assert_eq!(texts("user_id"), [some("a"), some("b"), some("c")]);
    assert_eq!(texts("intra.reason"), [None, some("no_features"), some("expired")]);
    let ids = column("intra.sparse_ids");
    assert_eq!(ids.as_list::<i32>().value(0).as_primitive::<UInt32Type>().values(), &[5, 300]);
    assert_eq!(ids.as_list::<i32>().value(1).as_primitive::<UInt32Type>().values(), &[0, 0]);
    assert_eq!(column("cross.ts_ms").as_list::<i32>().value(0).as_primitive::<Int64Type>().values(), &[1000, 960]);
    assert_eq!(column("cross.similarity").as_primitive::<Float32Type>().values(), &[0.9, 0.0, 0.0]);
    assert_eq!(column("intra.has_llm_feature").as_primitive::<UInt8Type>().values(), &[1, 0, 0]);
    assert_eq!(column("intra.epoch").as_primitive::<UInt64Type>().values(), &[7, 0, 0]);
    for feature in GROUPS.iter().flat_map(|group| group.features()) {
        assert_eq!(column(feature.key).len(), 3, "{}", feature.key);
    }
    let schema = batch.schema();
    assert!(schema.metadata()["provenance"].contains("codebook") && !schema.metadata()["space"].is_empty());
}

#[test]
fn a_row_has_its_groups_with_their_provenance() {
    let live = crate::live::Live::new(crate::bundle::testing::bundle(7, "s", None));
    let row: Value = serde_json::from_slice(&body(row(Encoding::Json, &live.view(), &views()).unwrap())).unwrap();
    assert_eq!((&row["user_id"], &row["status"]), (&json!("a"), &json!("PRESENT")));
    let intra = &row["groups"]["intra"];
    assert_eq!(
        (&intra["sparse_ids"], &intra["status"], &intra["reason"]),
        (&json!([5, 300]), &json!("PRESENT"), &json!(null))
    );
    assert_eq!(intra["meta"]["flags"], json!(["format_ok", "grounded"]));
    assert_eq!((&intra["meta"]["epoch"], &intra["meta"]["generated_at_ms"]), (&json!(7), &json!(90)));
}

fn chosen(accept: &str) -> Result<Encoding, ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, accept.parse().unwrap());
    accepted(&headers, &Encoding::ALL)
}

#[test]
fn the_client_chooses_by_quality_then_by_name_then_by_place() {
    for (accept, wanted) in [
        ("*/*", Encoding::Json),
        ("application/*", Encoding::Json),
        ("application/x-protobuf, application/json;q=0.5", Encoding::Protobuf),
        ("application/json;q=0.5, application/msgpack;q=0.9", Encoding::MessagePack),
        ("application/vnd.apache.arrow.stream, */*", Encoding::Arrow),
        ("application/msgpack, application/json", Encoding::MessagePack),
        ("APPLICATION/PROTOBUF", Encoding::Protobuf),
        ("*/*, application/json;q=0", Encoding::Protobuf),
        ("text/html, application/xhtml+xml, */*;q=0.8", Encoding::Json),
    ] {
        assert_eq!(chosen(accept).unwrap(), wanted, "{accept}");
    }
    for accept in ["text/html", "application/json;q=0", "application/json;q=7", "application/xml;q=1"] {
        let told = chosen(accept).unwrap_err().to_string();
        assert!(told.contains("application/json, application/x-protobuf") && told.contains(accept), "{told}");
    }
    assert_eq!(chosen("Application/*").unwrap(), Encoding::Json);
    assert_eq!(accepted(&HeaderMap::new(), &Encoding::ALL).unwrap(), Encoding::Json);
}

/// Parts of a message may be named many times over: the work is bounded by the body's length.
#[test]
fn metadata_that_is_named_again_and_again_is_refused() {
    use flatbuffers::FlatBufferBuilder;
    let mut builder = FlatBufferBuilder::new();
    let (key, value) = (builder.create_string("groups"), builder.create_string(&"a,".repeat(200_000)));
    let pair =
        arrow_ipc::KeyValue::create(&mut builder, &arrow_ipc::KeyValueArgs { key: Some(key), value: Some(value) });
    let metadata = builder.create_vector(&vec![pair; 2_000]);
    let fields = builder.create_vector::<flatbuffers::ForwardsUOffset<arrow_ipc::Field<'_>>>(&[]);
    let schema = arrow_ipc::SchemaArgs { fields: Some(fields), custom_metadata: Some(metadata), ..Default::default() };
    let schema = arrow_ipc::Schema::create(&mut builder, &schema).as_union_value();
    let message = arrow_ipc::MessageArgs {
        header_type: arrow_ipc::MessageHeader::Schema,
        header: Some(schema),
        ..Default::default()
    };
    let message = arrow_ipc::Message::create(&mut builder, &message);
    builder.finish(message, None);
    let flat = builder.finished_data();
    let body = [&u32::MAX.to_le_bytes()[..], &(flat.len() as u32).to_le_bytes(), flat].concat();
    let began = std::time::Instant::now();
    let told = decode(Encoding::Arrow, &body).unwrap_err().to_string();
    assert!(told.contains("malformed arrow stream"), "{told}");
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{:?}", began.elapsed());
}

fn body_of(kind: &str) -> Result<Encoding, ApiError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
    sent(&headers, &Encoding::ALL)
}

#[test]
fn a_body_is_what_its_content_type_says() {
    assert_eq!(body_of("application/json; charset=utf-8").unwrap(), Encoding::Json);
    assert_eq!(body_of("application/x-www-form-urlencoded").unwrap(), Encoding::Json, "as curl -d says of any body");
    assert_eq!(body_of("Application/X-Protobuf").unwrap(), Encoding::Protobuf);
    assert_eq!(sent(&HeaderMap::new(), &Encoding::ALL).unwrap(), Encoding::Json);
    let told = body_of("text/xml").unwrap_err().to_string();
    assert!(told.contains("text/xml") && told.contains("application/msgpack"), "{told}");
}

/// The same request in every encoding.
fn requests() -> [(Encoding, Vec<u8>); 4] {
    use arrow_array::{ArrayRef, RecordBatch, StringArray};
    let asked = json!({ "users": ["a", "b"], "groups": ["intra"], "max_staleness_ms": 5 });
    let message = proto::FeaturesRequest {
        users: vec!["a".into(), "b".into()],
        groups: vec!["intra".into()],
        max_staleness_ms: Some(5),
        deadline_ms: None,
    };
    let metadata = [("groups", "intra"), ("max_staleness_ms", "5"), ("pandas", "{}")]
        .map(|(key, text)| (key.to_string(), text.to_string()));
    let field = arrow_schema::Field::new("user_id", arrow_schema::DataType::Utf8, true);
    let schema = std::sync::Arc::new(arrow_schema::Schema::new_with_metadata(vec![field], metadata));
    let users: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["a", "b"]));
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&RecordBatch::try_new(schema, vec![users]).unwrap()).unwrap();
    [
        (Encoding::Json, asked.to_string().into_bytes()),
        (Encoding::MessagePack, rmp_serde::to_vec_named(&asked).unwrap()),
        (Encoding::Protobuf, message.encode_to_vec()),
        (Encoding::Arrow, writer.into_inner().unwrap()),
    ]
}

#[test]
fn a_request_is_the_same_in_every_encoding() {
    for (encoding, bytes) in requests() {
        let request = decode(encoding, &bytes).unwrap();
        assert_eq!(request.users, ["a", "b"], "{encoding:?}");
        assert_eq!(request.groups, Some(vec!["intra".to_string()]), "{encoding:?}");
        assert_eq!((request.max_staleness_ms, request.deadline_ms), (Some(5), None), "{encoding:?}");
    }
}

#[test]
fn bodies_that_are_cut_or_of_another_kind_are_refused() {
    for (encoding, bytes) in requests() {
        let cut = decode(encoding, &bytes[..bytes.len() / 2]);
        assert!(cut.is_err(), "{encoding:?}: half a body was taken for {cut:?}");
        if encoding != Encoding::Protobuf {
            assert!(decode(encoding, b"").is_err(), "{encoding:?}: nothing was taken for a request");
        }
    }
    let told = |value: Value| {
        decode(Encoding::MessagePack, &rmp_serde::to_vec_named(&value).unwrap()).unwrap_err().to_string()
    };
    assert!(told(json!([["a"], ["intra"]])).contains("must be a msgpack map"));
    assert!(told(json!({ "users": ["a"], "colour": 1 })).contains("colour"));
    // Numbers are no names of fields, and nothing is nested without end.
    let numbered = rmp_serde::to_vec(&std::collections::BTreeMap::from([(0, vec!["a"])])).unwrap();
    assert!(decode(Encoding::MessagePack, &numbered).is_err());
    let deep = [&[0x81, 0xa5][..], b"users", &[0x91; 1000], &[0x90]].concat();
    assert!(decode(Encoding::MessagePack, &deep).unwrap_err().to_string().contains("malformed msgpack"));
    let mut followed = requests()[3].1.clone();
    followed.push(0);
    assert!(decode(Encoding::Arrow, &followed).unwrap_err().to_string().contains("follows"));
    let mut twice = rmp_serde::to_vec_named(&json!({ "users": ["a"] })).unwrap();
    twice.extend(twice.clone());
    assert!(decode(Encoding::MessagePack, &twice).unwrap_err().to_string().contains("something follows"));
}

proptest! {
    /// Whatever is changed in a good body, an answer comes.
    #[test]
    fn a_body_of_any_bytes_is_a_request_or_refused(
        which in 0usize..4, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in any::<prop::sample::Index>(),
    ) {
        let (encoding, mut bytes) = requests()[which].clone();
        for (place, byte) in changes {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let Ok(request) = decode(encoding, &bytes) {
            // No two of them share text, so that a body cannot ask for more memory than it has.
            prop_assert!(request.users.iter().map(String::len).sum::<usize>() <= bytes.len());
        }
    }
}
