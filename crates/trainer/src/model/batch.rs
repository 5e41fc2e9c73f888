//! Token batches without padding: segments one after the other, with the places where each begins.
//!
//! Made by `sft::packing` and by whoever compares answers to one prompt; read by `decoder`, `attention` and `loss`.
//!
//! A segment may continue another one: several answers to a prompt then share its rows. One prompt and three answers:
//!
//! ```text
//! tokens   p p p p | p a a | p b | p c c c      the last prompt token opens each answer, so that every position
//! parents  none    | 0     | 0   | 0            has one target
//! position 0 1 2 3 | 4 5 6 | 4 5 | 4 5 6 7
//! ```

use std::ops::Range;

use super::ModelError;
use super::attention::Segment;

/// Segments laid end to end. Attention stays in a segment and its parent; positions count from 0, after a parent from its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenBatch {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// Start of each segment, then the total: one more entry than segments.
    pub offsets: Vec<usize>,
    /// The segment that each one continues, if any. A parent has no parent, and its children follow it directly.
    pub parents: Vec<Option<usize>>,
}

/// A batch with what is to be learned from it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrainBatch {
    /// The model's input.
    pub input: TokenBatch,
    /// Wanted next token at each position.
    pub targets: Vec<u32>,
    /// Weight of each position's loss; positions of weight 0 are not learned and cost no logits.
    pub weights: Vec<f32>,
}

/// Positions of a batch with a weight, and their targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LearnedRows {
    pub(super) places: Vec<usize>,
    pub(super) targets: Vec<u32>,
}

impl TokenBatch {
    /// Lays sequences end to end, none of them continuing another.
    pub fn from_sequences<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            batch.push(sequence, None);
        }
        batch
    }

    /// Adds a segment that continues `parent`, a segment's number; returns its own.
    pub fn push(&mut self, tokens: &[u32], parent: Option<usize>) -> usize {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.tokens.extend_from_slice(tokens);
        self.offsets.push(self.tokens.len());
        self.parents.push(parent);
        self.parents.len() - 1
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Places of a segment's tokens.
    pub fn places(&self, segment: usize) -> Range<usize> {
        self.offsets[segment]..self.offsets[segment + 1]
    }

    /// Refuses offsets that do not cover the tokens, empty segments, parents out of order, and sequences over `max_len`.
    pub fn check(&self, max_len: usize) -> Result<(), ModelError> {
        let fail = |message: String| Err(ModelError::Batch(message));
        let rising = self.offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if self.offsets.first() != Some(&0) || self.offsets.last() != Some(&self.tokens.len()) || !rising {
            return fail("offsets must rise from 0 to the number of tokens".into());
        }
        if self.segments() == 0 {
            return fail("holds no sequence".into());
        }
        if self.parents.len() != self.segments() {
            return fail(format!("{} segments need as many parents", self.segments()));
        }
        for (segment, parent) in self.parents.iter().enumerate() {
            let before = segment.checked_sub(1);
            let follows =
                |parent: usize| before == Some(parent) || before.is_some_and(|b| self.parents[b] == Some(parent));
            if parent.is_some_and(|parent| !follows(parent) || self.parents[parent].is_some()) {
                return fail(format!("segment {segment} must follow its parent, which has no parent, or a sibling"));
            }
            let longest = parent.map_or(0, |parent| self.places(parent).len()) + self.places(segment).len();
            if longest > max_len {
                return fail(format!(
                    "a sequence of {longest} tokens is over max_position_embeddings {max_len}: cut it"
                ));
            }
        }
        Ok(())
    }

    /// The segments as attention takes them; of a checked batch.
    pub(super) fn attention_segments(&self) -> Vec<Segment> {
        let parents = self.parents.iter().enumerate();
        parents
            .map(|(segment, parent)| Segment {
                rows: self.places(segment),
                prefix: parent.map_or(0..0, |parent| self.places(parent)),
            })
            .collect()
    }
}

impl TrainBatch {
    /// Adds a prompt and several continuations of it, the prompt laid down once. Targets of the prompt weigh `prompt_weight`,
    /// those of a continuation 1. Returns the segments of the continuations, in order.
    pub fn push_group<'a>(
        &mut self,
        prompt: &[u32],
        continuations: impl IntoIterator<Item = &'a [u32]>,
        prompt_weight: f32,
    ) -> Result<Range<usize>, ModelError> {
        let Some((&opening, shared)) = prompt.split_last() else {
            return Err(ModelError::Batch("a group needs a prompt".into()));
        };
        let parent = (!shared.is_empty()).then(|| self.input.push(shared, None));
        self.targets.extend_from_slice(&prompt[1..]);
        self.weights.extend(std::iter::repeat_n(prompt_weight, shared.len()));
        let first = self.input.segments();
        for continuation in continuations {
            let Some((_, read)) = continuation.split_last() else {
                return Err(ModelError::Batch("a continuation needs a token".into()));
            };
            self.input.push(&[&[opening], read].concat(), parent);
            self.targets.extend_from_slice(continuation);
            self.weights.extend(std::iter::repeat_n(1.0, continuation.len()));
        }
        Ok(first..self.input.segments())
    }

    /// Where each segment's learned rows lie among those that an objective sees.
    pub fn row_ranges(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        (0..self.input.segments())
            .map(|segment| {
                let learned = self.weights[self.input.places(segment)].iter().filter(|weight| **weight != 0.0).count();
                start += learned;
                start - learned..start
            })
            .collect()
    }

    /// Positions of non-zero weight; an error if there is none.
    pub(super) fn learned_rows(&self) -> Result<LearnedRows, ModelError> {
        let tokens = self.input.tokens.len();
        if self.targets.len() != tokens || self.weights.len() != tokens {
            return Err(ModelError::Batch(format!("{tokens} tokens need as many targets and weights")));
        }
        let places: Vec<usize> = (0..tokens).filter(|&place| self.weights[place] != 0.0).collect();
        if places.is_empty() {
            return Err(ModelError::Batch("no token has a weight: nothing to learn".into()));
        }
        let targets = places.iter().map(|&place| self.targets[place]).collect();
        Ok(LearnedRows { places, targets })
    }
}
