//! All items' token sequences, paused ones too, sorted: what tries are built from and what changes are merged into.
//!
//! In: items with sequences. Out: the sorted, checked list. Called by [`super::Trie::build`] and `cell`.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::TrieError;

/// Most tokens of all sequences together: offsets, positions and node numbers are 32 bits wide.
const MOST_TOKENS: usize = u32::MAX as usize - 1;

/// An item to add, sorted by its tokens.
pub type Additions<'a> = BTreeMap<&'a [u32], (u32, bool)>;

/// Sorted sequences in flat arrays; no two are equal, none is a prefix of another.
#[derive(Debug, Default)]
pub struct Sequences {
    tokens: Vec<u32>,
    /// Where the tokens of each entry end.
    ends: Vec<u32>,
    items: Vec<u32>,
    active: Vec<bool>,
}

impl Sequences {
    /// Sorts and checks.
    pub fn build<'a>(entries: impl IntoIterator<Item = (u32, &'a [u32], bool)>) -> Result<Self, TrieError> {
        let mut entries: Vec<Entry<'a>> = entries
            .into_iter()
            .map(|(item, tokens, active)| Entry { head: head(tokens), item, tokens, active })
            .collect();
        if let Some(entry) = entries.iter().find(|entry| entry.tokens.is_empty()) {
            return Err(TrieError::Empty { item: entry.item });
        }
        check_size(entries.iter().map(|entry| entry.tokens.len()).sum())?;
        check_items(&entries)?;
        // Equal sequences keep their order: the later one is refused.
        entries.sort_by(Entry::order);
        for pair in entries.windows(2) {
            // A prefix is sorted right before the first sequence that begins with it.
            if let Some(error) = conflict(pair[1].item, pair[1].tokens, pair[0].item, pair[0].tokens) {
                return Err(error);
            }
        }
        let mut sequences = Self::with_capacity(entries.len(), entries.iter().map(|entry| entry.tokens.len()).sum());
        entries.iter().for_each(|entry| sequences.push(entry.item, entry.tokens, entry.active));
        Ok(sequences)
    }

    fn with_capacity(entries: usize, tokens: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(tokens),
            ends: Vec::with_capacity(entries),
            items: Vec::with_capacity(entries),
            active: Vec::with_capacity(entries),
        }
    }

    fn push(&mut self, item: u32, tokens: &[u32], active: bool) {
        self.tokens.extend_from_slice(tokens);
        self.ends.push(self.tokens.len() as u32);
        self.items.push(item);
        self.active.push(active);
    }

    /// Entries, paused ones too.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Tokens of the entry at a position.
    pub fn tokens(&self, position: usize) -> &[u32] {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        &self.tokens[start as usize..self.ends[position] as usize]
    }

    /// Item of the entry at a position.
    pub fn item(&self, position: usize) -> u32 {
        self.items[position]
    }

    /// Items in the order of their sequences.
    pub fn items(&self) -> &[u32] {
        &self.items
    }

    /// Whether the entry at a position may be offered.
    pub fn is_active(&self, position: usize) -> bool {
        self.active[position]
    }

    /// Pauses or resumes the entry at a position.
    pub fn set_active(&mut self, position: usize, active: bool) {
        self.active[position] = active;
    }

    /// Positions of active entries, ascending.
    pub fn active_positions(&self) -> impl Iterator<Item = u32> + '_ {
        self.active.iter().zip(0..).filter(|(active, _)| **active).map(|(_, position)| position)
    }

    /// Why `item` cannot have `tokens` beside the sequences here and in `additions`.
    pub fn conflict(&self, item: u32, tokens: &[u32], additions: &Additions<'_>) -> Option<TrieError> {
        if tokens.is_empty() {
            return Some(TrieError::Empty { item });
        }
        // Only the neighbours in the sorted order can be equal, or one a prefix of the other.
        let next = self.lower_bound(tokens);
        let here = [next.checked_sub(1), Some(next).filter(|&position| position < self.len())];
        let here = here.into_iter().flatten().map(|position| (self.item(position), self.tokens(position)));
        let (before, after) = (additions.range(..tokens).next_back(), additions.range(tokens..).next());
        let added = [before, after].into_iter().flatten().map(|(&other_tokens, &(other, _))| (other, other_tokens));
        here.chain(added).find_map(|(other, other_tokens)| conflict(item, tokens, other, other_tokens))
    }

    fn lower_bound(&self, tokens: &[u32]) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.tokens(middle).cmp(tokens) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }

    /// Whether so many more tokens fit.
    pub fn check_room(&self, more: usize) -> Result<(), TrieError> {
        check_size(self.tokens.len() + more)
    }

    /// Merges checked additions in.
    pub fn merge(&mut self, additions: &Additions<'_>) {
        let more: usize = additions.keys().map(|tokens| tokens.len()).sum();
        let mut merged = Self::with_capacity(self.len() + additions.len(), self.tokens.len() + more);
        let mut copied = 0;
        for (&tokens, &(item, active)) in additions {
            let position = self.lower_bound(tokens);
            merged.copy(self, copied, position);
            merged.push(item, tokens, active);
            copied = position;
        }
        merged.copy(self, copied, self.len());
        *self = merged;
    }

    /// Appends the entries `from..to` of another list.
    fn copy(&mut self, other: &Self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let start = if from == 0 { 0 } else { other.ends[from - 1] };
        let moved = self.tokens.len() as u32;
        self.ends.extend(other.ends[from..to].iter().map(|&end| end - start + moved));
        self.tokens.extend_from_slice(&other.tokens[start as usize..other.ends[to - 1] as usize]);
        self.items.extend_from_slice(&other.items[from..to]);
        self.active.extend_from_slice(&other.active[from..to]);
    }
}

/// An entry while sorting.
struct Entry<'a> {
    /// The first two tokens as one number: most comparisons end there, without following a pointer.
    head: u64,
    item: u32,
    tokens: &'a [u32],
    active: bool,
}

impl Entry<'_> {
    fn order(&self, other: &Self) -> Ordering {
        self.head.cmp(&other.head).then_with(|| self.tokens.cmp(other.tokens))
    }
}

/// Sorts as the first two tokens do; a missing one counts as 0.
fn head(tokens: &[u32]) -> u64 {
    let token = |index: usize| u64::from(tokens.get(index).copied().unwrap_or(0));
    token(0) << 32 | token(1)
}

fn conflict(item: u32, tokens: &[u32], other: u32, other_tokens: &[u32]) -> Option<TrieError> {
    if tokens == other_tokens {
        return Some(TrieError::Duplicate { item, other });
    }
    let begins = tokens.starts_with(other_tokens) || other_tokens.starts_with(tokens);
    begins.then_some(TrieError::Prefix { item, other })
}

fn check_size(tokens: usize) -> Result<(), TrieError> {
    if tokens > MOST_TOKENS { Err(TrieError::TooLarge { limit: MOST_TOKENS }) } else { Ok(()) }
}

/// An item has one sequence.
fn check_items(entries: &[Entry<'_>]) -> Result<(), TrieError> {
    let mut items: Vec<u32> = entries.iter().map(|entry| entry.item).collect();
    items.sort_unstable();
    match items.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(TrieError::Moved { item: pair[0] }),
        None => Ok(()),
    }
}
