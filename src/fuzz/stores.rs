//! Records as they stand in a store: damaged ones are errors, and what is read is written back the same.

use super::part;
use crate::feature::{DecodedGroup, Group, GroupBlob, Version, cross_behaviours, cross_sequence};
use crate::store::StoredFeatures;
use crate::store::codec::{
    CodecResult, decode_due, decode_erasure, decode_features, decode_user, decode_vector, encode_due, encode_erasure,
    encode_features, encode_user, encode_vector,
};
use crate::store::kept::KeptList;
use crate::store::redis::{entries, features};
use redis::Value;
use std::collections::BTreeMap;

/// Entries kept by the target of kept lists.
const CAP: usize = 100;

/// A history list of the Redis store: id, time and body, id, …, each behind its length.
pub(super) fn redis_list(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut list = Vec::new();
    while let Some(part) = part(&mut rest) {
        list.push(part.to_vec());
    }
    let Ok(found) = entries::entries(&list) else { return false };
    assert!(found.len() * 2 <= list.len());
    assert!(found.is_sorted_by(|newer, older| (newer.0, newer.1) > (older.0, older.1)));
    for (ts_ms, id, body) in found {
        let written = [id.as_bytes().to_vec(), [entries::time_bytes(ts_ms).as_slice(), body].concat()];
        let again = entries::entries(&written).expect("what was written");
        assert_eq!((again[0].1, again[0].2), (id, body));
        // Times outside the range that is kept, which no program of ours writes, move to its end.
        assert!(again[0].0 == ts_ms || ts_ms.abs() >= 1 << 45);
    }
    true
}

/// A history list of the embedded store: main part, then tail.
pub(super) fn kept_list(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let main = part(&mut rest).unwrap_or_default();
    let Ok(mut list) = KeptList::decode(main, rest, CAP) else { return false };
    let shape = |list: &KeptList| -> Vec<(i64, Vec<u8>, Vec<u8>)> {
        list.iter().map(|(ts_ms, id, body)| (ts_ms, id.to_vec(), body.to_vec())).collect()
    };
    assert!(shape(&list).len() <= CAP);
    // A new event makes a list that is whole: the same after it was written and read.
    let added = !list.contains("new") && list.insert(i64::MAX, "new", b"body", CAP);
    let stored = list.encode();
    let again = KeptList::decode(stored.main.as_deref().unwrap_or(main), &stored.tail, CAP).expect("what was written");
    assert!(again.iter().count() <= CAP);
    assert!(!added || again.contains("new"));
    true
}

/// The first byte says which record.
pub(super) fn records(bytes: &[u8]) -> bool {
    let Some((kind, record)) = bytes.split_first() else { return false };
    match kind % 5 {
        0 => same(record, decode_user, encode_user),
        1 => same(record, decode_features, encode_features),
        2 => same(record, decode_vector, encode_vector),
        3 => same(record, decode_due, |(class, due_ms)| encode_due(*class, *due_ms)),
        _ => same(record, |bytes| decode_erasure("u", bytes), encode_erasure),
    }
}

/// decode(encode(x)) = x, compared as bytes, since a weight may be no number.
fn same<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> CodecResult<T>, encode: impl Fn(&T) -> Vec<u8>) -> bool {
    let Ok(record) = decode(bytes) else { return false };
    let written = encode(&record);
    let again = decode(&written).expect("what was written");
    assert_eq!(encode(&again), written);
    assert!(written.len() <= bytes.len() + 64, "{} bytes out of {}", written.len(), bytes.len());
    true
}

/// The fields of a features hash: name, value, name, value …, each behind its length.
pub(super) fn feature_fields(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut parts = Vec::new();
    while let Some(part) = part(&mut rest) {
        parts.push(Value::BulkString(part.to_vec()));
    }
    let light = light_read(&parts);
    let Ok((record, revision)) = features::decode("key", Value::Array(parts)) else { return false };
    if let Some(light) = light {
        let whole = (!revision.is_empty()).then(|| record.features.clone().only(&Group::ALL));
        assert_eq!(light, Ok(whole), "the read of some groups and that of all fields");
    }
    let mut written: Vec<Value> = Vec::new();
    for (name, value) in features::fields(&record) {
        written.extend([Value::BulkString(name.into()), Value::BulkString(value)]);
    }
    if !revision.is_empty() {
        written.extend([Value::BulkString(b"rev".to_vec()), Value::BulkString(revision.clone().into_bytes())]);
    }
    let again = features::decode("key", Value::Array(written)).expect("what was written");
    assert_eq!(again, (record, revision));
    true
}

/// The same fields as a read of all groups asks for them; `None` where a name stands twice, as no hash has it.
fn light_read(parts: &[Value]) -> Option<CodecResult<Option<StoredFeatures>>> {
    let mut fields = BTreeMap::new();
    for pair in parts.chunks_exact(2) {
        let Value::BulkString(name) = &pair[0] else { return None };
        if fields.insert(name.clone(), pair[1].clone()).is_some() {
            return None;
        }
    }
    let names = ["rev", "r"].into_iter().chain(Group::ALL.map(Group::as_str));
    let values = names.map(|name| fields.remove(name.as_bytes()).unwrap_or(Value::Nil)).collect();
    Some(features::decode_groups_of(&Group::ALL, &Value::Array(values)))
}

/// A group's message as it goes to readers.
pub(super) fn feature_groups(bytes: &[u8]) -> bool {
    let Some((kind, message)) = bytes.split_first() else { return false };
    let group = Group::ALL[usize::from(*kind) % Group::ALL.len()];
    let blob =
        GroupBlob { group, bytes: message.to_vec().into(), tier: 1, version: Version::default(), expires_at_ms: 0 };
    let decoded = DecodedGroup::decode(&blob);
    let looked_over = DecodedGroup::epoch_of(&blob).ok();
    assert_eq!(looked_over, decoded.as_ref().ok().map(|decoded| decoded.meta().epoch), "a look and the decoder differ");
    let Ok(decoded) = decoded else { return false };
    if let DecodedGroup::Cross(cross) = decoded {
        let behaviours = cross_behaviours(&cross);
        assert_eq!(behaviours.len(), cross.item_ids.len().min(cross.actions.len()).min(cross.ts_ms.len()));
        assert_eq!(cross_behaviours(&cross_sequence(&behaviours)), behaviours);
    }
    true
}
