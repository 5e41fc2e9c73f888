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

    fn masked(self, values: &[f32], width: usize, place: u64) -> Vec<f32> {
        let dropped_below = (self.rate * (1u64 << 32) as f64) as u32;
        let raised = (1.0 / (1.0 - self.rate)) as f32;
        let task = ROWS_PER_TASK * width;
        let mut out = vec![0.0f32; values.len()];
        out.par_chunks_mut(task).zip(values.par_chunks(task)).enumerate().for_each(|(number, (out, values))| {
            // Any two of batch, place and task give another stream.
            let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ self.batch.wrapping_mul(0x9E37_79B9_7F4A_7C15));
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
