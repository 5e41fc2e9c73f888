//! Headers of the dead-letter topic: whatever they say, a replay counts once more and keeps the record's own.

use super::part;
use crate::ingest::kafka::dead_letter::{CONNECT_PREFIX, REPLAYED_FROM_HEADER, REPLAYS_HEADER};
use crate::ingest::kafka::dlq::Letter;
use crate::ingest::kafka::record::Body;
use rdkafka::message::Headers;

/// Name, value, name, value …, each behind its length; a name that is no text makes all headers unreadable, as it does in
/// the client library.
pub(super) fn headers(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut headers = Some(Vec::new());
    while let Some(name) = part(&mut rest) {
        let value = part(&mut rest).map(<[u8]>::to_vec);
        match (std::str::from_utf8(name), &mut headers) {
            // A C string.
            (Ok(name), Some(list)) if !name.contains('\0') => list.push((name.to_string(), value)),
            _ => headers = None,
        }
    }
    let own = |name: &str| !name.starts_with(CONNECT_PREFIX) && name != REPLAYS_HEADER && name != REPLAYED_FROM_HEADER;
    let wanted: Vec<(String, Option<Vec<u8>>)> =
        headers.iter().flatten().filter(|(name, _)| own(name)).cloned().collect();
    let readable = headers.is_some();
    let letter = Letter::of_body(3, 7, Body::of_parts(Some(b"value".to_vec()), headers));
    assert!(!letter.name().is_empty() && letter.value() == Some(b"value"));
    if !readable {
        assert!(letter.source.0.is_empty(), "nobody knows where it came from");
        return false;
    }
    let replayed = letter.replay_headers();
    let found: Vec<(String, Option<Vec<u8>>)> =
        replayed.iter().map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec))).collect();
    let of =
        |name: &str| found.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone()).collect::<Vec<_>>();
    assert_eq!(of(REPLAYS_HEADER), [Some(letter.replays.saturating_add(1).to_string().into_bytes())]);
    assert_eq!(of(REPLAYED_FROM_HEADER), [Some(b"3/7".to_vec())]);
    assert!(found.iter().all(|(name, _)| !name.starts_with(CONNECT_PREFIX)));
    let kept: Vec<(String, Option<Vec<u8>>)> = found.into_iter().filter(|(name, _)| own(name)).collect();
    assert_eq!(kept, wanted);
    // What is read back of the replayed record is the count that was written.
    let again = Letter::of_body(0, 0, Body::of_parts(None, Some(replayed.iter().map(owned).collect())));
    assert_eq!(again.replays, letter.replays.saturating_add(1));
    !letter.source.0.is_empty()
}

fn owned(header: rdkafka::message::Header<'_, &[u8]>) -> (String, Option<Vec<u8>>) {
    (header.key.to_string(), header.value.map(<[u8]>::to_vec))
}
