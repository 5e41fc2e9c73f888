//! Beams on the device: the TREE graph on a row of the pool, the STD graph on scratch rows.
//!
//! In: calls of `beam`. Out: logits. Owned by [`Device`], which it extends; called by `beam::driver`. Both graphs share the
//! main graph's file of weights. The scratch buffer grows as searches need it, up to the size of the pool.

use std::path::Path;

use ort::environment::Environment;
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use ort::value::{PrimitiveTensorElementType, TensorElementType};

use super::beam::{BeamDevice, ScratchRow, StdCall, TreeCall};
use super::binding::{Binding, BufferId, Location, Memory, Span};
use super::device::{Backend, Device};
use super::graph::GraphDims;
use super::mirror::Mirrors;
use taiji_export::names;

/// File name of the graph for one search.
pub const TREE_FILE: &str = "graph.tree.onnx";
/// File name of the graph for several.
pub const STD_FILE: &str = "graph.std.onnx";

/// The graphs for beams and what they need beside the pool.
pub struct BeamGraphs {
    tree: Session,
    std: Option<Session>,
    mirrors: Mirrors,
    scratch: Scratch,
    eager: RunOptions<NoSelectedOutputs>,
}

/// Rows beside the pool, as many and as long as the searches of now need.
#[derive(Default)]
struct Scratch {
    /// Key and value buffer of every layer.
    cache: Vec<[BufferId; 2]>,
    /// As many zeros on the host, where it cannot reach the device.
    zeros: Option<BufferId>,
    /// Elements each buffer has room for.
    room: usize,
    rows: usize,
    slots: usize,
}

impl BeamGraphs {
    /// Opens the graphs that a model folder has; `None` without the TREE graph. They must be of the main graph's sizes.
    pub fn open(
        dir: &Path,
        dims: &GraphDims,
        open: impl Fn(&Path) -> Result<Session, String>,
    ) -> Result<Option<Self>, String> {
        let session = |file: &str, read: fn(&Session) -> Result<GraphDims, String>| {
            let path = dir.join(file);
            if !path.is_file() {
                return Ok(None);
            }
            let session = open(&path)?;
            let found = read(&session).map_err(|error| format!("{file}: {error}"))?;
            match found == *dims {
                true => Ok(Some(session)),
                false => Err(format!("{file} is not of the same export as graph.onnx: export all graphs together")),
            }
        };
        let Some(tree) = session(TREE_FILE, GraphDims::of_tree)? else { return Ok(None) };
        let std = session(STD_FILE, GraphDims::of_std)?;
        let text = |error: ort::Error| error.to_string();
        let mut eager = RunOptions::new().map_err(text)?;
        // Shapes change from call to call: nothing to capture, where decode steps are captured as CUDA graphs.
        eager.set("gpu_graph_id", "-1").map_err(text)?;
        Ok(Some(Self { tree, std, mirrors: Mirrors::default(), scratch: Scratch::default(), eager }))
    }
}

/// A graph call being made: inputs are written and bound one after the other.
struct Feed<'a> {
    memory: &'a mut Memory,
    environment: &'a Environment,
    binding: Binding,
    mirrors: &'a mut Mirrors,
}

impl Feed<'_> {
    /// Binds keys and values, `shape` from element `start` of every buffer on.
    fn cache(&mut self, cache: &[[BufferId; 2]], start: usize, shape: &[usize]) -> Result<(), ort::Error> {
        for (layer, buffers) in cache.iter().enumerate() {
            for (&buffer, part) in buffers.iter().zip(["key", "value"]) {
                let view = self.memory.view(buffer, start, shape)?;
                self.binding.input(&names::past(layer, part), &view)?;
                self.binding.output(&names::present(layer, part), &view)?;
            }
        }
        Ok(())
    }

    /// Writes and binds an input.
    fn input<T: PrimitiveTensorElementType + Copy>(
        &mut self,
        name: &'static str,
        values: &[T],
        shape: &[usize],
    ) -> Result<(), ort::Error> {
        let mirror = self.mirrors.at(self.memory, self.environment).write(name, values)?;
        self.binding.input(name, &self.memory.view(mirror.device, 0, shape)?)
    }

    /// The bias in the graph's own numbers.
    fn bias(&mut self, element: TensorElementType, values: &[f32], shape: &[usize]) -> Result<(), ort::Error> {
        const NAME: &str = names::ATTENTION_BIAS;
        match element {
            TensorElementType::Float16 => {
                // What is not seen would become infinite.
                let rounded = |&value: &f32| half::f16::from_f32(value.max(f32::from(half::f16::MIN)));
                self.input(NAME, &values.iter().map(rounded).collect::<Vec<_>>(), shape)
            }
            TensorElementType::Bfloat16 => {
                let rounded: Vec<half::bf16> = values.iter().map(|&value| half::bf16::from_f32(value)).collect();
                self.input(NAME, &rounded, shape)
            }
            _ => self.input(NAME, values, shape),
        }
    }

    /// Runs with room for `wanted` rows of logits and returns where they are.
    fn run(
        mut self,
        session: &mut Session,
        options: &RunOptions<NoSelectedOutputs>,
        shape: [usize; 2],
    ) -> Result<BufferId, ort::Error> {
        let elements = shape[0] * shape[1];
        let mirror = self.mirrors.room(self.memory, names::LOGITS, TensorElementType::Float32, elements)?;
        self.binding.output(names::LOGITS, &self.memory.view(mirror.device, 0, &shape)?)?;
        self.binding.run(session, self.memory, options)?;
        mirror.to_host(self.memory, self.environment, elements)?;
        Ok(mirror.host)
    }
}

impl Device {
    fn tree_call(&mut self, row: usize, call: &TreeCall) -> Result<&[f32], ort::Error> {
        let start = row * self.row_elements();
        let dims = self.dims;
        let cache_shape = [1, dims.kv_heads, self.shape().slots, dims.head];
        let Some(graphs) = &mut self.beams else { return Err(no_graph(TREE_FILE)) };
        let binding = Binding::new(&graphs.tree, &self.memory)?;
        let (memory, environment, mirrors) = (&mut self.memory, &self.environment, &mut graphs.mirrors);
        let mut feed = Feed { memory, environment, binding, mirrors };
        let (width, total) = (call.width, call.total());
        feed.cache(&self.cache, start, &cache_shape)?;
        feed.input(names::INPUT_IDS, &call.input_ids, &[1, width])?;
        feed.input(names::POSITION_IDS, &call.position_ids, &[1, width])?;
        feed.input(names::SEQLENS_K, &[total as i32 - 1], &[1])?;
        feed.input(names::TOTAL_SEQUENCE_LENGTH, &[total as i32], &[])?;
        feed.input(names::LOGITS_INDICES, &call.logits_indices, &[width])?;
        feed.bias(dims.element, &call.attention_bias, &[1, 1, width, total])?;
        let shape = [width, dims.vocabulary];
        let logits = feed.run(&mut graphs.tree, &graphs.eager, shape)?;
        Ok(&self.memory.read::<f32>(logits)?[..width * dims.vocabulary])
    }

    fn std_call(&mut self, call: &StdCall) -> Result<&[f32], ort::Error> {
        let dims = self.dims;
        let Some(BeamGraphs { std: Some(session), mirrors, scratch, eager, .. }) = &mut self.beams else {
            return Err(no_graph(STD_FILE));
        };
        if call.rows > scratch.rows || call.slots != scratch.slots {
            return Err(ort::Error::new("the scratch rows are of another shape"));
        }
        let binding = Binding::new(session, &self.memory)?;
        let mut feed = Feed { memory: &mut self.memory, environment: &self.environment, binding, mirrors };
        let (rows, width, wanted) = (call.rows, call.width, call.logits_indices.len());
        feed.cache(&scratch.cache, 0, &[rows, dims.kv_heads, call.slots, dims.head])?;
        feed.input(names::INPUT_IDS, &call.input_ids, &[rows, width])?;
        feed.input(names::POSITION_IDS, &call.position_ids, &[rows, width])?;
        feed.input(names::WRITE_INDICES, &call.write_indices, &[rows])?;
        feed.input(names::NONPAD_KV_SEQLEN, &call.nonpad_kv_seqlen, &[rows])?;
        feed.input(names::LOGITS_INDICES, &call.logits_indices, &[wanted])?;
        feed.bias(TensorElementType::Float32, &call.attention_bias, &[rows, 1, width, call.slots])?;
        let logits = feed.run(session, eager, [wanted, dims.vocabulary])?;
        Ok(&self.memory.read::<f32>(logits)?[..wanted * dims.vocabulary])
    }

    /// Makes room for scratch rows and clears what the prompts will not cover: what a search with broken numbers left would
    /// spread.
    fn shape_scratch(&mut self, prompts: &[ScratchRow], slots: usize) -> Result<(), ort::Error> {
        let (dims, rows) = (self.dims, prompts.len());
        let Some(BeamGraphs { scratch, .. }) = &mut self.beams else { return Err(no_graph(STD_FILE)) };
        let needed = rows * dims.kv_heads * slots * dims.head;
        if scratch.room < needed {
            let room = needed.next_power_of_two();
            scratch.cache.clear();
            for _ in 0..dims.layers {
                let mut buffer = || self.memory.allocate(Location::Device, dims.element, room);
                scratch.cache.push([buffer()?, buffer()?]);
            }
            if !self.memory.device_is_host() {
                scratch.zeros = Some(self.memory.allocate(Location::Host, dims.element, room)?);
            }
            scratch.room = room;
        }
        (scratch.rows, scratch.slots) = (rows, slots);
        let buffers = scratch.cache.iter().flatten();
        if let Some(zeros) = scratch.zeros {
            let span = |&buffer| Span { from: (zeros, 0), to: (buffer, 0), elements: needed };
            return self.memory.copy(&self.environment, &buffers.map(span).collect::<Vec<_>>());
        }
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.length).collect();
        let shape = [dims.kv_heads, slots, dims.head];
        for &buffer in buffers {
            match dims.element {
                TensorElementType::Float16 => clear_tails(self.memory.write(buffer)?, half::f16::ZERO, &lengths, shape),
                TensorElementType::Bfloat16 => {
                    clear_tails(self.memory.write(buffer)?, half::bf16::ZERO, &lengths, shape)
                }
                _ => clear_tails(self.memory.write(buffer)?, 0.0_f32, &lengths, shape),
            }
        }
        Ok(())
    }

    fn copy_prompts(&mut self, rows: &[ScratchRow], slots: usize) -> Result<(), ort::Error> {
        let Some(BeamGraphs { scratch, .. }) = &self.beams else { return Err(no_graph(STD_FILE)) };
        let row_elements = self.dims.kv_heads * slots * self.dims.head;
        let mut spans = Vec::new();
        for (&buffer, &target) in self.cache.iter().flatten().zip(scratch.cache.iter().flatten()) {
            for (index, from) in rows.iter().enumerate() {
                self.slot_spans(
                    (buffer, from.row * self.row_elements(), self.shape().slots),
                    (target, index * row_elements, slots),
                    from.length,
                    &mut spans,
                );
            }
        }
        self.memory.copy(&self.environment, &spans)
    }
}

impl BeamDevice for Device {
    fn run_tree(&mut self, row: usize, call: &TreeCall) -> Result<&[f32], String> {
        self.tree_call(row, call).map_err(|error| error.to_string())
    }

    fn scratch_rows(&self, slots: usize) -> usize {
        let has_std = self.beams.as_ref().is_some_and(|graphs| graphs.std.is_some());
        if has_std { self.shape().rows * self.shape().slots / slots.max(1) } else { 0 }
    }

    fn load_scratch(&mut self, rows: &[ScratchRow], slots: usize) -> Result<(), String> {
        self.shape_scratch(rows, slots).and_then(|()| self.copy_prompts(rows, slots)).map_err(|error| error.to_string())
    }

    fn run_std(&mut self, call: &StdCall) -> Result<&[f32], String> {
        self.std_call(call).map_err(|error| error.to_string())
    }
}

/// Fills rows `[heads, slots, width]` behind the first `length` slots of every head.
fn clear_tails<T: Copy>(values: &mut [T], zero: T, lengths: &[usize], [heads, slots, width]: [usize; 3]) {
    for (head, values) in values.chunks_mut(slots * width).take(lengths.len() * heads).enumerate() {
        values[lengths[head / heads] * width..].fill(zero);
    }
}

fn no_graph(file: &str) -> ort::Error {
    ort::Error::new(format!("the model has no {file}: export it with '--flavour gqa,tree,std'"))
}

#[cfg(test)]
mod tests;
