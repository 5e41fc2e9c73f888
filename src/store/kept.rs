//! A kept list: the newest N events of one kind, packed into one value.
//!
//! In: the stored bytes, then events in any order. Out: whether each was new, and the bytes to store. Nothing is decoded
//! beyond time and id. Caller: the embedded store.
//!
//! A list is stored in two values. The tail holds the latest few additions, the main part the rest: most appends write
//! the tail only, and every [`TAIL_CAP`]th writes both, which by calculation writes a seventh of the bytes.
//!
//! An entry is `length | ts_ms | id length | id | body`; entries stand newest first. The body is the caller's: a
//! `Behaviour` without its time and id, or the text of a query.

use super::codec::{CodecResult, Reader, put_bytes, put_i64, put_length};
use std::ops::Range;

/// Additions that are gathered before the main part is written again: about where rewriting the tail costs as much per
/// event as rewriting the main part, for 100 events of equal size.
pub const TAIL_CAP: usize = 16;

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
    in_tail: bool,
}

/// What to store after a change.
#[derive(Debug, PartialEq, Eq)]
pub struct Stored {
    /// Written anew; `None` when only the tail changed.
    pub main: Option<Vec<u8>>,
    /// Always written.
    pub tail: Vec<u8>,
}

impl KeptList {
    /// The newest `cap` events of both stored values; absent values are empty.
    pub fn decode(main: &[u8], tail: &[u8], cap: usize) -> CodecResult<KeptList> {
        let mut list = KeptList { bytes: [main, tail].concat(), entries: Vec::with_capacity(cap + TAIL_CAP) };
        let mut start = 0;
        while start < list.bytes.len() {
            if start < main.len() {
                let entry = Entry::parse(&list.bytes[..main.len()], start, false)?;
                start = entry.whole.end;
                list.entries.push(entry);
            } else {
                let entry = Entry::parse(&list.bytes, start, true)?;
                start = entry.whole.end;
                let id = &list.bytes[entry.id.clone()];
                let position = list.position(entry.ts_ms, id);
                list.entries.insert(position, entry);
            }
        }
        list.entries.truncate(cap);
        Ok(list)
    }

    /// The bytes to store.
    pub fn encode(&self) -> Stored {
        let in_tail = self.entries.iter().filter(|entry| entry.in_tail);
        if in_tail.clone().count() < TAIL_CAP {
            return Stored { main: None, tail: self.concat(in_tail) };
        }
        Stored { main: Some(self.concat(self.entries.iter())), tail: Vec::new() }
    }

    fn concat<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in entries {
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
        let position = self.position(ts_ms, event_id.as_bytes());
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

    /// Where an event of that time and id belongs.
    fn position(&self, ts_ms: i64, event_id: &[u8]) -> usize {
        self.entries.partition_point(|entry| (entry.ts_ms, &self.bytes[entry.id.clone()]) > (ts_ms, event_id))
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
        Entry { ts_ms, whole: start..self.bytes.len(), id: id_end - event_id.len()..id_end, in_tail: true }
    }
}

impl Entry {
    /// The entry that starts there.
    fn parse(bytes: &[u8], start: usize, in_tail: bool) -> CodecResult<Entry> {
        let mut reader = Reader::new(&bytes[start..]);
        let mut entry = Reader::new(reader.bytes()?);
        let end = bytes.len() - reader.remaining();
        let ts_ms = entry.i64()?;
        let id_length = entry.bytes()?.len();
        let id_end = end - entry.remaining();
        Ok(Entry { ts_ms, whole: start..end, id: id_end - id_length..id_end, in_tail })
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
        let stored = list.encode();
        assert_eq!(stored.main, None, "a few additions stay in the tail");
        let mut again = KeptList::decode(&[], &stored.tail, 3).unwrap();
        assert_eq!(shape(&again), expected);
        assert!(again.contains("a") && !again.contains("z"));
        assert!(!again.insert(5, "A", b"", 3), "sorts below the last kept");
        assert!(again.insert(5, "aa", b"body", 3));
        assert_eq!(shape(&again)[2], (5, "aa".into(), "body".into()));
        assert!(!again.contains("a"), "pushed out");
    }

    #[test]
    fn many_additions_move_into_the_main_part_in_order() {
        let mut list = KeptList::default();
        let mut stored = list.encode();
        let (mut main, mut rewritten) = (Vec::new(), 0);
        for n in 0..200i64 {
            // Every third comes late.
            let ts_ms = if n % 3 == 0 { n - 10 } else { n };
            list = KeptList::decode(&main, &stored.tail, 50).unwrap();
            list.insert(ts_ms, &n.to_string(), &[b'b'; 20], 50);
            stored = list.encode();
            rewritten += usize::from(stored.main.is_some());
            main = stored.main.take().unwrap_or(main);
            let kept = shape(&KeptList::decode(&main, &stored.tail, 50).unwrap());
            assert_eq!(kept, shape(&list));
            assert!(kept.is_sorted_by(|a, b| a > b) && kept.len() == 50.min(n as usize + 1));
        }
        assert_eq!(rewritten, 200 / TAIL_CAP);
    }

    #[test]
    fn a_cut_list_is_an_error() {
        let mut list = KeptList::default();
        list.insert(1, "id", b"body", 3);
        let whole = list.encode().tail;
        for length in 1..whole.len() {
            assert!(KeptList::decode(&[], &whole[..length], 3).is_err(), "cut at {length}");
            assert!(KeptList::decode(&whole[..length], &whole, 3).is_err(), "main cut at {length}");
        }
    }
}
