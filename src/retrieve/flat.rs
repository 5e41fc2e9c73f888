//! Distinct vectors searched one by one: the fresh part of the index, which changes with every refresh.
//!
//! In: a user's vector as it is stored (fp16 bytes). Out: the nearest rows, each with the users behind it. Not FAISS, because
//! its flat index moves all rows behind a removed one; here a row that nobody has any more is free for the next vector, so
//! that a change costs the same whatever the index holds. Rows lie in blocks, so that growing moves none either.

use super::decode_f16;
use super::members::Members;
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// Rows of one block.
const BLOCK: usize = 1024;

/// The vectors and their users.
pub(super) struct FlatVectors {
    dim: usize,
    blocks: Vec<Vec<f32>>,
    rows: Vec<Row>,
    by_key: HashMap<u128, usize>,
    free: Vec<usize>,
}

/// One distinct vector; without members it is free.
struct Row {
    /// Of the vector's bytes.
    key: u128,
    members: Members,
}

/// A row that was found. Of equal similarities the lower key is better, so that every replica answers alike.
#[derive(PartialEq)]
struct Hit {
    similarity: f32,
    key: u128,
    row: usize,
}

impl Eq for Hit {}

impl Ord for Hit {
    fn cmp(&self, other: &Self) -> Ordering {
        self.similarity.total_cmp(&other.similarity).then_with(|| other.key.cmp(&self.key))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FlatVectors {
    pub fn new(dim: usize) -> FlatVectors {
        FlatVectors { dim, blocks: Vec::new(), rows: Vec::new(), by_key: HashMap::new(), free: Vec::new() }
    }

    /// Puts a user behind a vector (fp16 bytes of `dim` numbers); returns the row, to be given back to [`Self::remove`].
    pub fn insert(&mut self, vector: &[u8], user: Arc<str>) -> usize {
        let key = xxh3_128(vector);
        let row = match self.by_key.get(&key) {
            Some(row) => *row,
            None => self.add(key, &decode_f16(vector)),
        };
        self.rows[row].members.insert(user);
        row
    }

    fn add(&mut self, key: u128, values: &[f32]) -> usize {
        let row = match self.free.pop() {
            Some(row) => {
                self.rows[row].key = key;
                self.blocks[row / BLOCK][row % BLOCK * self.dim..][..self.dim].copy_from_slice(values);
                row
            }
            None => {
                let row = self.rows.len();
                if row.is_multiple_of(BLOCK) {
                    self.blocks.push(Vec::with_capacity(BLOCK * self.dim));
                }
                self.blocks[row / BLOCK].extend_from_slice(values);
                self.rows.push(Row { key, members: Members::default() });
                row
            }
        };
        self.by_key.insert(key, row);
        row
    }

    /// Takes a user from behind a vector.
    pub fn remove(&mut self, row: usize, user: &Arc<str>) {
        let Row { key, members } = &mut self.rows[row];
        members.remove(user);
        if members.is_empty() {
            self.by_key.remove(key);
            self.free.push(row);
        }
    }

    /// Rows, free ones included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The nearest `k` rows with their similarities, in any order.
    pub fn nearest(&self, vector: &[f32], k: usize) -> Vec<(f32, &Members)> {
        let mut best: BinaryHeap<Reverse<Hit>> = BinaryHeap::with_capacity(k.min(self.rows.len()) + 1);
        let values = self.blocks.iter().flat_map(|block| block.chunks_exact(self.dim));
        for (row, (Row { key, members }, values)) in self.rows.iter().zip(values).enumerate() {
            if members.is_empty() {
                continue;
            }
            let hit = Hit { similarity: dot(vector, values), key: *key, row };
            if best.len() < k {
                best.push(Reverse(hit));
            } else if best.peek().is_some_and(|Reverse(worst)| *worst < hit) {
                best.pop();
                best.push(Reverse(hit));
            }
        }
        best.into_iter().map(|Reverse(hit)| (hit.similarity, &self.rows[hit.row].members)).collect()
    }
}

/// Inner product; eight sums at once, for the processor's vector unit.
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let (one_eights, one_rest) = one.as_chunks::<8>();
    let (other_eights, other_rest) = other.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (left, right) in one_eights.iter().zip(other_eights) {
        for lane in 0..8 {
            sums[lane] += left[lane] * right[lane];
        }
    }
    let rest: f32 = one_rest.iter().zip(other_rest).map(|(left, right)| left * right).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::super::encode_f16;
    use super::*;

    #[test]
    fn equal_vectors_share_a_row_and_a_row_without_users_is_used_again() {
        let mut vectors = FlatVectors::new(3);
        let (one, other) = (encode_f16(&[1.0, 0.0, 0.0]), encode_f16(&[0.0, 1.0, 0.0]));
        let name = |user: &str| -> Arc<str> { user.into() };
        let first = vectors.insert(&one, name("a"));
        assert_eq!(vectors.insert(&one, name("b")), first);
        let second = vectors.insert(&other, name("c"));
        assert_ne!(first, second);
        let found = vectors.nearest(&[0.6, 0.8, 0.0], 9);
        assert_eq!(found.len(), 2);
        assert_eq!(found.iter().map(|(_, members)| members.others("").count()).sum::<usize>(), 3);
        vectors.remove(first, &name("a"));
        vectors.remove(first, &name("b"));
        let found = vectors.nearest(&[1.0, 0.0, 0.0], 9);
        assert!(matches!(found[..], [(similarity, _)] if similarity == 0.0), "a free row is not found");
        assert_eq!(vectors.insert(&encode_f16(&[0.0, 0.0, 1.0]), name("a")), first);
        let found = vectors.nearest(&[0.0, 0.0, 1.0], 1);
        assert!(matches!(found[..], [(similarity, _)] if similarity == 1.0));
    }

    #[test]
    fn a_row_of_any_length_is_multiplied_whole() {
        for length in [1, 7, 8, 9, 16, 385] {
            let one: Vec<f32> = (0..length).map(|place| place as f32).collect();
            assert_eq!(dot(&one, &vec![1.0; length]), (0..length).sum::<usize>() as f32);
        }
    }
}
