//! Which of the answers to a prompt are a pair.

use crate::align::AlignError;
use crate::stages::Written;
use crate::weighting::{Batch, Gdpo, Weighting};

/// The answers of the highest and the lowest advantage by GDPO (each reward normalised in its group, then their weighted sum), by place;
/// `None` where all of them are worth the same. Of equal ones the first.
pub(super) fn best_and_worst(
    written: &Written,
    names: &[&str],
    weights: Option<&[f64]>,
) -> Result<Vec<Option<[usize; 2]>>, AlignError> {
    let equal = vec![1.0 / names.len() as f64; names.len()];
    let none = vec![0.0; names.len()];
    let batch = Batch::new(names, &written.values, &none, written.group)?;
    let advantages = Gdpo::new(weights.unwrap_or(&equal))?.combine(&batch, None)?.advantages;
    let pair = |group: &[f64]| {
        let best = (0..group.len()).reduce(|best, next| if group[next] > group[best] { next } else { best })?;
        let worst = (0..group.len()).reduce(|worst, next| if group[next] < group[worst] { next } else { worst })?;
        (group[best] > group[worst]).then_some([best, worst])
    };
    Ok(advantages.chunks(written.group).map(pair).collect())
}
