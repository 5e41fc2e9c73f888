//! The way of a text through a decoder, layer by layer, in f32.
//!
//! In: the checkpoint, windows of tokens. Out: of each layer its weights, rounded to what their inputs are like. Called by `calibrate`.
//!
//! Matrices are [tokens, width], the windows one below the other. Every sum has one order, whatever the number of threads.

use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::rounding::Inputs;
use crate::ExportError;
use crate::checkpoint::{Checkpoint, Weight};
use crate::decoder::{EMBEDDING, Shape};
use crate::linear::Stack;
use crate::nbits::PackedWeight;
use crate::options::Numbers;
use crate::rope;

/// Rows that one thread multiplies at once.
const TILE: usize = 64;

/// A weight's name in the graph, and the weight.
type Named = (String, PackedWeight);

/// A text between two layers.
pub struct Text {
    shape: Shape,
    numbers: Numbers,
    /// Cosines and sines of each position, [positions, hd/2].
    turns: [Weight; 2],
    /// Tokens of each window.
    windows: Vec<usize>,
    states: Array2<f32>,
}

impl Text {
    /// The embedded tokens.
    pub fn read(source: &mut Checkpoint, windows: &[Vec<u32>], numbers: Numbers) -> Result<Self, ExportError> {
        let shape = Shape::of(&source.config)?;
        let longest = windows.iter().map(Vec::len).max().unwrap_or(0);
        if longest > source.config.max_position_embeddings {
            let message = format!("a window of {longest} tokens to calibrate on is longer than the model takes");
            return Err(ExportError::Option(message));
        }
        let [cosines, sines] = rope::tables(&source.config.rope()?, longest, shape.head).map(|(_, table)| table());
        let table = matrix(source.read(EMBEDDING, &[shape.vocabulary, shape.hidden])?);
        let tokens: Vec<usize> = windows.iter().flatten().map(|&token| token as usize).collect();
        if let Some(token) = tokens.iter().find(|token| **token >= shape.vocabulary) {
            return Err(ExportError::Option(format!("token {token} to calibrate on is not in the vocabulary")));
        }
        let states = table.select(Axis(0), &tokens);
        let windows = windows.iter().map(Vec::len).collect();
        Ok(Self { shape, numbers, turns: [cosines, sines], windows, states })
    }

    /// Layers of the decoder.
    pub fn layers(&self) -> usize {
        self.shape.layers
    }

    /// Rounds a layer's weights one after the other, each for what the rounded ones before it give, and moves the text behind it.
    pub fn pass(&mut self, source: &mut Checkpoint, layer: usize) -> Result<Vec<Named>, ExportError> {
        let prefix = format!("model.layers.{layer}");
        let (hidden, inner) = (self.shape.hidden, self.shape.inner);
        let (query, kv) = (self.shape.query_width(), self.shape.kv_width());
        let mut rounded = Vec::new();

        let normed = self.normed(source, &format!("{prefix}.input_layernorm.weight"))?;
        let attention = |part: &str| format!("{prefix}.self_attn.{part}_proj");
        let parts = [("q", query), ("k", kv), ("v", kv)];
        let stack = Stack::of(parts.map(|(part, rows)| (format!("{}.weight", attention(part)), rows)), hidden);
        let mut projected = self.round(source, (attention("qkv"), stack), &inputs(&normed), &normed, &mut rounded)?;
        if self.shape.qkv_bias {
            let mut bias = Vec::new();
            for (part, rows) in parts {
                bias.extend(source.read(&format!("{}.bias", attention(part)), &[rows])?.values);
            }
            add_to_rows(&mut projected, &bias);
        }
        if self.shape.head_norms {
            for (norm, from, to) in [("q_norm", 0, query), ("k_norm", query, query + kv)] {
                let gamma = source.read(&format!("{prefix}.self_attn.{norm}.weight"), &[self.shape.head])?.values;
                self.norm_heads(projected.slice_mut(s![.., from..to]), &gamma);
            }
        }
        let heads = self.attend(&projected);
        let attended =
            self.linear(source, &attention("o"), [hidden, query], self.shape.output_bias, &heads, &mut rounded)?;
        self.states += &attended;

        let normed = self.normed(source, &format!("{prefix}.post_attention_layernorm.weight"))?;
        let mlp = |part: &str| format!("{prefix}.mlp.{part}_proj");
        let biased = self.shape.inner_bias;
        let seen = inputs(&normed);
        let mut branch = |name: String| -> Result<Array2<f32>, ExportError> {
            let stack = Stack::of_one(&format!("{name}.weight"), [inner, hidden]);
            let mut output = self.round(source, (name.clone(), stack), &seen, &normed, &mut rounded)?;
            if biased {
                add_to_rows(&mut output, &source.read(&format!("{name}.bias"), &[inner])?.values);
            }
            Ok(output)
        };
        let (mut product, up) = (branch(mlp("gate"))?, branch(mlp("up"))?);
        product.zip_mut_with(&up, |gate, up| *gate *= up / (1.0 + (-*gate).exp()));
        let down = self.linear(source, &mlp("down"), [hidden, inner], biased, &product, &mut rounded)?;
        self.states += &down;
        Ok(rounded)
    }

    /// Rounds `{name}.weight` for its inputs; what it gives for them.
    fn linear(
        &self,
        source: &mut Checkpoint,
        name: &str,
        shape: [usize; 2],
        biased: bool,
        input: &Array2<f32>,
        rounded: &mut Vec<Named>,
    ) -> Result<Array2<f32>, ExportError> {
        let stack = Stack::of_one(&format!("{name}.weight"), shape);
        let mut output = self.round(source, (name.to_owned(), stack), &inputs(input), input, rounded)?;
        if biased {
            add_to_rows(&mut output, &source.read(&format!("{name}.bias"), &shape[..1])?.values);
        }
        Ok(output)
    }

    fn round(
        &self,
        source: &mut Checkpoint,
        (name, stack): (String, Stack),
        seen: &Inputs,
        input: &Array2<f32>,
        rounded: &mut Vec<Named>,
    ) -> Result<Array2<f32>, ExportError> {
        let weight = stack.read(source)?;
        let name = format!("{name}.weight");
        if let Some(value) = weight.values.iter().find(|value| !value.is_finite()) {
            let message = format!("holds {value}, which cannot be packed: choose another precision");
            return Err(ExportError::Weight { path: source.folder.clone(), name, message });
        }
        let Some(blocks) = self.numbers.blocks_of(&name, self.shape.layers) else {
            return Ok(multiply(input, &matrix(weight)));
        };
        let packed = seen.round(&weight, blocks);
        let output = multiply(input, &matrix(packed.dequantised(blocks, input.ncols())));
        rounded.push((name, packed));
        Ok(output)
    }

    /// The states' RMS norm.
    fn normed(&self, source: &mut Checkpoint, name: &str) -> Result<Array2<f32>, ExportError> {
        let gamma = source.read(name, &[self.shape.hidden])?.values;
        let mut normed = self.states.clone();
        self.norm_heads(normed.view_mut(), &gamma);
        Ok(normed)
    }

    /// RMS norm of every stretch as long as `gamma`.
    fn norm_heads(&self, mut rows: ArrayViewMut2<f32>, gamma: &[f32]) {
        let width = gamma.len();
        rows.axis_iter_mut(Axis(0)).into_par_iter().for_each(|mut row| {
            for mut part in row.exact_chunks_mut(width) {
                let mean = part.iter().map(|value| value * value).sum::<f32>() / width as f32;
                let factor = 1.0 / (mean + self.shape.epsilon).sqrt();
                part.iter_mut().zip(gamma).for_each(|(value, gamma)| *value *= factor * gamma);
            }
        });
    }

    /// Causal attention within each window: [tokens, (H+2K)·hd] → [tokens, H·hd].
    fn attend(&self, projected: &Array2<f32>) -> Array2<f32> {
        let mut start = 0;
        let starts = self.windows.iter().map(|&tokens| {
            start += tokens;
            start - tokens..start
        });
        let ranges: Vec<_> = starts.collect();
        let windows: Vec<Array2<f32>> =
            ranges.into_par_iter().map(|range| self.attend_window(projected.slice(s![range, ..]))).collect();
        let mut heads = Array2::zeros((projected.nrows(), self.shape.query_width()));
        let mut filled = 0;
        for window in windows {
            heads.slice_mut(s![filled..filled + window.nrows(), ..]).assign(&window);
            filled += window.nrows();
        }
        heads
    }

    fn attend_window(&self, projected: ArrayView2<f32>) -> Array2<f32> {
        let (head, query, kv) = (self.shape.head, self.shape.query_width(), self.shape.kv_width());
        let mut output = Array2::zeros((projected.nrows(), query));
        let scale = 1.0 / (head as f32).sqrt();
        for kv_head in 0..self.shape.kv_heads {
            let keys = self.turned(projected.slice(s![.., query + kv_head * head..query + (kv_head + 1) * head]));
            let values = projected.slice(s![.., query + kv + kv_head * head..query + kv + (kv_head + 1) * head]);
            let group = self.shape.heads / self.shape.kv_heads;
            for place in kv_head * group..(kv_head + 1) * group {
                let queries = self.turned(projected.slice(s![.., place * head..(place + 1) * head]));
                let mut scores = queries.dot(&keys.t());
                for (token, mut row) in scores.axis_iter_mut(Axis(0)).enumerate() {
                    softmax(row.view_mut(), token + 1, scale);
                }
                output.slice_mut(s![.., place * head..(place + 1) * head]).assign(&scores.dot(&values));
            }
        }
        output
    }

    /// Rotary embedding of one head from position 0; pairs are (i, i + hd/2).
    fn turned(&self, head: ArrayView2<f32>) -> Array2<f32> {
        let half = self.shape.head / 2;
        let [cosines, sines] = &self.turns;
        Array2::from_shape_fn(head.dim(), |(token, column)| {
            let pair = column % half;
            let (cosine, sine) = (cosines.values[token * half + pair], sines.values[token * half + pair]);
            match column < half {
                true => head[[token, column]] * cosine - head[[token, column + half]] * sine,
                false => head[[token, column]] * cosine + head[[token, pair]] * sine,
            }
        })
    }
}

/// Softmax of the first `seen` scores; the others get none.
fn softmax(scores: ArrayViewMut1<f32>, seen: usize, scale: f32) {
    let (mut known, mut hidden) = scores.split_at(Axis(0), seen);
    let most = known.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    known.mapv_inplace(|score| ((score - most) * scale).exp());
    let sum = known.sum();
    known.mapv_inplace(|score| score / sum);
    hidden.fill(0.0);
}

fn matrix(weight: Weight) -> Array2<f32> {
    let (rows, columns) = (weight.shape[0], weight.shape[1]);
    Array2::from_shape_fn((rows, columns), |(row, column)| weight.values[row * columns + column])
}

fn add_to_rows(matrix: &mut Array2<f32>, bias: &[f32]) {
    for mut row in matrix.axis_iter_mut(Axis(0)) {
        row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
}

/// input [tokens, in] × weight [out, in] → [tokens, out].
fn multiply(input: &Array2<f32>, weight: &Array2<f32>) -> Array2<f32> {
    let mut output = Array2::zeros((input.nrows(), weight.nrows()));
    output
        .axis_chunks_iter_mut(Axis(0), TILE)
        .into_par_iter()
        .zip(input.axis_chunks_iter(Axis(0), TILE))
        .for_each(|(mut output, input)| output.assign(&input.dot(&weight.t())));
    output
}

/// Sums of products of inputs over all tokens, and what follows of them.
fn inputs(input: &Array2<f32>) -> Inputs {
    /// Tokens added up in f32.
    const RUN: usize = 512;
    let width = input.ncols();
    let mut sums = Array2::<f64>::zeros((width, width));
    sums.axis_chunks_iter_mut(Axis(0), TILE).into_par_iter().enumerate().for_each(|(tile, mut sums)| {
        let columns = tile * TILE..tile * TILE + sums.nrows();
        for run in input.axis_chunks_iter(Axis(0), RUN) {
            let product = run.slice(s![.., columns.clone()]).t().dot(&run);
            sums.zip_mut_with(&product, |sum, value| *sum += f64::from(*value));
        }
    });
    Inputs::of(sums.into_raw_vec_and_offset().0, width)
}
