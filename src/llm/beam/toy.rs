//! A stand-in for the decoder and its cache: the next token depends on a token's whole path and nothing else.
//!
//! The cache is filled and read exactly as slots, positions and bias of a call say, and what a slot holds depends on all
//! that its token saw, as in a real decoder; so a wrong slot, position or mask changes the logits.

use super::{BeamDevice, MASKED, ScratchRow, StdCall, TreeCall};

/// One slot: position and what was seen when it was written. Garbage until then.
#[derive(Debug, Clone, Copy)]
struct Slot {
    position: i64,
    state: u64,
}

const GARBAGE: Slot = Slot { position: -7, state: 0xDEAD_BEEF };
/// How many different values logits take: few make many ties.
#[derive(Debug, Clone, Copy)]
pub struct ToyModel {
    pub vocabulary: usize,
    pub levels: u64,
    /// Logits behind a path that ends with this token are NaN.
    pub broken: Option<u32>,
}

impl ToyModel {
    /// Logits behind a text.
    pub fn logits(&self, text: &[u32]) -> Vec<f32> {
        self.of_state(states(text).last().copied().unwrap_or_default(), text.last().copied())
    }

    fn of_state(&self, state: u64, last: Option<u32>) -> Vec<f32> {
        if last == self.broken && last.is_some() {
            return vec![f32::NAN; self.vocabulary];
        }
        let value = |token: usize| (mix(state ^ 0xABCD, token as i64) >> 20) % self.levels;
        (0..self.vocabulary).map(|token| value(token) as f32 * (8.0 / self.levels as f32)).collect()
    }
}

/// State of a token that saw tokens of these states.
fn state(seen: &[u64], token: i64) -> u64 {
    seen.iter().fold(mix(17, token), |all, &state| mix(all, state as i64))
}

/// States of all tokens of a text.
fn states(text: &[u32]) -> Vec<u64> {
    text.iter().fold(Vec::new(), |mut states, &token| {
        states.push(state(&states, i64::from(token)));
        states
    })
}

fn mix(state: u64, token: i64) -> u64 {
    let mixed = (state ^ (token as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 29)
}

/// Rows of a pool, scratch rows, and a count of calls.
pub struct ToyDevice {
    pub model: ToyModel,
    pool: Vec<Vec<Slot>>,
    scratch: Vec<Vec<Slot>>,
    /// Slots of the scratch buffer, all rows together; 0 = no STD graph.
    pub scratch_room: usize,
    pub tree_calls: usize,
    pub std_calls: usize,
    /// The next call fails.
    pub fails: bool,
    logits: Vec<f32>,
}

impl ToyDevice {
    pub fn new(model: ToyModel, scratch_room: usize) -> Self {
        Self {
            model,
            pool: Vec::new(),
            scratch: Vec::new(),
            scratch_room,
            tree_calls: 0,
            std_calls: 0,
            fails: false,
            logits: Vec::new(),
        }
    }

    /// Copies the first slots of a row over another one, and forgets the first.
    pub fn move_row(&mut self, from: usize, to: usize, tokens: usize) {
        let moved = std::mem::take(&mut self.pool[from]);
        self.pool[from] = vec![GARBAGE; moved.len()];
        self.pool[to] = vec![GARBAGE; moved.len()];
        self.pool[to][..tokens].copy_from_slice(&moved[..tokens]);
    }

    /// Reads a prompt into a new row of so many slots.
    pub fn prefill(&mut self, prompt: &[u32], slots: usize) -> usize {
        let mut row = vec![GARBAGE; slots];
        for (position, state) in states(prompt).into_iter().enumerate() {
            row[position] = Slot { position: position as i64, state };
        }
        self.pool.push(row);
        self.pool.len() - 1
    }
}

/// Writes a token into its slot, as attention over the seen slots before it says; its new state.
fn feed(row: &mut [Slot], own: usize, token: i64, position: i64, bias: &[f32]) -> u64 {
    assert!(bias.iter().all(|&bias| bias == 0.0 || bias == MASKED));
    let mut seen: Vec<Slot> = (0..own).filter(|&slot| bias[slot] == 0.0).map(|slot| row[slot]).collect();
    assert_eq!(bias[own], 0.0, "a token sees itself");
    assert!(bias[own + 1..].iter().all(|&bias| bias == MASKED), "nothing behind itself");
    seen.sort_by_key(|slot| slot.position);
    let positions: Vec<i64> = seen.iter().map(|slot| slot.position).collect();
    assert_eq!(positions, (0..position).collect::<Vec<_>>(), "a path, one token a position");
    let state = state(&seen.iter().map(|slot| slot.state).collect::<Vec<_>>(), token);
    row[own] = Slot { position, state };
    state
}

impl BeamDevice for ToyDevice {
    fn run_tree(&mut self, row: usize, call: &TreeCall) -> Result<&[f32], String> {
        self.tree_calls += 1;
        if std::mem::take(&mut self.fails) {
            return Err("on purpose".to_owned());
        }
        let width = call.width;
        assert!(width > 0 && call.total() <= self.pool[row].len(), "the row has room");
        assert_eq!((call.input_ids.len(), call.position_ids.len()), (width, width));
        assert_eq!(call.attention_bias.len(), width * call.total());
        assert_eq!(call.logits_indices, (0..width as i64).collect::<Vec<_>>());
        self.logits.clear();
        for index in 0..width {
            let bias = &call.attention_bias[index * call.total()..][..call.total()];
            let (token, position) = (call.input_ids[index], call.position_ids[index]);
            let state = feed(&mut self.pool[row], call.past + index, token, position, bias);
            self.logits.extend(self.model.of_state(state, Some(token as u32)));
        }
        Ok(&self.logits)
    }

    fn scratch_rows(&self, slots: usize) -> usize {
        self.scratch_room / slots.max(1)
    }

    fn load_scratch(&mut self, rows: &[ScratchRow], slots: usize) -> Result<(), String> {
        assert!(rows.len() * slots <= self.scratch_room);
        let load = |from: &ScratchRow| {
            let mut row = vec![GARBAGE; slots];
            row[..from.length].copy_from_slice(&self.pool[from.row][..from.length]);
            row
        };
        self.scratch = rows.iter().map(load).collect();
        Ok(())
    }

    fn run_std(&mut self, call: &StdCall) -> Result<&[f32], String> {
        self.std_calls += 1;
        if std::mem::take(&mut self.fails) {
            return Err("on purpose".to_owned());
        }
        let (rows, width, slots) = (call.rows, call.width, call.slots);
        assert!(rows <= self.scratch.len() && width > 0);
        assert_eq!((call.input_ids.len(), call.position_ids.len()), (rows * width, rows * width));
        assert_eq!((call.write_indices.len(), call.nonpad_kv_seqlen.len()), (rows, rows));
        assert_eq!(call.attention_bias.len(), rows * width * slots);
        self.logits.clear();
        let mut wanted = call.logits_indices.iter().peekable();
        for cell in 0..rows * width {
            let (row, index) = (cell / width, cell % width);
            let own = call.write_indices[row] as usize + index;
            let bias = &call.attention_bias[cell * slots..][..slots];
            let valid = call.nonpad_kv_seqlen[row] as usize;
            assert!(own < slots && valid <= slots, "writes stay inside");
            assert!(bias[..valid].contains(&0.0), "every softmax is over something");
            let (token, position) = (call.input_ids[cell], call.position_ids[cell]);
            if wanted.next_if(|&&wanted| wanted == cell as i64).is_none() {
                self.scratch[row][own] = GARBAGE;
                continue;
            }
            assert!(own < valid, "what counts is inside the valid part");
            let state = feed(&mut self.scratch[row], own, token, position, bias);
            self.logits.extend(self.model.of_state(state, Some(token as u32)));
        }
        assert!(wanted.next().is_none());
        Ok(&self.logits)
    }
}
