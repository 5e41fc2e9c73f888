//! The graph with its key-value pool: runs calls on rows of the pool, in place, on CPU or CUDA.
//!
//! In: a [`Call`] (host-side inputs for rows `[first, first + rows)`). Out: logits. Owned by the engine thread; called by
//! `schedule` through [`Backend`]. Each layer has one key and one value buffer [rows, K, slots, hd]; a call binds the slice
//! of its rows both as `past` and as `present`, so that attention appends in place and nothing is copied (note onnx 3.2).
//! On CUDA the inputs have device buffers that are overwritten in place, which is also what a captured CUDA graph needs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use ort::environment::Environment;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use ort::value::TensorElementType;

use super::beam::BeamDevice;
use super::binding::{Binding, BufferId, Location, Memory, Span};
use super::device_beam::BeamGraphs;
use super::graph::GraphDims;
use super::mirror::{Mirror, Mirrors};
use crate::onnx::runtime::{self, Provider};
use taiji_export::names;

/// Bindings kept; beyond that all are made anew (they cost some 100 µs each).
const MAX_BINDINGS: usize = 96;

/// Sizes of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Rows, and so most requests at once.
    pub rows: usize,
    /// Slots (tokens) of a row.
    pub slots: usize,
    /// Width of the logits.
    pub vocabulary: usize,
}

/// One graph call on the rows `[first, first + rows)`: host inputs of the contract (see `graph`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Call {
    /// First row of the pool.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Tokens a row.
    pub width: usize,
    /// Token ids, [rows, width], padded on the right with 0.
    pub input_ids: Vec<i64>,
    /// Per row: tokens in the row after the call, minus 1.
    pub seqlens: Vec<i32>,
    /// Longest row after the call. `width` = the rows are read from their start.
    pub total: i32,
    /// Flat positions in rows * width at which logits are wanted.
    pub logits_indices: Vec<i64>,
}

/// What the scheduler needs of a device. The real one is [`Device`]; property tests have one that remembers tokens.
pub trait Backend: Send {
    /// Sizes of the pool.
    fn shape(&self) -> PoolShape;

    /// Runs a call; the result is [wanted positions, vocabulary].
    fn run(&mut self, call: &Call) -> Result<&[f32], String>;

    /// Copies the first `tokens` slots of a row over another row.
    fn copy_row(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), String>;

    /// Copies them for a second reader: the first row is still needed.
    fn share_row(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), String> {
        self.copy_row(from, to, tokens)
    }

    /// Exchanges the first `tokens` slots of two rows.
    fn swap_rows(&mut self, one: usize, other: usize, tokens: usize) -> Result<(), String>;

    /// Keeps the first `tokens` slots of a row as the prefix, replacing an earlier one.
    fn save_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String>;

    /// Writes the first `tokens` slots of the prefix into a row.
    fn load_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String>;

    /// Rows of a decode call for so many rows: the same, or the next CUDA graph bucket.
    fn decode_bucket(&self, rows: usize) -> usize {
        rows
    }

    /// Whether decode calls must be alike but for the buffers' contents (captured graphs).
    fn has_fixed_steps(&self) -> bool {
        false
    }

    /// Forgets half-made state after a panic; what the rows hold does not matter any more.
    fn reset(&mut self) {}

    /// Beams, where the device has graphs for them.
    fn beams(&mut self) -> Option<&mut dyn BeamDevice> {
        None
    }
}

/// How to set a device up.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// Rows of the pool.
    pub rows: usize,
    /// Slots of a row.
    pub slots: usize,
    /// Where the session computes.
    pub provider: Provider,
}

/// A session with its pool.
pub struct Device {
    pub(super) environment: Environment,
    session: Session,
    pub(super) dims: GraphDims,
    options: DeviceOptions,
    pub(super) memory: Memory,
    /// Key and value buffer of every layer.
    pub(super) cache: Vec<[BufferId; 2]>,
    /// Room for one row of one layer, for exchanging rows.
    spare: BufferId,
    prefix: Option<Prefix>,
    mirrors: Mirrors,
    bindings: HashMap<(usize, usize), Bound>,
    eager: RunOptions<NoSelectedOutputs>,
    /// By rows and edition of the buffers: a captured graph reads and writes the addresses it was captured with.
    captured: HashMap<(usize, usize), RunOptions<NoSelectedOutputs>>,
    pub(super) beams: Option<BeamGraphs>,
}

struct Prefix {
    slots: usize,
    cache: Vec<[BufferId; 2]>,
}

/// An input's name, where it is, and its shape.
type Bindable = (&'static str, Mirror, Vec<usize>);

/// A binding with its rows' cache bound, and the shapes of what else is bound.
struct Bound {
    binding: Binding,
    shapes: Option<(usize, usize, usize)>,
}

impl Device {
    /// Makes the pool of a checked session. Fails, saying how much is missing, when memory does not suffice.
    pub fn new(
        environment: Environment,
        session: Session,
        dims: GraphDims,
        options: DeviceOptions,
    ) -> Result<Self, String> {
        let text = |error: ort::Error| error.to_string();
        let needed = dims.pool_bytes(options.rows, options.slots);
        if options.provider == Provider::Cpu {
            runtime::check_memory(needed, options.rows, options.slots)?;
        }
        let mut memory = Memory::new(device_allocator(&session, options.provider).map_err(text)?);
        let row = dims.kv_heads * options.slots * dims.head;
        let mut buffer = |elements| {
            memory
                .allocate(Location::Device, dims.element, elements)
                .map_err(|error| format!("the key-value pool of {} MiB does not fit the device: {error}", needed >> 20))
        };
        let mut cache = Vec::with_capacity(dims.layers);
        for _ in 0..dims.layers {
            cache.push([buffer(options.rows * row)?, buffer(options.rows * row)?]);
        }
        let spare = buffer(row)?;
        let mut eager = RunOptions::new().map_err(text)?;
        if options.provider.captures_graphs() {
            eager.set("gpu_graph_id", "-1").map_err(text)?;
        }
        Ok(Self {
            environment,
            session,
            dims,
            options,
            memory,
            cache,
            spare,
            prefix: None,
            mirrors: Mirrors::default(),
            bindings: HashMap::new(),
            eager,
            captured: HashMap::new(),
            beams: None,
        })
    }

    /// Adds the graphs for beams.
    pub fn set_beams(&mut self, graphs: Option<BeamGraphs>) {
        self.beams = graphs;
    }

    /// Whether the model has a graph for beams.
    pub fn has_beams(&self) -> bool {
        self.beams.is_some()
    }

    /// Fills the pool, to show that what unused slots hold does not matter.
    #[cfg(test)]
    pub fn fill(&mut self, content: f32) -> Result<(), ort::Error> {
        for &buffer in self.cache.iter().flatten() {
            match self.dims.element {
                TensorElementType::Float16 => self.memory.write(buffer)?.fill(half::f16::from_f32(content)),
                _ => self.memory.write(buffer)?.fill(content),
            }
        }
        Ok(())
    }

    fn run_call(&mut self, call: &Call) -> Result<&[f32], ort::Error> {
        let vocabulary = self.dims.vocabulary;
        let wanted = call.logits_indices.len();
        let inputs = self.write_inputs(call)?;
        let logits =
            self.mirrors.room(&mut self.memory, names::LOGITS, TensorElementType::Float32, wanted * vocabulary)?;
        let key = (call.first, call.rows);
        if !self.bindings.contains_key(&key) {
            if self.bindings.len() >= MAX_BINDINGS {
                self.bindings.clear();
            }
            let made = self.bind_rows(call.first, call.rows)?;
            self.bindings.insert(key, made);
        }
        let Some(bound) = self.bindings.get_mut(&key) else {
            return Err(ort::Error::new("the binding is missing"));
        };
        let shapes = Some((call.width, wanted, self.mirrors.edition()));
        if bound.shapes != shapes {
            for (name, mirror, shape) in &inputs {
                bound.binding.input(name, &self.memory.view(mirror.device, 0, shape)?)?;
            }
            bound.binding.output(names::LOGITS, &self.memory.view(logits.device, 0, &[wanted, vocabulary])?)?;
            bound.shapes = shapes;
        }
        let options = match call.width == 1 && self.options.provider.captures_graphs() && call.first == 0 {
            true => captured(&mut self.captured, call.rows, self.mirrors.edition(), self.options.rows)?,
            false => &self.eager,
        };
        bound.binding.run(&mut self.session, &mut self.memory, options)?;
        logits.to_host(&mut self.memory, &self.environment, wanted * vocabulary)?;
        Ok(&self.memory.read::<f32>(logits.host)?[..wanted * vocabulary])
    }

    /// Writes a call's inputs; where they are, and their shapes.
    fn write_inputs(&mut self, call: &Call) -> Result<[Bindable; 4], ort::Error> {
        let mut at = self.mirrors.at(&mut self.memory, &self.environment);
        let shape = vec![call.rows, call.width];
        Ok([
            (names::INPUT_IDS, at.write(names::INPUT_IDS, &call.input_ids)?, shape),
            (names::SEQLENS_K, at.write(names::SEQLENS_K, &call.seqlens)?, vec![call.rows]),
            (names::TOTAL_SEQUENCE_LENGTH, at.write_host(names::TOTAL_SEQUENCE_LENGTH, &[call.total])?, vec![]),
            (
                names::LOGITS_INDICES,
                at.write(names::LOGITS_INDICES, &call.logits_indices)?,
                vec![call.logits_indices.len()],
            ),
        ])
    }

    fn bind_rows(&self, first: usize, rows: usize) -> Result<Bound, ort::Error> {
        let mut binding = Binding::new(&self.session, &self.memory)?;
        let shape = [rows, self.dims.kv_heads, self.options.slots, self.dims.head];
        let start = first * self.row_elements();
        for (layer, buffers) in self.cache.iter().enumerate() {
            for (&buffer, part) in buffers.iter().zip(["key", "value"]) {
                let view = self.memory.view(buffer, start, &shape)?;
                binding.input(&names::past(layer, part), &view)?;
                binding.output(&names::present(layer, part), &view)?;
            }
        }
        Ok(Bound { binding, shapes: None })
    }

    /// Elements of one row of one cache buffer.
    pub(super) fn row_elements(&self) -> usize {
        self.dims.kv_heads * self.options.slots * self.dims.head
    }

    /// The first `tokens` slots of every head, from one place to another; a place is its buffer, its first element, and
    /// the slots between two of its heads.
    pub(super) fn slot_spans(
        &self,
        from: (BufferId, usize, usize),
        to: (BufferId, usize, usize),
        tokens: usize,
        spans: &mut Vec<Span>,
    ) {
        let head = self.dims.head;
        for index in 0..self.dims.kv_heads {
            spans.push(Span {
                from: (from.0, from.1 + index * from.2 * head),
                to: (to.0, to.1 + index * to.2 * head),
                elements: tokens * head,
            });
        }
    }

    fn row(&self, buffer: BufferId, row: usize) -> (BufferId, usize, usize) {
        (buffer, row * self.row_elements(), self.options.slots)
    }

    fn copy(&mut self, spans: &[Span]) -> Result<(), String> {
        self.memory.copy(&self.environment, spans).map_err(|error| error.to_string())
    }
}

impl Backend for Device {
    fn shape(&self) -> PoolShape {
        PoolShape { rows: self.options.rows, slots: self.options.slots, vocabulary: self.dims.vocabulary }
    }

    fn run(&mut self, call: &Call) -> Result<&[f32], String> {
        self.run_call(call).map_err(|error| error.to_string())
    }

    fn copy_row(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), String> {
        let mut spans = Vec::new();
        for &buffer in self.cache.iter().flatten() {
            self.slot_spans(self.row(buffer, from), self.row(buffer, to), tokens, &mut spans);
        }
        self.copy(&spans)
    }

    fn swap_rows(&mut self, one: usize, other: usize, tokens: usize) -> Result<(), String> {
        let mut spans = Vec::new();
        let spare = (self.spare, 0, self.options.slots);
        for &buffer in self.cache.iter().flatten() {
            let (left, right) = (self.row(buffer, one), self.row(buffer, other));
            for (from, to) in [(left, spare), (right, left), (spare, right)] {
                self.slot_spans(from, to, tokens, &mut spans);
            }
        }
        // One call would let a device reorder the three steps of a layer.
        spans.chunks(self.dims.kv_heads).try_for_each(|step| self.copy(step))
    }

    fn save_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String> {
        let elements = self.dims.kv_heads * tokens * self.dims.head;
        let reusable = self.prefix.take().filter(|prefix| prefix.slots == tokens);
        let kept = match reusable {
            Some(prefix) => prefix.cache,
            None => {
                let mut made = Vec::with_capacity(self.dims.layers);
                for _ in 0..self.dims.layers {
                    let mut buffer = || self.memory.allocate(Location::Device, self.dims.element, elements);
                    let error = |error: ort::Error| error.to_string();
                    made.push([buffer().map_err(error)?, buffer().map_err(error)?]);
                }
                made
            }
        };
        let mut spans = Vec::new();
        for (&buffer, &target) in self.cache.iter().flatten().zip(kept.iter().flatten()) {
            self.slot_spans(self.row(buffer, row), (target, 0, tokens), tokens, &mut spans);
        }
        self.copy(&spans)?;
        self.prefix = Some(Prefix { slots: tokens, cache: kept });
        Ok(())
    }

    fn load_prefix(&mut self, row: usize, tokens: usize) -> Result<(), String> {
        let prefix = self.prefix.as_ref().filter(|prefix| tokens <= prefix.slots).ok_or("there is no such prefix")?;
        let mut spans = Vec::new();
        for (&buffer, &source) in self.cache.iter().flatten().zip(prefix.cache.iter().flatten()) {
            self.slot_spans((source, 0, prefix.slots), self.row(buffer, row), tokens, &mut spans);
        }
        self.copy(&spans)
    }

    fn decode_bucket(&self, rows: usize) -> usize {
        match self.options.provider.captures_graphs() {
            true => rows.next_power_of_two().min(self.options.rows),
            false => rows,
        }
    }

    fn has_fixed_steps(&self) -> bool {
        self.options.provider.captures_graphs()
    }

    fn reset(&mut self) {
        self.bindings.clear();
    }

    fn beams(&mut self) -> Option<&mut dyn BeamDevice> {
        self.has_beams().then_some(self as &mut dyn BeamDevice)
    }
}

/// Run options that capture, then replay, the CUDA graph of a decode bucket.
fn captured(
    all: &mut HashMap<(usize, usize), RunOptions<NoSelectedOutputs>>,
    rows: usize,
    edition: usize,
    most_rows: usize,
) -> Result<&RunOptions<NoSelectedOutputs>, ort::Error> {
    match all.entry((rows, edition)) {
        Entry::Occupied(kept) => Ok(kept.into_mut()),
        Entry::Vacant(place) => {
            let mut made = RunOptions::new()?;
            made.set("gpu_graph_id", (edition * (most_rows + 1) + rows).to_string())?;
            Ok(place.insert(made))
        }
    }
}

fn device_allocator(session: &Session, provider: Provider) -> Result<Allocator, ort::Error> {
    match provider {
        Provider::Cpu => Ok(Allocator::default()),
        Provider::Cuda { device, .. } => {
            let info = MemoryInfo::new(AllocationDevice::CUDA, device, AllocatorType::Device, MemoryType::Default)?;
            Allocator::new(session, info)
        }
    }
}
