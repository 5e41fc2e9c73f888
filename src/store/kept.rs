//! A kept list: the newest N events of one kind, packed into one value.
//!
//! In: the stored bytes, then events in any order. Out: whether each was new, and the bytes to store. Nothing is decoded
//! beyond time and id, so that an append to a full list costs two copies of it. Caller: the embedded store.
//!
//! An entry is `length | ts_ms | id length | id | body`; entries stand newest first. The body is the caller's: a
//! `Behaviour` without its time and id, or the text of a query.

use super::codec::{CodecResult, Reader, put_bytes, put_i64, put_length};
use std::cmp::Ordering;
use std::ops::Range;

/// A list being read or changed.
#[derive(Debug, Default)]
pub struct KeptList {
    /// The stored bytes, followed by entries added since.
    bytes: Vec<u8>,
    /// Newest first.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ts_ms: i64,
    whole: Range<usize>,
    id: Range<usize>,
}

impl KeptList {
    /// The list stored as `bytes`; no bytes are an empty list.
    pub fn decode(bytes: &[u8]) -> CodecResult<KeptList> {
        let mut reader = Reader::new(bytes);
        let mut entries = Vec::with_capacity(128);
        while !reader.is_empty() {
            let start = bytes.len() - reader.remaining();
            let mut entry = Reader::new(reader.bytes()?);
            let end = bytes.len() - reader.remaining();
            let ts_ms = entry.i64()?;
            let id_length = entry.bytes()?.len();
            let id_end = end - entry.remaining();
            entries.push(Entry { ts_ms, whole: start..end, id: id_end - id_length..id_end });
        }
        Ok(KeptList { bytes: bytes.to_vec(), entries })
    }

    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.iter().map(|entry| entry.whole.len()).sum());
        for entry in &self.entries {
            bytes.extend_from_slice(&self.bytes[entry.whole.clone()]);
        }
        bytes
    }

    /// Whether an event of that id is kept.
    pub fn contains(&self, event_id: &str) -> bool {
        self.entries.iter().any(|entry| &self.bytes[entry.id.clone()] == event_id.as_bytes())
    }

    /// Adds an event that is not [`contained`](Self::contains) and drops what falls off the end. False, and unchanged,
    /// when `cap` events are kept and this one sorts below them all by (ts_ms, event_id).
    pub fn insert(&mut self, ts_ms: i64, event_id: &str, body: &[u8], cap: usize) -> bool {
        let newer = |entry: &Entry| self.order(entry, ts_ms, event_id) == Ordering::Greater;
        let position = self.entries.partition_point(newer);
        if position >= cap {
            return false;
        }
        let entry = self.push_bytes(ts_ms, event_id, body);
        self.entries.insert(position, entry);
        self.entries.truncate(cap);
        true
    }

    /// (ts_ms, event id, body), newest first.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &[u8], &[u8])> {
        self.entries
            .iter()
            .map(|entry| (entry.ts_ms, &self.bytes[entry.id.clone()], &self.bytes[entry.id.end..entry.whole.end]))
    }

    fn order(&self, entry: &Entry, ts_ms: i64, event_id: &str) -> Ordering {
        (entry.ts_ms, &self.bytes[entry.id.clone()]).cmp(&(ts_ms, event_id.as_bytes()))
    }

    fn push_bytes(&mut self, ts_ms: i64, event_id: &str, body: &[u8]) -> Entry {
        let mut head = Vec::with_capacity(event_id.len() + 16);
        put_i64(&mut head, ts_ms);
        put_bytes(&mut head, event_id.as_bytes());
        let start = self.bytes.len();
        put_length(&mut self.bytes, head.len() + body.len());
        self.bytes.extend_from_slice(&head);
        let id_end = self.bytes.len();
        self.bytes.extend_from_slice(body);
        Entry { ts_ms, whole: start..self.bytes.len(), id: id_end - event_id.len()..id_end }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shape(list: &KeptList) -> Vec<(i64, String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        list.iter().map(|(ts_ms, id, body)| (ts_ms, text(id), text(body))).collect()
    }

    #[test]
    fn keeps_the_newest_by_time_then_id_and_survives_a_round_trip() {
        let mut list = KeptList::default();
        for (ts_ms, id) in [(5, "b"), (5, "a"), (7, ""), (-1, "z")] {
            assert!(list.insert(ts_ms, id, id.as_bytes(), 3) || ts_ms == -1);
        }
        let expected = [(7, ""), (5, "b"), (5, "a")].map(|(ts, id)| (ts, id.to_string(), id.to_string()));
        assert_eq!(shape(&list), expected);
        let mut again = KeptList::decode(&list.encode()).unwrap();
        assert_eq!(shape(&again), expected);
        assert!(again.contains("a") && !again.contains("z"));
        assert!(!again.insert(5, "A", b"", 3), "sorts below the last kept");
        assert!(again.insert(5, "aa", b"body", 3));
        assert_eq!(shape(&again)[2], (5, "aa".into(), "body".into()));
        assert!(!again.contains("a"), "pushed out");
    }

    #[test]
    fn a_cut_list_is_an_error() {
        let mut list = KeptList::default();
        list.insert(1, "id", b"body", 3);
        let whole = list.encode();
        for length in 1..whole.len() {
            assert!(KeptList::decode(&whole[..length]).is_err(), "cut at {length}");
        }
    }
}
