//! A look over a stored group's message: which epoch made it, without taking it apart. Every read in protobuf passes the message on as it
//! is; all it must know is that a reader can decode it.
//!
//! What the look does not know at sight (an unknown field, anything malformed) it leaves to the decoder, which alone refuses a message:
//! where the look finds an epoch, the decoder finds the same. A property test and a fuzz target compare the two.

use super::Group;

/// What stands in a field.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `GroupMeta`, field 1 of every group.
    Meta,
    Number,
    Text,
    Float,
    /// Packed, as every writer of proto3 writes them.
    Numbers,
    Floats,
}

use Kind::{Float, Floats, Meta, Number, Numbers, Text};

/// By field number, from 1.
const META: [Kind; 12] = [Number, Text, Number, Number, Number, Number, Number, Number, Number, Number, Text, Number];
const INTRA: [Kind; 4] = [Meta, Numbers, Text, Number];
const CROSS: [Kind; 7] = [Meta, Text, Text, Numbers, Float, Float, Numbers];
const SCID: [Kind; 5] = [Meta, Numbers, Text, Numbers, Floats];
const TEXT: [Kind; 6] = [Meta, Text, Text, Text, Text, Number];

/// `GroupMeta.epoch`.
const EPOCH: usize = 1;
const FLOAT_BYTES: usize = 4;
/// Bytes of the longest number that is read here.
const LONGEST: usize = 9;

/// The epoch in a group's message, 0 where it names none; `None` = ask the decoder.
pub(super) fn epoch(group: Group, message: &[u8]) -> Option<u64> {
    let fields: &[Kind] = match group {
        Group::Intra => &INTRA,
        Group::Cross => &CROSS,
        Group::Scid => &SCID,
        Group::Text => &TEXT,
    };
    let (mut rest, mut epoch) = (message, 0);
    while !rest.is_empty() {
        let (_, kind, value) = field(fields, &mut rest)?;
        if kind == Meta {
            of_meta(value.bytes, &mut epoch)?;
        }
    }
    Some(epoch)
}

/// A second `GroupMeta` overrides the first field by field.
fn of_meta(mut rest: &[u8], epoch: &mut u64) -> Option<()> {
    while !rest.is_empty() {
        let (number, _, value) = field(&META, &mut rest)?;
        if number == EPOCH {
            *epoch = value.number;
        }
    }
    Some(())
}

/// One of the two, by its kind.
struct Value<'a> {
    number: u64,
    bytes: &'a [u8],
}

/// Takes one field of the kind that its number says.
fn field<'a>(fields: &[Kind], rest: &mut &'a [u8]) -> Option<(usize, Kind, Value<'a>)> {
    let key = varint(rest)?;
    let number = usize::try_from(key >> 3).ok()?;
    let kind = *fields.get(number.checked_sub(1)?)?;
    let wanted = match kind {
        Number => 0,
        Float => 5,
        Meta | Text | Numbers | Floats => 2,
    };
    if key & 7 != wanted {
        return None;
    }
    let mut value = Value { number: 0, bytes: &[] };
    match kind {
        Number => value.number = varint(rest)?,
        Float => *rest = rest.get(FLOAT_BYTES..)?,
        Meta | Text | Numbers | Floats => {
            let length = usize::try_from(varint(rest)?).ok()?;
            (value.bytes, *rest) = rest.split_at_checked(length)?;
        }
    }
    let is_sound = match kind {
        Text => value.bytes.is_ascii() || std::str::from_utf8(value.bytes).is_ok(),
        Floats => value.bytes.len().is_multiple_of(FLOAT_BYTES),
        Numbers => are_varints(value.bytes),
        Meta | Number | Float => true,
    };
    is_sound.then_some((number, kind, value))
}

/// Whether nothing else stands there: every number ends, within [`LONGEST`] bytes.
fn are_varints(bytes: &[u8]) -> bool {
    let mut unended = 0;
    for byte in bytes {
        unended = if byte & 0x80 == 0 { 0 } else { unended + 1 };
        if unended == LONGEST {
            return false;
        }
    }
    unended == 0
}

/// Nine bytes of seven bits; what has ten is rare, and the decoder's.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let (first, after) = rest.split_first()?;
    if *first < 0x80 {
        *rest = after;
        return Some((*first).into());
    }
    let (mut number, mut place) = (u64::from(first & 0x7f), 1);
    loop {
        let byte = *rest.get(place).filter(|_| place < LONGEST)?;
        number |= u64::from(byte & 0x7f) << (7 * place);
        place += 1;
        if byte < 0x80 {
            *rest = &rest[place..];
            return Some(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::{DecodedGroup, GroupBlob, Version};
    use crate::proto::{CrossGroup, GroupMeta, IntraGroup, ScidGroup, TextGroup};
    use proptest::prelude::*;
    use prost::Message;

    fn decoded(group: Group, bytes: &[u8]) -> Option<u64> {
        let bytes = bytes.to_vec().into();
        let blob = GroupBlob { group, bytes, tier: 1, version: Version::default(), expires_at_ms: 0 };
        DecodedGroup::decode(&blob).ok().map(|decoded| decoded.meta().epoch)
    }

    fn message() -> impl Strategy<Value = (Group, Vec<u8>, u64)> {
        let meta = (0u64..1 << 60, "\\PC{0,9}", 0i64..1 << 50, "[a-z]{0,5}").prop_map(|(epoch, space, at, reason)| {
            GroupMeta {
                epoch,
                space,
                generated_at_ms: at,
                seq: 3,
                tier: 1,
                flags: 5,
                fallback_reason: reason,
                ..Default::default()
            }
        });
        let texts = proptest::collection::vec("\\PC{0,6}", 0..4);
        (meta, texts, proptest::collection::vec(any::<u32>(), 0..9), any::<f32>(), 0..4usize).prop_map(
            |(meta, texts, numbers, float, kind)| {
                let epoch = meta.epoch;
                let meta = Some(meta);
                let bytes = match kind {
                    0 => IntraGroup { meta, sparse_ids: numbers, category_ids: texts, has_llm_feature: true }
                        .encode_to_vec(),
                    1 => CrossGroup {
                        meta,
                        item_ids: texts.clone(),
                        actions: texts,
                        ts_ms: numbers.iter().map(|number| i64::from(*number)).collect(),
                        similarity: float,
                        gap_to_second: float,
                        item_scids: numbers,
                    }
                    .encode_to_vec(),
                    2 => ScidGroup {
                        meta,
                        user: numbers.clone(),
                        next_item_ids: texts,
                        next_scids: numbers,
                        scores: vec![float; 3],
                    }
                    .encode_to_vec(),
                    _ => TextGroup { meta, reasoning: texts.concat(), neighbour_era: 7, ..Default::default() }
                        .encode_to_vec(),
                };
                (Group::ALL[kind], bytes, epoch)
            },
        )
    }

    proptest! {
        #[test]
        fn what_we_write_is_known_at_sight((group, bytes, epoch) in message()) {
            prop_assert_eq!(super::epoch(group, &bytes), Some(epoch));
        }

        #[test]
        fn the_decoder_finds_the_same((group, mut bytes, _) in message(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()) {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = with;
                if cut {
                    bytes.truncate(at);
                }
            }
            if let Some(epoch) = super::epoch(group, &bytes) {
                prop_assert_eq!(decoded(group, &bytes), Some(epoch));
            }
        }
    }

    #[test]
    fn what_is_not_known_at_sight_is_left_to_the_decoder() {
        let unknown = [0x98, 0x06, 0x01];
        assert_eq!((super::epoch(Group::Intra, &unknown), decoded(Group::Intra, &unknown)), (None, Some(0)));
        let twice = [0x0a, 2, 0x08, 5, 0x0a, 2, 0x40, 9];
        assert_eq!((super::epoch(Group::Intra, &twice), decoded(Group::Intra, &twice)), (Some(5), Some(5)));
    }
}
