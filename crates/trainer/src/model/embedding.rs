//! Token embedding: rows of the table in, their gradients scattered back. Called by `decoder`.

use candle_core::{Result, Tensor, bail};

use super::maths::add_in_place;
use super::tape::{record, tensor, with_values};

/// table `[vocab, d]`, token ids → `[tokens, d]`.
pub(super) fn embed(table: &Tensor, tokens: &[u32]) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
        bail!("token {token} is outside the vocabulary of {vocab}");
    }
    let values = with_values(table, |rows| {
        let mut out = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            out.extend_from_slice(&rows[token as usize * width..][..width]);
        }
        out
    })?;
    let kept = tokens.to_vec();
    record("embed", &[table], values, (tokens.len(), width), move |gradient| {
        let scattered = with_values(gradient, |rows| {
            // One thread, in token order: repeated tokens then always add up in the same order.
            let mut out = vec![0.0f32; vocab * width];
            for (&token, row) in kept.iter().zip(rows.chunks_exact(width)) {
                add_in_place(&mut out[token as usize * width..][..width], row);
            }
            out
        })?;
        Ok([Some(tensor(scattered, (vocab, width))?), None, None])
    })
}
