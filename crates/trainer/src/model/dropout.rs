//! Dropout: values set to 0 at random, the others raised so that the mean stays (arXiv 1207.0580). Called by `decoder`.
//!
//! Which values it hits is a function of seed, batch and place alone, so a run can be repeated on any number of threads, and
//! backward draws the same mask again instead of keeping it.

use candle_core::{Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::maths::ROWS_PER_TASK;
use super::tape::{record, tensor, with_values};

/// Dropout of one forward pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Share of the values that are set to 0.
    pub rate: f64,
    /// Share of the attention's probabilities that are set to 0.
    pub attention: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the batch: each has masks of its own.
    pub batch: u64,
}

impl Dropout {
    /// x `[tokens, d]` with some values set to 0; each `place` in the model has a mask of its own.
    pub(super) fn apply(self, x: &Tensor, place: u64) -> Result<Tensor> {
        let shape = x.dims2()?;
        let values = with_values(&x.contiguous()?, |rows| self.masked(rows, shape.1, place))?;
        record("dropout", &[x], values, shape, move |gradient| {
            let masked = with_values(&gradient.contiguous()?, |rows| self.masked(rows, shape.1, place))?;
            Ok([Some(tensor(masked, shape)?), None, None])
        })
    }

    /// What values `[tokens, d]` are multiplied by: 0, or what raises the others.
    pub(super) fn mask(self, (rows, width): (usize, usize), place: u64) -> Vec<f32> {
        self.masked(&vec![1.0; rows * width], width, place)
    }

    fn generator(self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.seed ^ self.batch.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Of the attention of a layer; `None` where nothing of it is dropped.
    pub(super) fn of_attention(self, layer: usize) -> Option<AttentionDropout> {
        (self.attention > 0.0).then_some(AttentionDropout { dropout: self, layer: layer as u64 })
    }

    fn masked(self, values: &[f32], width: usize, place: u64) -> Vec<f32> {
        let (dropped_below, raised) = (dropped_below(self.rate), raised(self.rate));
        let task = ROWS_PER_TASK * width;
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(task).zip(values.par_chunks(task)).enumerate().for_each(|(number, (out, values))| {
            // Any two of batch, place and task give another stream.
            let mut random = self.generator();
            random.set_stream((place << 32) | number as u64);
            for (out, value) in out.iter_mut().zip(values) {
                if random.random::<u32>() >= dropped_below {
                    *out = value * raised;
                }
            }
        });
        out
    }
}

/// Dropout of the probabilities of one layer's attention: what a query takes of some keys is set to 0, of the others raised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AttentionDropout {
    dropout: Dropout,
    layer: u64,
}

impl AttentionDropout {
    /// Multiplies the values of one query, one for each key that it may look at, by 0 or by what raises the others.
    /// `query` counts rows of the batch × heads.
    pub(super) fn apply(self, query: usize, values: &mut [f32]) {
        let rate = self.dropout.attention;
        let (dropped_below, raised) = (dropped_below(rate), raised(rate));
        let mut random = self.dropout.generator();
        // Above all streams of `Dropout::masked`, whose places are far fewer.
        random.set_stream((1 << 63) | (self.layer << 40) | query as u64);
        for value in values {
            *value *= if random.random::<u32>() < dropped_below { 0.0 } else { raised };
        }
    }
}

fn dropped_below(rate: f64) -> u32 {
    (rate * (1u64 << 32) as f64) as u32
}

fn raised(rate: f64) -> f32 {
    (1.0 / (1.0 - rate)) as f32
}
