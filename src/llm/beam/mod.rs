//! Beam search over the sequences of a trie, without copying a prompt's cache: all beams of a prompt are one tree of
//! tokens behind it.
//!
//! In: prompts that stand prefilled in rows of the engine's pool, each with the logits behind its last token. Out: the
//! best items, best first. The engine's scheduler calls [`BeamDriver::push`] after a prefill and [`BeamDriver::step`]
//! between its other work; the driver asks a [`BeamDevice`] to run graphs. `search` holds one search, `call` makes graph
//! calls of searches, `driver` runs many. Nothing here touches a device.
//!
//! A level of the trie is one graph call: every beam that goes on feeds its last token, in a slot of its own behind the
//! prompt, and sees the prompt and its own ancestors only. Changing the order of beams is therefore bookkeeping of slots;
//! no key or value ever moves. The first level needs no call (the prompt's logits choose it), nor does the last.

mod call;
mod driver;
mod search;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod toy;

pub use call::{MASKED, StdCall, TreeCall};
pub use driver::{BeamDriver, Ended};
pub use search::{BeamSearch, slots_needed};

/// A prompt to be copied into a row of the scratch buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScratchRow {
    /// Row of the pool where the prompt stands.
    pub row: usize,
    /// Tokens of the prompt: slots 0..length are copied.
    pub length: usize,
}

/// What a device must do for beams. Errors are the runtime's messages; after one, the rows concerned hold anything.
pub trait BeamDevice {
    /// Runs the TREE graph on one row of the pool; logits are `[call.width, vocabulary]`. Slots before `call.past` are
    /// read, slots from there on are written.
    fn run_tree(&mut self, row: usize, call: &TreeCall) -> Result<&[f32], String>;

    /// Most rows of `slots` slots the scratch buffer of the STD graph can have; below 2 searches run one by one.
    fn scratch_rows(&self, slots: usize) -> usize;

    /// Shapes the scratch buffer as `rows.len()` rows of `slots` slots and copies a prompt into each, in this order. All
    /// other slots must hold finite numbers: the kernel multiplies them, if by zero.
    fn load_scratch(&mut self, rows: &[ScratchRow], slots: usize) -> Result<(), String>;

    /// Runs the STD graph on the first rows of the scratch buffer; logits are `[call.logits_indices.len(), vocabulary]`.
    fn run_std(&mut self, call: &StdCall) -> Result<&[f32], String>;
}
