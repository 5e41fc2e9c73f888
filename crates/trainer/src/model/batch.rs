//! Token batches without padding: sequences one after the other, with the places where each begins.
//!
//! Made by `sft::packing`; read by `decoder`, `attention` and `loss`.

use super::ModelError;

/// Sequences laid end to end. Attention never crosses a boundary; positions count from 0 in each sequence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Start of each sequence, then the total: one more entry than sequences.
    pub offsets: Vec<usize>,
}

/// A batch with what is to be learned from it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainBatch {
    /// The model's input.
    pub input: TokenBatch,
    /// Wanted next token at each position.
    pub targets: Vec<u32>,
    /// Weight of each position's loss; 0 = not learned.
    pub weights: Vec<f32>,
}

impl TokenBatch {
    /// Lays sequences end to end.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self { tokens: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            batch.tokens.extend_from_slice(sequence);
            batch.offsets.push(batch.tokens.len());
        }
        batch
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Lengths of the sequences, in order.
    pub fn lengths(&self) -> Vec<usize> {
        self.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// Refuses offsets that do not cover the tokens, empty sequences, and sequences over `max_len`.
    pub fn check(&self, max_len: usize) -> Result<(), ModelError> {
        let rising = self.offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if self.offsets.first() != Some(&0) || self.offsets.last() != Some(&self.tokens.len()) || !rising {
            return Err(ModelError::Batch("offsets must rise from 0 to the number of tokens".into()));
        }
        match self.lengths().into_iter().max() {
            None => Err(ModelError::Batch("holds no sequence".into())),
            Some(longest) if longest > max_len => Err(ModelError::Batch(format!(
                "a sequence of {longest} tokens is over max_position_embeddings {max_len}: cut it"
            ))),
            Some(_) => Ok(()),
        }
    }
}

impl TrainBatch {
    /// Sum of the weights.
    pub fn total_weight(&self) -> f64 {
        self.weights.iter().map(|&weight| f64::from(weight)).sum()
    }
}
