//! RESP2 as it comes over the wire: where an answer ends, and the fields of one to HMGET.
//!
//! In: bytes. Out: lengths and slices of them; nothing is copied. The general way (`redis`) reads the same answers into its `Value`: a
//! property test compares the two.

use super::{ReadError, array, bulk};
use crate::store::codec::CodecResult;
use bytes::Bytes;
use redis::Value;

/// Digits of the largest length that is read: no server sends longer ones, and none of them overflows.
const DIGITS: usize = 15;

/// The line a value begins with.
enum Head {
    /// All of a value: a text, an error, a number.
    Line,
    /// So many bytes follow; `None` = there is no value.
    Bulk(Option<usize>),
    /// So many values follow.
    Array(usize),
}

/// The head at the front of some bytes and its length; `None` while it has not come whole.
fn head(bytes: &[u8]) -> Result<Option<(Head, usize)>, ReadError> {
    let Some((kind, rest)) = bytes.split_first() else { return Ok(None) };
    match kind {
        b'$' | b'*' => {}
        b'+' | b'-' | b':' => {
            let end = rest.windows(2).position(|two| two == b"\r\n");
            return Ok(end.map(|end| (Head::Line, end + 3)));
        }
        _ => return Err(ReadError::Malformed("a type that we did not ask for")),
    }
    let Some((number, length)) = length(rest)? else { return Ok(None) };
    let head = if *kind == b'$' { Head::Bulk(number) } else { Head::Array(number.unwrap_or(0)) };
    Ok(Some((head, length + 1)))
}

/// A line that is a length, −1 being none, and how long the line is; `None` while it has not come whole.
fn length(line: &[u8]) -> Result<Option<(Option<usize>, usize)>, ReadError> {
    const BAD: ReadError = ReadError::Malformed("a length");
    if let Some(rest) = line.strip_prefix(b"-") {
        return match rest.first_chunk() {
            Some(b"1\r\n") => Ok(Some((None, 4))),
            None if b"1\r\n".starts_with(rest) => Ok(None),
            _ => Err(BAD),
        };
    }
    let (mut number, mut place) = (0, 0);
    while let Some(byte) = line.get(place) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return match (byte, line.get(place + 1)) {
                (b'\r', Some(b'\n')) if place > 0 => Ok(Some((Some(number), place + 2))),
                (b'\r', None) if place > 0 => Ok(None),
                _ => Err(BAD),
            };
        }
        if place == DIGITS {
            return Err(BAD);
        }
        number = 10 * number + usize::from(digit);
        place += 1;
    }
    Ok(None)
}

/// Answers that came one behind the other to who asked for them.
#[derive(Debug)]
pub(in super::super) struct Replies {
    bytes: Bytes,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Replies {
    pub(super) fn new(bytes: Bytes, ends: Vec<usize>) -> Replies {
        Replies { bytes, ends }
    }

    /// What `redis` has read, as it came over the wire.
    pub fn of_value(value: &Value) -> Replies {
        let mut out = Vec::new();
        write(&mut out, value);
        Replies { ends: vec![out.len()], bytes: out.into() }
    }

    /// In the order of the questions.
    pub fn iter(&self) -> impl Iterator<Item = Reply<'_>> {
        let mut begin = 0;
        self.ends.iter().map(move |end| {
            let bytes = self.bytes.get(std::mem::replace(&mut begin, *end)..*end).unwrap_or_default();
            Reply { all: &self.bytes, bytes }
        })
    }
}

/// Finds the ends of answers in bytes that come bit by bit, without looking at any of them twice.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// Where the next value begins; perhaps behind what has come.
    at: usize,
    /// Values still to come of an answer that has begun.
    left: usize,
}

impl Framer {
    /// Where the answer under way ends, counted from the front of `bytes`; `None` while it has not come whole. `bytes` must begin where
    /// they began before; after an end the next answer is the one under way.
    pub fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, ReadError> {
        let (mut at, mut left) = (self.at, self.left.max(1));
        while left > 0 {
            let Some((head, length)) = head(bytes.get(at..).unwrap_or_default())? else { break };
            let after = at.saturating_add(length);
            let end = match head {
                Head::Line | Head::Array(_) | Head::Bulk(None) => after,
                Head::Bulk(Some(length)) => after.saturating_add(length).saturating_add(2),
            };
            // Its length alone is known; it is looked at again when more has come.
            if end > bytes.len() {
                break;
            }
            if let Head::Array(values) = head {
                left = left.checked_add(values).ok_or(ReadError::Malformed("a length"))?;
            }
            (at, left) = (end, left - 1);
        }
        (self.at, self.left) = (at, left);
        Ok((left == 0).then_some(at))
    }

    /// The bytes up to the last end are gone.
    pub fn restart(&mut self) {
        self.at = 0;
    }
}

/// One answer to HMGET.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Reply<'a> {
    /// What it is a part of.
    all: &'a Bytes,
    bytes: &'a [u8],
}

impl<'a> Reply<'a> {
    /// As it came.
    #[cfg(test)]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is the server's refusal.
    pub fn is_error(&self) -> bool {
        self.bytes.first() == Some(&b'-')
    }

    /// The fields, in the order in which they were asked for.
    pub fn fields(&self) -> CodecResult<Fields<'a>> {
        match head(self.bytes) {
            Ok(Some((Head::Array(_), length))) => Ok(Fields { reply: *self, at: length }),
            _ => Err(format!("{} is no list of fields", self.bytes.escape_ascii())),
        }
    }
}

/// Goes through the fields of an answer.
pub(in super::super) struct Fields<'a> {
    reply: Reply<'a>,
    at: usize,
}

impl<'a> Fields<'a> {
    /// The next field's bytes; `None` where the hash has no such field, or all were taken.
    pub fn take(&mut self) -> CodecResult<Option<&'a [u8]>> {
        let rest = self.reply.bytes.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let Ok(Some((Head::Bulk(length), begin))) = head(rest) else {
            return Err(format!("{} is no field", rest.escape_ascii()));
        };
        let Some(length) = length else {
            self.at += begin;
            return Ok(None);
        };
        self.at += begin + length + 2;
        rest.get(begin..begin + length).map(Some).ok_or_else(|| "a field is cut".to_string())
    }

    /// A part of a field as bytes that live on.
    pub fn keep(&self, part: &'a [u8]) -> Bytes {
        self.reply.all.slice_ref(part)
    }
}

fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Array(values) => {
            array(out, values.len());
            values.iter().for_each(|value| write(out, value));
        }
        Value::BulkString(bytes) => bulk(out, bytes),
        Value::Nil => out.extend_from_slice(b"$-1\r\n"),
        // Nothing else is an answer to HMGET; what reads it says so.
        other => out.extend_from_slice(format!("+{}\r\n", format!("{other:?}").escape_debug()).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn wire_of(value: &Value) -> Bytes {
        Replies::of_value(value).bytes
    }

    fn of(bytes: &'static str) -> Replies {
        Replies::new(Bytes::from_static(bytes.as_bytes()), vec![bytes.len()])
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(Value::Nil), vec(any::<u8>(), 0..40).prop_map(Value::BulkString)];
        leaf.prop_recursive(3, 20, 5, |inner| vec(inner, 0..5).prop_map(Value::Array))
    }

    proptest! {
        #[test]
        fn an_answer_ends_where_redis_says_however_it_comes(values in vec(value(), 1..4), cuts in vec(any::<Index>(), 0..6)) {
            let wire: Vec<Bytes> = values.iter().map(wire_of).collect();
            for (value, wire) in values.iter().zip(&wire) {
                prop_assert_eq!(&redis::parse_redis_value(wire).unwrap(), value);
            }
            let all = wire.concat();
            let mut pieces: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len())).chain([all.len()]).collect();
            pieces.sort_unstable();
            let (mut framer, mut ends) = (Framer::default(), Vec::new());
            for piece in pieces {
                while ends.last() != Some(&piece) && let Some(end) = framer.end(&all[..piece]).unwrap() {
                    ends.push(end);
                }
            }
            let wanted: Vec<usize> = wire.iter().scan(0, |at, one| { *at += one.len(); Some(*at) }).collect();
            let replies = Replies::new(all.clone().into(), ends.clone());
            prop_assert_eq!(ends, wanted);
            let parts: Vec<&[u8]> = replies.iter().map(|reply| reply.bytes).collect();
            prop_assert_eq!(parts, wire);
        }

        #[test]
        fn fields_are_those_of_redis(fields in vec(proptest::option::of(vec(any::<u8>(), 0..40)), 0..6)) {
            let values = fields.iter().cloned().map(|field| field.map_or(Value::Nil, Value::BulkString));
            let replies = Replies::of_value(&Value::Array(values.collect()));
            let reply = replies.iter().next().unwrap();
            prop_assert!(!reply.is_error());
            let mut read = reply.fields().unwrap();
            for field in &fields {
                prop_assert_eq!(read.take().unwrap(), field.as_deref());
            }
            prop_assert_eq!(read.take().unwrap(), None);
        }

        #[test]
        fn whatever_comes_is_an_answer_or_refused(
            bytes in vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'), 48..58u8, any::<u8>()], 0..60),
        ) {
            let (mut framer, mut ends) = (Framer::default(), Vec::new());
            while ends.last() != Some(&bytes.len()) && let Ok(Some(end)) = framer.end(&bytes) {
                prop_assert!(end <= bytes.len() && ends.last().is_none_or(|last| end > *last));
                ends.push(end);
            }
            let length = bytes.len();
            for replies in [Replies::new(bytes.clone().into(), ends), Replies::new(bytes.into(), vec![length])] {
                for reply in replies.iter() {
                    if let Ok(mut fields) = reply.fields() {
                        while let Ok(Some(_)) = fields.take() {}
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_answer() {
        let bad = ["$x\r\n", "$\r\n", "*-2\r\n", "$-1\rx", "?\r\n", "$9999999999999999", "$1\ra\r\n", "%1\r\n"];
        for bytes in bad {
            assert!(Framer::default().end(bytes.as_bytes()).is_err(), "{bytes:?}");
        }
        for bytes in ["", "$", "$-", "$-1", "$-1\r", "$1", "$1\r", "$1\r\n", "$1\r\na\r", "*1\r\n", "+OK\r", "*1\r\n$"]
        {
            assert_eq!(Framer::default().end(bytes.as_bytes()).unwrap(), None, "{bytes:?}");
        }
        let refusal = of("-WRONGTYPE no hash\r\n");
        assert!(refusal.iter().all(|reply| reply.is_error() && reply.fields().is_err()));
        for bytes in ["*1\r\n*0\r\n", "*1\r\n+OK\r\n", "*1\r\n$5\r\nab"] {
            assert!(of(bytes).iter().next().unwrap().fields().unwrap().take().is_err(), "{bytes:?}");
        }
    }
}
