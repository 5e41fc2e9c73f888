//! Many searches on one device, one graph call at a time.
//!
//! In: searches whose prompts stand in rows. Out: who ended, with beams or an error. Called by the engine's scheduler,
//! which runs other rows' work between two steps. Searches that wait together share the calls of the STD graph where the
//! device has one with room; else they run one after the other on the TREE graph, so that the first answers come early.

use std::collections::VecDeque;

use super::call::{StdCall, TreeCall};
use super::search::BeamSearch;
use super::{BeamDevice, ScratchRow};
use crate::llm::{Beam, LlmError};

/// A search that is over; its row is free again (what lies behind the prompt is garbage).
#[derive(Debug, PartialEq)]
pub struct Ended {
    /// Row of the pool.
    pub row: usize,
    /// The beams, best first, or why there are none.
    pub result: Result<Vec<Beam>, LlmError>,
}

/// Most of a batch's tokens, and of its scratch slots, that may be padding: beyond that sharing costs more than it gains.
const MAX_PADDING: f64 = 0.25;

/// Runs the searches of one device; owned by the thread that owns the device.
#[derive(Debug)]
pub struct BeamDriver {
    waiting: VecDeque<Running>,
    batch: Batch,
    max_padding: f64,
}

impl Default for BeamDriver {
    fn default() -> Self {
        Self::with_padding(MAX_PADDING)
    }
}

#[derive(Debug)]
struct Running {
    row: usize,
    search: BeamSearch,
}

/// Searches that run now.
#[derive(Debug, Default)]
enum Batch {
    #[default]
    None,
    Tree(Running),
    /// Scratch row q is entry q; `None` once it ended.
    Std {
        entries: Vec<Option<Running>>,
        slots: usize,
    },
}

impl BeamDriver {
    /// A driver that lets this share of a batch be padding.
    pub fn with_padding(max_padding: f64) -> Self {
        Self { waiting: VecDeque::new(), batch: Batch::None, max_padding }
    }

    /// Takes a search that was started; its prompt must stay in `row` until the search has ended.
    pub fn push(&mut self, row: usize, search: BeamSearch) {
        self.waiting.push_back(Running { row, search });
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && matches!(self.batch, Batch::None)
    }

    /// Whether the next step takes up searches that wait. More of them then share its calls.
    pub fn is_between_batches(&self) -> bool {
        matches!(self.batch, Batch::None)
    }

    /// Searches that wait or run.
    pub fn len(&self) -> usize {
        let running = match &self.batch {
            Batch::None => 0,
            Batch::Tree(_) => 1,
            Batch::Std { entries, .. } => entries.iter().flatten().count(),
        };
        self.waiting.len() + running
    }

    /// No search waits or runs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Slots in use of a row that has a search.
    pub fn used(&self, row: usize) -> Option<usize> {
        let mut running = self.waiting.iter().chain(self.batch.running());
        running.find(|running| running.row == row).map(|running| running.search.past())
    }

    /// Notes that what stood in a row stands in another now.
    pub fn relocate(&mut self, from: usize, to: usize) {
        let batch = match &mut self.batch {
            Batch::None => None,
            Batch::Tree(running) => Some(running),
            Batch::Std { entries, .. } => entries.iter_mut().flatten().find(|running| running.row == from),
        };
        for running in self.waiting.iter_mut().chain(batch).filter(|running| running.row == from) {
            running.row = to;
        }
    }

    /// Gives up the search of a row, if there is one: nothing more is said of it and the row is free.
    pub fn cancel(&mut self, row: usize) {
        self.waiting.retain(|running| running.row != row);
        match &mut self.batch {
            Batch::Tree(running) if running.row == row => self.batch = Batch::None,
            Batch::Std { entries, .. } => {
                entries
                    .iter_mut()
                    .filter(|entry| entry.as_ref().is_some_and(|running| running.row == row))
                    .for_each(|entry| *entry = None);
                self.batch.drop_if_over();
            }
            Batch::None | Batch::Tree(_) => {}
        }
    }

    /// Gives up everything, for use after the device was reset: the rows whose searches are lost.
    pub fn clear(&mut self) -> Vec<usize> {
        let running = match std::mem::take(&mut self.batch) {
            Batch::None => Vec::new(),
            Batch::Tree(running) => vec![running],
            Batch::Std { entries, .. } => entries.into_iter().flatten().collect(),
        };
        running.into_iter().chain(self.waiting.drain(..)).map(|running| running.row).collect()
    }

    /// Makes at most one graph call (one level), and says which searches ended by it. Unusable logits end their search
    /// alone; a failed call ends all that were in it.
    pub fn step(&mut self, device: &mut dyn BeamDevice) -> Vec<Ended> {
        let mut ended = self.take_done();
        if matches!(self.batch, Batch::None) {
            self.begin(device, &mut ended);
        }
        match &mut self.batch {
            Batch::None => {}
            Batch::Tree(running) => {
                let call = TreeCall::of(&running.search);
                let logits = device.run_tree(running.row, &call).map_err(LlmError::Run);
                let result = logits.and_then(|logits| running.search.accept(logits));
                if let Some(end) = end(running, result) {
                    ended.push(end);
                    self.batch = Batch::None;
                }
            }
            Batch::Std { entries, slots } => {
                step_std(entries, *slots, device, &mut ended);
                self.batch.drop_if_over();
            }
        }
        ended
    }

    /// Searches that need no call: the prompt's logits chose whole sequences.
    fn take_done(&mut self) -> Vec<Ended> {
        let (done, waiting): (VecDeque<Running>, VecDeque<Running>) =
            self.waiting.drain(..).partition(|running| running.search.width() == 0);
        self.waiting = waiting;
        done.into_iter().map(|running| Ended { row: running.row, result: Ok(running.search.beams()) }).collect()
    }

    /// Takes the oldest that wait: as many as the scratch buffer has room for and are alike enough.
    fn begin(&mut self, device: &mut dyn BeamDevice, ended: &mut Vec<Ended>) {
        let count = (2..=self.waiting.len()).take_while(|&count| self.can_share(count, device)).last().unwrap_or(1);
        let needed = self.slots(0, count);
        if count == 1 {
            self.batch = self.waiting.pop_front().map_or(Batch::None, Batch::Tree);
            return;
        }
        let entries: Vec<Running> = self.waiting.drain(..count).collect();
        let rows: Vec<ScratchRow> = entries
            .iter()
            .map(|running| ScratchRow { row: running.row, length: running.search.prompt_len() })
            .collect();
        match device.load_scratch(&rows, needed) {
            Ok(()) => self.batch = Batch::Std { entries: entries.into_iter().map(Some).collect(), slots: needed },
            Err(message) => ended.extend(
                entries.iter().map(|running| Ended { row: running.row, result: Err(LlmError::Run(message.clone())) }),
            ),
        }
    }

    /// Scratch slots that a row needs for `count` of the waiting searches.
    fn slots(&self, first: usize, count: usize) -> usize {
        StdCall::slots_needed(self.waiting.iter().skip(first).take(count).map(|running| &running.search))
    }

    /// Whether the oldest `count` fit the scratch buffer together without too much padding.
    fn can_share(&self, count: usize, device: &dyn BeamDevice) -> bool {
        let slots = self.slots(0, count);
        let widths = self.waiting.iter().take(count).map(|running| running.search.width());
        let (widest, tokens) = widths.fold((0, 0), |(widest, tokens), width| (width.max(widest), tokens + width));
        let own_slots: usize = (0..count).map(|index| self.slots(index, 1)).sum();
        let padding = |used: usize, cells: usize| 1.0 - used as f64 / cells.max(1) as f64;
        let is_padded = padding(tokens, widest * count).max(padding(own_slots, slots * count)) > self.max_padding;
        !is_padded && device.scratch_rows(slots) >= count
    }
}

impl Batch {
    fn running(&self) -> Box<dyn Iterator<Item = &Running> + '_> {
        match self {
            Batch::None => Box::new(std::iter::empty()),
            Batch::Tree(running) => Box::new(std::iter::once(running)),
            Batch::Std { entries, .. } => Box::new(entries.iter().flatten()),
        }
    }

    fn drop_if_over(&mut self) {
        let over = matches!(self, Batch::Std { entries, .. } if entries.iter().all(Option::is_none));
        if over {
            *self = Batch::None;
        }
    }
}

/// One level of all searches of a batch.
fn step_std(entries: &mut [Option<Running>], slots: usize, device: &mut dyn BeamDevice, ended: &mut Vec<Ended>) {
    let searches: Vec<Option<&BeamSearch>> =
        entries.iter().map(|entry| entry.as_ref().map(|running| &running.search)).collect();
    let call = StdCall::of(&searches, slots);
    let wanted = call.logits_indices.len();
    let logits = match device.run_std(&call) {
        Ok(logits) if wanted > 0 && logits.len().is_multiple_of(wanted) => Ok(logits),
        Ok(logits) => Err(format!("{} logits for {wanted} beams", logits.len())),
        Err(message) => Err(message),
    };
    let mut rest = logits.as_ref().copied().unwrap_or(&[]);
    let vocabulary = rest.len() / wanted.max(1);
    for entry in entries {
        let Some(running) = entry else {
            continue;
        };
        let result = match &logits {
            Ok(_) => {
                let (own, others) = rest.split_at(running.search.width() * vocabulary);
                rest = others;
                running.search.accept(own)
            }
            Err(message) => Err(LlmError::Run(message.clone())),
        };
        if let Some(end) = end(running, result) {
            ended.push(end);
            *entry = None;
        }
    }
}

/// The end of a search, if this result is one.
fn end(running: &Running, result: Result<(), LlmError>) -> Option<Ended> {
    let result = match result {
        Ok(()) if running.search.width() > 0 => return None,
        Ok(()) => Ok(running.search.beams()),
        Err(error) => Err(error),
    };
    Some(Ended { row: running.row, result })
}
