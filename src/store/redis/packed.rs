//! The bytes of a kept list and of a profile attribute, as `migrations/0001_functions.lua` lays them out.
//!
//! In: records. Out: what the function takes; and back, what it stored. Only the function writes whole lists.

use crate::store::codec::CodecResult;

/// Added to a time so that it is never negative; 6 bytes hold it.
const EPOCH: i64 = 1 << 47;

/// Bytes of an entry without id and body: time, id length, and its own length before and after it.
const SMALLEST_ENTRY: usize = 11;

/// `ts | id length | id`, before a body.
pub fn head(ts_ms: i64, event_id: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(event_id.len() + 7);
    let ts = (ts_ms.clamp(-EPOCH, EPOCH - 1) + EPOCH) as u64;
    bytes.extend_from_slice(&ts.to_be_bytes()[2..]);
    // Ids hold at most 128 bytes (DESIGN 5.1).
    bytes.push(event_id.len() as u8);
    bytes.extend_from_slice(event_id.as_bytes());
    bytes
}

/// (ts_ms, id, body) of bytes that begin with a [`head`].
pub fn split(bytes: &[u8]) -> CodecResult<(i64, &str, &[u8])> {
    let (ts, rest) = bytes.split_first_chunk::<6>().ok_or("no time")?;
    let (id_length, rest) = rest.split_first().ok_or("no id")?;
    let (id, body) = rest.split_at_checked(usize::from(*id_length)).ok_or("id cut off")?;
    let [a, b, c, d, e, f] = *ts;
    let ts_ms = i64::from_be_bytes([0, 0, a, b, c, d, e, f]) - EPOCH;
    Ok((ts_ms, std::str::from_utf8(id).map_err(|error| error.to_string())?, body))
}

/// Entries of a stored list, newest first.
pub fn entries(list: &[u8]) -> CodecResult<Vec<(i64, &str, &[u8])>> {
    let Some((count, mut rest)) = list.split_first_chunk::<2>() else { return Ok(Vec::new()) };
    // The count is only believed as far as there are bytes for it.
    let mut found = Vec::with_capacity(usize::from(u16::from_be_bytes(*count)).min(rest.len() / SMALLEST_ENTRY));
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (entry, tail) = tail.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or("entry cut off")?;
        found.push(split(entry)?);
        rest = tail.get(2..).ok_or("entry without its second length")?;
    }
    match found.len() == usize::from(u16::from_be_bytes(*count)) {
        true => Ok(found),
        false => Err(format!("{} entries where {} are counted", found.len(), u16::from_be_bytes(*count))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn heads_come_back_and_cut_lists_are_errors() {
        for ts_ms in [-1, 0, 1_700_000_000_000, EPOCH - 1] {
            let bytes = [head(ts_ms, "ü"), b"body".to_vec()].concat();
            assert_eq!(split(&bytes).unwrap(), (ts_ms, "ü", b"body".as_slice()));
        }
        let entry = head(5, "id");
        let length = (entry.len() as u16).to_be_bytes();
        let list = [vec![0, 1], length.to_vec(), entry, length.to_vec()].concat();
        assert_eq!(entries(&list).unwrap(), [(5, "id", [].as_slice())]);
        for cut in 2..list.len() {
            assert!(entries(&list[..cut]).is_err(), "cut at {cut}");
        }
        assert!(entries(&[]).unwrap().is_empty());
    }
}
