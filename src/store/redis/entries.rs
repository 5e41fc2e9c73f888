//! The bytes of a kept entry and of a profile attribute, as `migrations/0001_functions.lua` lays them out.
//!
//! In: records. Out: what the function takes; and back, what it stored. Callers: `history`. Only the function writes lists.

use crate::store::codec::CodecResult;

/// Times are kept between -RANGE and RANGE, in ms (1,115 years around 1970), in 6 bytes.
const RANGE: i64 = 1 << 45;
/// Added to a time: the first of its bytes is then one of 0x80 to 0xBF, which begins no UTF-8 text, so that a search for an
/// event id never meets an entry's second element.
const EPOCH: i64 = (1 << 47) + RANGE;

/// `ts`, before a body.
pub fn time_bytes(ts_ms: i64) -> [u8; 6] {
    let [_, _, bytes @ ..] = (ts_ms.clamp(-RANGE, RANGE - 1) + EPOCH).to_be_bytes();
    bytes
}

/// (ts_ms, what follows) of bytes that begin with a time.
fn split_time(bytes: &[u8]) -> CodecResult<(i64, &[u8])> {
    let ([a, b, c, d, e, f], rest) = bytes.split_first_chunk::<6>().ok_or("no time")?;
    Ok((i64::from_be_bytes([0, 0, *a, *b, *c, *d, *e, *f]) - EPOCH, rest))
}

/// (ts_ms, event id, body) of a stored list's entries, newest first.
pub fn entries(list: &[Vec<u8>]) -> CodecResult<Vec<(i64, &str, &[u8])>> {
    list.chunks(2).map(entry).collect()
}

fn entry(pair: &[Vec<u8>]) -> CodecResult<(i64, &str, &[u8])> {
    let [id, stored] = pair else { return Err("an entry without its body".to_string()) };
    let (ts_ms, body) = split_time(stored)?;
    Ok((ts_ms, std::str::from_utf8(id).map_err(|error| error.to_string())?, body))
}

/// (ts_ms, value) of a stored attribute, `ts | id length | id | value`.
pub fn attribute(bytes: &[u8]) -> CodecResult<(i64, &[u8])> {
    let (ts_ms, rest) = split_time(bytes)?;
    let (id_length, rest) = rest.split_first().ok_or("no id")?;
    Ok((ts_ms, rest.get(usize::from(*id_length)..).ok_or("id cut off")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_and_attributes_come_back_and_cut_ones_are_errors() {
        for ts_ms in [-RANGE, -1, 0, 1_700_000_000_000, RANGE - 1] {
            let stored = [time_bytes(ts_ms).as_slice(), b"body"].concat();
            let list = ["ü".as_bytes().to_vec(), stored];
            assert_eq!(entries(&list).unwrap(), [(ts_ms, "ü", b"body".as_slice())]);
            assert!(entries(&list[..1]).is_err());
        }
        assert!(entries(&[b"id".to_vec(), vec![0x80; 5]]).is_err() && entries(&[vec![0xFF], vec![0x80; 6]]).is_err());
        assert!(entries(&[]).unwrap().is_empty());
        let stored = [time_bytes(5).as_slice(), &[2], b"idvalue"].concat();
        assert_eq!(attribute(&stored).unwrap(), (5, b"value".as_slice()));
        for cut in 0..9 {
            assert!(attribute(&stored[..cut]).is_err(), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn times_keep_their_order_and_look_like_no_text(left: i64, right: i64) {
            let (left_bytes, right_bytes) = (time_bytes(left), time_bytes(right));
            prop_assert_eq!(left_bytes.cmp(&right_bytes), left.clamp(-RANGE, RANGE - 1).cmp(&right.clamp(-RANGE, RANGE - 1)));
            prop_assert!(std::str::from_utf8(&left_bytes[..1]).is_err() && (0x80..0xC0).contains(&left_bytes[0]));
        }
    }
}
