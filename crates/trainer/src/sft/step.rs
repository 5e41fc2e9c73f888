//! One batch of cross-entropy on a decoder, and the validation by it: what every supervised task of `fit` does.
//!
//! Called by `training` and by `generative`.

use super::packing::{BatchSize, TokenExample, assemble, fill};
use crate::fit::{Evaluated, FitError, Gradients, ParameterSet, Validated};
use crate::model::{Decoder, Dropout, ModelError, TrainBatch};
use crate::objective::CrossEntropy;

/// Weighted mean cross-entropy of a batch and its gradients; dropout is off again afterwards.
pub(crate) fn cross_entropy<E: From<ModelError> + From<FitError> + From<candle_core::Error>>(
    decoder: &mut Decoder,
    batch: &TrainBatch,
    dropout: Option<Dropout>,
    label_smoothing: f64,
    set: &ParameterSet,
) -> Result<Evaluated, E> {
    decoder.set_dropout(dropout);
    let objective = CrossEntropy::mean(&batch.weights).and_then(|mean| mean.smoothed(label_smoothing));
    let loss = objective.map_err(ModelError::from).and_then(|objective| decoder.loss(batch, &objective));
    decoder.set_dropout(None);
    let loss = loss?;
    Ok(Evaluated {
        gradients: Gradients::collect(set, &loss.backward()?)?,
        loss: f64::from(loss.to_scalar::<f32>()?),
        weight: batch.weights.iter().map(|&weight| f64::from(weight)).sum(),
        tokens: batch.input.tokens.len() as u64,
    })
}

/// Mean nll (nats) per completion token, and the share of them that are the most likely ones; `None` without examples.
pub(crate) fn validated(
    decoder: &Decoder,
    examples: &[TokenExample],
    batch_tokens: usize,
) -> Result<Option<Validated>, ModelError> {
    let (mut total, mut hits, mut count) = (0.0, 0.0, 0.0);
    for chosen in fill(examples, 0..examples.len(), BatchSize::of_tokens(batch_tokens)) {
        let batch = assemble(examples, &chosen, 0.0);
        let targets = batch.targets.iter().zip(&batch.weights).filter(|(_, weight)| **weight != 0.0);
        for ((likelihood, best), (target, _)) in decoder.scores(&batch)?.into_iter().zip(targets) {
            total -= likelihood;
            hits += f64::from(u8::from(best == *target));
            count += 1.0;
        }
    }
    Ok((count > 0.0).then(|| Validated { loss: total / count, accuracy: Some(hits / count) }))
}
