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

/// An entry: ts_ms, event id, body.
pub type Entry<'a> = (i64, &'a str, &'a [u8]);

/// A stored list's entries, newest first by (ts_ms, event id).
///
/// A list may hold an entry twice, or an id without its body: halves of transactions that came back when Redis was started a
/// second time (`migrations/0001_functions.lua` says how). They are left out here. A list of which nothing is left so never
/// was ours: the halves always stand beside whole entries.
pub fn entries(list: &[Vec<u8>]) -> CodecResult<Vec<Entry<'_>>> {
    let (mut found, mut last_id): (Vec<Entry<'_>>, Option<&[u8]>) = (Vec::with_capacity(list.len() / 2), None);
    for element in list {
        if !is_body(element) {
            std::str::from_utf8(element).map_err(|error| format!("an event id: {error}"))?;
            last_id = Some(element);
            continue;
        }
        let id = last_id.take().ok_or("an entry without its id")?;
        let (ts_ms, body) = split_time(element)?;
        found.push((ts_ms, std::str::from_utf8(id).map_err(|error| error.to_string())?, body));
    }
    if found.is_empty() && !list.is_empty() {
        return Err(format!("{} elements and no entry among them", list.len()));
    }
    if !found.is_sorted_by(sorts_above) {
        found.sort_by(|one, other| (other.0, other.1).cmp(&(one.0, one.1)));
        found.dedup_by(|one, other| (one.0, one.1) == (other.0, other.1));
    }
    Ok(found)
}

fn sorts_above(newer: &Entry<'_>, older: &Entry<'_>) -> bool {
    (newer.0, newer.1) > (older.0, older.1)
}

/// Whether a list's element is `ts | body` and no event id.
fn is_body(element: &[u8]) -> bool {
    element.first().is_some_and(|first| (0x80..=0xBF).contains(first))
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
            assert!(entries(&list[1..]).is_err());
        }
        assert!(entries(&[b"id".to_vec(), vec![0x80; 5]]).is_err() && entries(&[vec![0xFF], vec![0x80; 6]]).is_err());
        assert!(entries(&[]).unwrap().is_empty());
        let stored = [time_bytes(5).as_slice(), &[2], b"idvalue"].concat();
        assert_eq!(attribute(&stored).unwrap(), (5, b"value".as_slice()));
        for cut in 0..9 {
            assert!(attribute(&stored[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn audit_02_a_list_of_garbage_is_unreadable_not_empty() {
        let text = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        for garbage in [text(&["their"]), text(&["their", "own", "list"]), vec![vec![0xFE; 9], vec![0x80; 6]]] {
            assert!(entries(&garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn what_came_back_by_halves_is_left_out() {
        let entry = |ts_ms: i64, id: &str| [id.as_bytes().to_vec(), time_bytes(ts_ms).to_vec()];
        let (newest, middle, oldest) = (entry(3, "c"), entry(2, "b"), entry(1, "a"));
        let wanted = [(3, "c", b"".as_slice()), (2, "b", b""), (1, "a", b"")];
        let [only_id, _] = middle.clone();
        let lists = [
            [newest.as_slice(), &middle, &oldest].concat(),
            [middle.as_slice(), &newest, &middle, &oldest].concat(),
            [newest.as_slice(), &middle, &oldest, &middle].concat(),
            [[only_id.clone()].as_slice(), &newest, &middle, &oldest].concat(),
            [newest.as_slice(), std::slice::from_ref(&only_id), &middle, &oldest].concat(),
            [newest.as_slice(), &middle, &oldest, &[only_id]].concat(),
        ];
        for list in lists {
            assert_eq!(entries(&list).unwrap(), wanted, "{list:?}");
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
