//! The token sequences that exist (semantic IDs of items) as an immutable trie in flat arrays.
//!
//! In: items with their sequences, active or paused. Out: which tokens may follow, and the item at the end. Callers:
//! `beam` walks it; the catalogue keeps the current one in a [`TrieCell`] and changes it while requests run.
//! `sequences` holds what a trie is built from, `cell` swaps tries.

mod cell;
mod sequences;

pub use cell::{Change, TrieCell};

use sequences::Sequences;
use thiserror::Error;

/// Why an item cannot be in the trie. Resolving collisions is the job of whoever gives out the sequences (the trainer).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TrieError {
    /// No tokens at all.
    #[error("item {item} has no tokens: give it a sequence")]
    Empty {
        /// The item.
        item: u32,
    },
    /// The same tokens as another item.
    #[error("item {item} has the same token sequence as item {other}: resolve the collision first")]
    Duplicate {
        /// The item that is refused.
        item: u32,
        /// The item that has it.
        other: u32,
    },
    /// One sequence begins with the other, so a search could not tell whether to stop.
    #[error("the token sequences of items {item} and {other} begin alike and one ends: make them of one length")]
    Prefix {
        /// The item that is refused.
        item: u32,
        /// The item that is there.
        other: u32,
    },
    /// The item has another sequence already.
    #[error("item {item} has another token sequence already: new sequences need a new trie")]
    Moved {
        /// The item.
        item: u32,
    },
    /// Paused or resumed, but never added.
    #[error("item {item} is not in the trie: add it first")]
    Unknown {
        /// The item.
        item: u32,
    },
    /// More tokens than 32-bit offsets reach.
    #[error("the token sequences have more than {limit} tokens together: split the catalogue")]
    TooLarge {
        /// Most tokens of all items.
        limit: usize,
    },
}

/// An immutable trie of the active items, 12 bytes a node.
///
/// Nodes are numbered level by level, so the children of a node are neighbours and those of the next node follow. Only
/// active items are in it: every node leads to at least one. One million scattered items of four tokens, 256 a level, are
/// 2.07 million nodes and 24.8 MB (`a_million_items` in `cell` measures it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    /// Token that leads to the node; 0 at the root.
    tokens: Box<[u32]>,
    /// First child of the node; its children end where those of the next node begin. One entry more than nodes.
    first_child: Box<[u32]>,
    /// Item at a node without children.
    items: Box<[u32]>,
    /// Nodes with children at each depth, root first; as many entries as the longest sequence has tokens.
    inner: Box<[u32]>,
    leaves: usize,
}

impl Trie {
    /// The node where every sequence begins.
    pub const ROOT: u32 = 0;

    /// Builds a trie from `(item, tokens, active)` in any order. Paused items count for the checks and are then left out.
    /// Errors name the first item found wrong.
    pub fn build<'a>(entries: impl IntoIterator<Item = (u32, &'a [u32], bool)>) -> Result<Self, TrieError> {
        Ok(Self::of(&Sequences::build(entries)?))
    }

    /// Builds level by level; `sequences` are sorted and none is a prefix of another.
    fn of(sequences: &Sequences) -> Self {
        let active: Vec<u32> = sequences.active_positions().collect();
        let sequence = |index: u32| sequences.tokens(active[index as usize] as usize);
        let (mut tokens, mut items, mut first_child, mut inner) = (vec![0], vec![0], Vec::new(), Vec::new());
        // The part of `active` below each node of the level.
        let mut level = vec![(0, active.len() as u32)];
        for depth in 0.. {
            let mut below = Vec::new();
            let mut parents = 0;
            for &(start, end) in &level {
                first_child.push(tokens.len() as u32);
                let is_leaf = start == end || sequence(start).len() == depth;
                if is_leaf {
                    continue;
                }
                parents += 1;
                let mut from = start;
                while from < end {
                    let token = sequence(from)[depth];
                    let same = (from..end).take_while(|&index| sequence(index)[depth] == token).count() as u32;
                    tokens.push(token);
                    items.push(sequences.item(active[from as usize] as usize));
                    below.push((from, from + same));
                    from += same;
                }
            }
            if parents == 0 {
                break;
            }
            inner.push(parents);
            level = below;
        }
        first_child.push(tokens.len() as u32);
        Self {
            tokens: tokens.into(),
            first_child: first_child.into(),
            items: items.into(),
            inner: inner.into(),
            leaves: active.len(),
        }
    }

    /// Tokens that may follow a node, ascending, each with the node it leads to. None at the end of a sequence.
    pub fn children(&self, node: u32) -> impl ExactSizeIterator<Item = (u32, u32)> + '_ {
        let range = self.first_child[node as usize]..self.first_child[node as usize + 1];
        self.tokens[range.start as usize..range.end as usize].iter().copied().zip(range)
    }

    /// The item whose sequence ends at a node.
    pub fn item(&self, node: u32) -> Option<u32> {
        let is_end = node != Self::ROOT && self.first_child[node as usize] == self.first_child[node as usize + 1];
        is_end.then(|| self.items[node as usize])
    }

    /// The active item of a whole sequence.
    pub fn get(&self, tokens: &[u32]) -> Option<u32> {
        let step = |node: u32, token: &u32| {
            let first = self.first_child[node as usize] as usize;
            let children = &self.tokens[first..self.first_child[node as usize + 1] as usize];
            children.binary_search(token).ok().map(|offset| (first + offset) as u32)
        };
        self.item(tokens.iter().try_fold(Self::ROOT, step)?)
    }

    /// Active items.
    pub fn len(&self) -> usize {
        self.leaves
    }

    /// No active item.
    pub fn is_empty(&self) -> bool {
        self.leaves == 0
    }

    /// Nodes, the root included.
    pub fn nodes(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens of the longest sequence.
    pub fn depth(&self) -> usize {
        self.inner.len()
    }

    /// Nodes with children after so many tokens.
    pub fn inner_nodes(&self, depth: usize) -> usize {
        self.inner.get(depth).map_or(0, |&nodes| nodes as usize)
    }

    /// Bytes of the arrays.
    pub fn bytes(&self) -> usize {
        4 * (self.tokens.len() + self.first_child.len() + self.items.len() + self.inner.len())
    }
}

impl Default for Trie {
    /// A trie without items.
    fn default() -> Self {
        Self::of(&Sequences::default())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn build(entries: &[(u32, &[u32], bool)]) -> Result<Trie, TrieError> {
        Trie::build(entries.iter().copied())
    }

    #[test]
    fn walks_to_every_active_item_and_to_no_other() {
        let trie = build(&[
            (7, &[5, 1, 9], true),
            (8, &[5, 1, 2], true),
            (9, &[5, 3, 2], false),
            (4, &[2], true),
            (3, &[6, 6], false),
        ])
        .unwrap();
        let tokens = |node| trie.children(node).map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(tokens(Trie::ROOT), [2, 5], "6 leads to a paused item only");
        let five = trie.children(Trie::ROOT).nth(1).unwrap().1;
        assert_eq!(tokens(five), [1], "as does 5 3");
        assert_eq!(tokens(trie.children(five).next().unwrap().1), [2, 9]);
        assert_eq!(
            [&[5, 1, 9][..], &[5, 1, 2], &[2], &[5, 3, 2], &[6, 6], &[5, 1], &[]].map(|sequence| trie.get(sequence)),
            [Some(7), Some(8), Some(4), None, None, None, None]
        );
        assert_eq!((trie.len(), trie.nodes(), trie.depth()), (3, 6, 3));
        assert_eq!([0, 1, 2, 3].map(|depth| trie.inner_nodes(depth)), [1, 1, 1, 0]);
    }

    #[test]
    fn what_cannot_be_told_apart_names_both_items() {
        assert_eq!(build(&[(1, &[2, 3], true), (2, &[], true)]), Err(TrieError::Empty { item: 2 }));
        assert_eq!(
            build(&[(1, &[2, 3], true), (2, &[2, 3], false)]),
            Err(TrieError::Duplicate { item: 2, other: 1 }),
            "paused ones count: they may come back"
        );
        assert_eq!(
            build(&[(1, &[2, 3, 4], true), (3, &[2, 9], true), (2, &[2, 3], true)]),
            Err(TrieError::Prefix { item: 1, other: 2 })
        );
        assert_eq!(build(&[(1, &[2, 3], true), (1, &[4], true)]), Err(TrieError::Moved { item: 1 }));
    }

    #[test]
    fn an_empty_trie_offers_nothing() {
        for trie in [Trie::default(), build(&[]).unwrap(), build(&[(1, &[2], false)]).unwrap()] {
            assert_eq!((trie.len(), trie.nodes(), trie.depth()), (0, 1, 0));
            assert!(trie.is_empty() && trie.item(Trie::ROOT).is_none() && trie.children(Trie::ROOT).next().is_none());
        }
    }
}
