//! Runs exported decoder graphs step by step with plain `Session::run`, whatever the flavour.
//!
//! In: a graph file and the reference of a fixture. Out: logits. Called by the tests beside it.

use std::path::Path;

use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};
use safetensors::SafeTensors;

use super::{fixture, floats, integers, largest_difference, try_open};

/// Masks a slot.
pub const MASKED: f32 = -1e9;

/// What Hugging Face computed: prompts of several lengths, and what it chose after each.
pub struct Reference {
    tokens: Vec<Vec<i64>>,
    /// By row and position.
    logits: Vec<Vec<Vec<f32>>>,
}

impl Reference {
    pub fn of(name: &str) -> Self {
        let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let (lengths, ids) = (integers(&tensors, "lengths"), integers(&tensors, "input_ids"));
        let (prefill, decode_ids) = (floats(&tensors, "prefill_logits"), integers(&tensors, "decode_ids"));
        let decode = floats(&tensors, "decode_logits");
        let rows = lengths.len();
        let width = ids.len() / rows;
        let vocabulary = prefill.len() / ids.len();
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        for (row, &length) in lengths.iter().enumerate() {
            let length = length as usize;
            let chosen = decode_ids.iter().skip(row).step_by(rows);
            tokens.push(ids[row * width..][..length].iter().chain(chosen).copied().collect());
            let by_position = prefill[row * width * vocabulary..].chunks(vocabulary).take(length);
            let by_step = decode.chunks(vocabulary).skip(row).step_by(rows);
            logits.push(by_position.chain(by_step).map(<[f32]>::to_vec).collect());
        }
        Self { tokens, logits }
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Prompt and answer.
    pub fn tokens(&self, row: usize) -> &[i64] {
        &self.tokens[row]
    }

    pub fn logits(&self, row: usize, position: usize) -> &[f32] {
        &self.logits[row][position]
    }

    /// Largest logit of all, to judge errors by.
    pub fn scale(&self) -> f32 {
        self.logits.iter().flatten().flatten().fold(0.0, |most: f32, value| most.max(value.abs()))
    }
}

/// A piece of a row: tokens `from..to` of its sequence.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub from: usize,
    pub to: usize,
}

/// A session and its caches, copied in and out at every step.
pub struct Runner<T> {
    session: Session,
    caches: Vec<(String, Vec<T>)>,
    shape: [usize; 4],
}

impl<T: PrimitiveTensorElementType + Copy + std::fmt::Debug + 'static> Runner<T> {
    /// Opens a graph; the caches are full of garbage.
    pub fn open(graph: &Path, rows: usize, slots: usize, garbage: T) -> Self {
        Self::over(try_open(graph).unwrap(), rows, slots, garbage)
    }

    /// The same over an opened session.
    pub fn over(session: Session, rows: usize, slots: usize, garbage: T) -> Self {
        let pasts = session.inputs().iter().filter(|input| input.name().starts_with("past_key_values."));
        let shapes: Vec<_> =
            pasts.map(|past| (past.name().to_owned(), past.dtype().tensor_shape().unwrap().to_vec())).collect();
        let shape = [rows, shapes[0].1[1] as usize, slots, shapes[0].1[3] as usize];
        let caches = shapes.into_iter().map(|(name, _)| (name, vec![garbage; shape.iter().product()])).collect();
        Self { session, caches, shape }
    }

    /// One call; the caches move on. Logits [N, V].
    pub fn step(&mut self, inputs: Vec<(&str, DynValue)>) -> Vec<f32> {
        let mut all: Vec<(String, SessionInputValue)> =
            inputs.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        for (name, values) in &self.caches {
            all.push((name.clone(), Tensor::from_array((self.shape, values.clone())).unwrap().into_dyn().into()));
        }
        let outputs = self.session.run(all).unwrap();
        for (name, values) in &mut self.caches {
            let present = name.replace("past_key_values", "present");
            let (shape, found) = outputs[present.as_str()].try_extract_tensor::<T>().unwrap();
            assert_eq!(shape.iter().map(|&length| length as usize).collect::<Vec<_>>(), self.shape);
            values.copy_from_slice(found);
        }
        outputs["logits"].try_extract_tensor::<f32>().unwrap().1.to_vec()
    }

    /// Feeds a piece of every row through a graph over a shared buffer; either all from 0, or one token of each. Logits
    /// of every token fed, row by row.
    pub fn shared(&mut self, reference: &Reference, pieces: &[Piece], bias: Option<fn(f32) -> T>) -> Vec<f32> {
        let packed = Packed::of(reference, pieces);
        let total = pieces.iter().map(|piece| piece.to).max().unwrap();
        let lengths: Vec<i32> = pieces.iter().map(|piece| piece.to as i32 - 1).collect();
        let rows = pieces.len();
        let mut inputs = vec![
            ("input_ids", tensor([rows, packed.width], packed.input_ids)),
            ("seqlens_k", tensor([rows], lengths)),
            ("total_sequence_length", tensor([], vec![total as i32])),
            ("logits_indices", tensor([packed.wanted.len()], packed.wanted)),
        ];
        if let Some(number) = bias {
            // One bias for all rows: causal from 0, or everything up to the longest row; the kernel cuts each at its end.
            let seen = |token: usize, slot: usize| packed.width == 1 || slot <= token;
            let bias: Vec<T> = (0..packed.width)
                .flat_map(|token| (0..total).map(move |slot| if seen(token, slot) { 0.0 } else { MASKED }))
                .map(number)
                .collect();
            inputs.push(("position_ids", tensor([rows, packed.width], packed.positions)));
            inputs.push(("attention_bias", tensor([1, 1, packed.width, total], bias)));
        }
        self.step(inputs)
    }

    /// Feeds a piece of every row, of any length at any position, through a graph of standard operators.
    pub fn standard(&mut self, reference: &Reference, pieces: &[Piece]) -> Vec<f32> {
        let packed = Packed::of(reference, pieces);
        let (rows, slots) = (pieces.len(), self.shape[2]);
        let mut bias = Vec::with_capacity(rows * packed.width * slots);
        for piece in pieces {
            for token in piece.from..piece.from + packed.width {
                let last = token.min(piece.to.max(1) - 1);
                bias.extend((0..slots).map(|slot| if slot <= last { 0.0 } else { MASKED }));
            }
        }
        let from: Vec<i64> = pieces.iter().map(|piece| piece.from as i64).collect();
        let to: Vec<i64> = pieces.iter().map(|piece| piece.to as i64).collect();
        self.step(vec![
            ("input_ids", tensor([rows, packed.width], packed.input_ids)),
            ("position_ids", tensor([rows, packed.width], packed.positions)),
            ("write_indices", tensor([rows], from)),
            ("attention_bias", tensor([rows, 1, packed.width, slots], bias)),
            ("nonpad_kv_seqlen", tensor([rows], to)),
            ("logits_indices", tensor([packed.wanted.len()], packed.wanted)),
        ])
    }
}

/// Pieces side by side, right-padded.
struct Packed {
    width: usize,
    input_ids: Vec<i64>,
    positions: Vec<i64>,
    wanted: Vec<i64>,
}

impl Packed {
    fn of(reference: &Reference, pieces: &[Piece]) -> Self {
        let width = pieces.iter().map(|piece| piece.to - piece.from).max().unwrap();
        let mut packed =
            Self { width, input_ids: vec![0; pieces.len() * width], positions: Vec::new(), wanted: Vec::new() };
        for (row, piece) in pieces.iter().enumerate() {
            let tokens = &reference.tokens(row)[piece.from..piece.to];
            packed.input_ids[row * width..][..tokens.len()].copy_from_slice(tokens);
            packed.positions.extend((piece.from..piece.from + width).map(|position| position as i64));
            packed.wanted.extend((0..tokens.len()).map(|token| (row * width + token) as i64));
        }
        packed
    }
}

/// A tensor of any shape.
pub fn tensor<T, const N: usize>(shape: [usize; N], values: Vec<T>) -> DynValue
where
    T: PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
{
    Tensor::from_array((shape, values)).unwrap().into_dyn()
}

/// Largest error of the logits of pieces, row by row.
pub fn error_of(found: &[f32], reference: &Reference, pieces: &[Piece]) -> f32 {
    let wanted: Vec<f32> = pieces
        .iter()
        .enumerate()
        .flat_map(|(row, piece)| (piece.from..piece.to).flat_map(move |position| reference.logits(row, position)))
        .copied()
        .collect();
    largest_difference(found, &wanted)
}

/// Every row's prompt from 0, then its answer token by token.
pub fn prompt_then_answer(reference: &Reference) -> Vec<Vec<Piece>> {
    const ANSWER: usize = 8;
    let prompts: Vec<usize> = (0..reference.rows()).map(|row| reference.tokens(row).len() - ANSWER).collect();
    let first = prompts.iter().map(|&to| Piece { from: 0, to }).collect();
    let steps =
        (0..ANSWER).map(|step| prompts.iter().map(|&end| Piece { from: end + step, to: end + step + 1 }).collect());
    std::iter::once(first).chain(steps).collect()
}
