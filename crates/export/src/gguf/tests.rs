//! The container and the numbers: against the `gguf` package (scripts/fixtures/gguf_models.py), and against damage.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Cursor;

use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use testkit::fixture;
use testkit::tensors::floats;

use super::blocks::{KeptKind, TensorType};
use super::file::Value;
use super::*;

#[test]
fn blocks_of_every_kind_have_the_values_of_the_reference() {
    let bytes = std::fs::read(fixture("gguf").join("blocks.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let mut kinds = 0;
    for kind in (0..40).filter_map(TensorType::of) {
        let mut found = Vec::new();
        kind.dequantise(reference.tensor(&format!("{}.bytes", kind.name())).unwrap().data(), &mut found);
        let wanted = floats(&reference, &format!("{}.values", kind.name()));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&wanted), "{}", kind.name());
        kinds += 1;
    }
    assert_eq!(kinds, 8);
}

#[test]
fn blocks_that_are_kept_stand_for_the_same_values() {
    let bytes = std::fs::read(fixture("gguf").join("blocks.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let mut kinds = 0;
    for kind in (0..40).filter_map(TensorType::of) {
        let Some(KeptKind::Exact { number_bytes, parts, has_minimums }) = kind.kept() else { continue };
        let [numbers, scales, minimums] =
            kind.split(reference.tensor(&format!("{}.bytes", kind.name())).unwrap().data());
        let floats_of = |bytes: &[u8]| -> Vec<f32> {
            match parts {
                Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
                _ => bytes.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
            }
        };
        let (scales, minimums) = (floats_of(&scales), floats_of(&minimums));
        assert_eq!((minimums.len() == scales.len(), numbers.len()), (has_minimums, scales.len() * number_bytes));
        let numbers: Vec<f32> = match number_bytes {
            16 => numbers.iter().flat_map(|byte| [f32::from(byte & 15), f32::from(byte >> 4)]).collect(),
            _ => numbers.iter().map(|&byte| f32::from(byte)).collect(),
        };
        let zero = match (has_minimums, number_bytes) {
            (true, _) => 0.0,
            (false, 16) => 8.0,
            (false, _) => 128.0,
        };
        let found: Vec<f32> = numbers
            .iter()
            .enumerate()
            .map(|(place, number)| (number - zero) * scales[place / 32] + minimums.get(place / 32).unwrap_or(&0.0))
            .collect();
        assert_eq!(found, floats(&reference, &format!("{}.values", kind.name())), "{}", kind.name());
        kinds += 1;
    }
    assert_eq!(kinds, 4);
}

/// A file written by hand.
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(tensors: u64, metadata: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(metadata.to_le_bytes());
        Self(bytes)
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn tensor(self, name: &str, lengths: &[u64], kind: u32, offset: u64) -> Self {
        let axes = self.text(name).u32(lengths.len() as u32);
        lengths.iter().fold(axes, |bytes, &length| bytes.u64(length)).u32(kind).u64(offset)
    }

    fn opened(self) -> Result<Gguf<Cursor<Vec<u8>>>, String> {
        Gguf::open(Cursor::new(self.0), Path::new("some.gguf")).map_err(|error| error.to_string())
    }
}

#[test]
fn values_of_every_type_are_read() {
    let bytes = Bytes::header(0, 4).text("size").u32(4).u32(7).text("eps").u32(6).u32(1e-5_f32.to_bits());
    let bytes = bytes.text("words").u32(9).u32(8).u64(2).text("a").text("").text("ids").u32(9).u32(5).u64(1).u32(9);
    let metadata = bytes.opened().map(|file| file.metadata).unwrap();
    assert_eq!(metadata["size"], Value::Integer(7));
    assert_eq!(metadata["eps"], Value::Float(1e-5));
    assert_eq!(metadata["words"], Value::Texts(vec!["a".to_owned(), String::new()]));
    assert_eq!(metadata["ids"], Value::Integers(vec![9]));
}

#[test]
fn lies_are_named_by_file_and_field() {
    let one = |tensor: Bytes| tensor.opened().err();
    let tensor = |lengths: &[u64], kind, offset| one(Bytes::header(1, 0).tensor("w", lengths, kind, offset));
    let huge = u64::MAX;
    for (found, part) in [
        (one(Bytes(b"GGML".to_vec())), "magic: is"),
        (one(Bytes(b"GG".to_vec())), "magic: would take 4 bytes, 2 are left"),
        (one(Bytes(b"GGUF".to_vec()).u32(1)), "version: is 1"),
        (one(Bytes::header(0, huge)), "key 0 of 18446744073709551615: would take 8 bytes"),
        (one(Bytes::header(huge, 0)), "name of tensor 0 of"),
        (one(Bytes::header(0, 1).u64(huge)), "key 0 of 1: has 18446744073709551615 bytes"),
        (one(Bytes::header(0, 1).text("k").u32(8).u64(1 << 25)), "k: would take 33554432 bytes, 0 are left"),
        (one(Bytes::header(0, 1).text("k").u32(8).u64(huge)), "k: has 18446744073709551615 bytes"),
        (one(Bytes::header(0, 1).text("k").u32(99)), "k: has a value of type 99"),
        (one(Bytes::header(0, 1).text("k").u32(9).u32(4).u64(huge)), "k: would take 4 bytes, 0 are left"),
        (one(Bytes::header(0, 1).text("k").u32(9).u32(9).u64(1)), "k: is a list of type 9"),
        (one(Bytes::header(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1)), "k: stands there twice"),
        (one(Bytes::header(0, 1).text("general.alignment").u32(4).u32(0)), "general.alignment: is not a power of two"),
        (tensor(&[], 0, 0), "tensor w: has 0 axes"),
        (tensor(&[1; 5], 0, 0), "tensor w: has 5 axes"),
        (tensor(&[32, 2], 13, 0), "tensor w: has numbers of type 13"),
        (tensor(&[32, 0], 0, 0), "tensor w: has the shape [32, 0]"),
        (tensor(&[1 << 32, 1 << 32], 0, 0), "tensor w: has the shape"),
        (tensor(&[33], 2, 0), "tensor w: has rows of 33, not whole blocks of 32 (Q4_0)"),
        (tensor(&[32], 0, 16), "tensor w: begins at 16"),
        (tensor(&[32], 0, 0), "tensor w: ends behind the end of the file"),
        (tensor(&[32], 0, huge - 31), "tensor w: ends behind the end of the file"),
    ] {
        let message = found.unwrap();
        assert!(message.starts_with("some.gguf: ") && message.contains(part), "{message}, not {part}");
    }
}

fn small_file() -> Vec<u8> {
    std::fs::read(fixture("gguf/llama").join("model.gguf")).unwrap()
}

/// Everything that is done with a file but writing.
fn read_whole(bytes: Vec<u8>) -> Result<(), GgufError> {
    let mut gguf = Gguf::open(Cursor::new(bytes), Path::new("some.gguf"))?;
    Model::of(&mut gguf)?;
    let places: Vec<_> = gguf.tensors.iter().map(|(name, place)| (name.clone(), place.shape.clone())).collect();
    for (name, shape) in places {
        gguf.read(&name, &shape)?;
    }
    Ok(())
}

#[test]
fn every_cut_is_an_error() {
    let whole = small_file();
    assert!(read_whole(whole.clone()).is_ok());
    for cut in (0..whole.len()).step_by(97).chain([whole.len() - 1]) {
        // What pads the last tensor may be missing.
        assert!(read_whole(whole[..cut].to_vec()).is_err() || whole.len() - cut < 32, "{cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read_whole([b"GGUF\x03\0\0\0".to_vec(), bytes.clone()].concat());
        prop_assert!(read_whole(bytes).is_err());
    }

    #[test]
    fn no_damage_panics(places in proptest::collection::vec((0_usize..14_000, any::<u8>()), 1..6)) {
        let mut bytes = small_file();
        for (place, byte) in places {
            bytes[place] = byte;
        }
        if let Err(error) = read_whole(bytes) {
            prop_assert!(error.to_string().starts_with("some.gguf: "), "{error}");
        }
    }
}
