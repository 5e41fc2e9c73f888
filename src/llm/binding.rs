//! Memory that a graph reads and writes in place: the one `unsafe` seam of `llm`.
//!
//! In: an opened session. Out: [`Memory`] (buffers on the session's device), [`View`] (a tensor over part of a buffer) and
//! [`Binding`] (which view stands behind which input and output). Called by `device` only.
//!
//! Why not `ort`'s own types: its `bind_input` copies any tensor over borrowed memory, and `bind_output` refuses one, so
//! that a row of the key-value pool could be neither read nor written in place (note onnx 4.1).
//!
//! Soundness: all access to a buffer goes through `&mut Memory` (reading on the host: `&Memory`), and a run needs
//! `&mut Memory`, too. A view or binding names its memory by a number that no other memory has; using it with another one
//! is refused. Buffers live as long as their memory, so a view that is used has its bytes.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ort::environment::Environment;
use ort::memory::Allocator;
use ort::session::{IoBinding, NoSelectedOutputs, RunOptions, Session};
use ort::value::{DynTensor, PrimitiveTensorElementType, TensorElementType};
use ort::{AsPointer, ortsys};

static NEXT_MEMORY: AtomicU64 = AtomicU64::new(1);

/// Buffers on the host and on a session's device, freed together. On a CPU both are the same.
pub struct Memory {
    number: u64,
    host: Allocator,
    device: Allocator,
    buffers: Vec<DynTensor>,
}

/// Where a buffer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// Readable and writable here.
    Host,
    /// Where the graph computes.
    Device,
}

/// A buffer of a [`Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferId(usize);

/// Elements to copy from a place in one buffer to a place in another.
#[derive(Debug)]
pub struct Span {
    /// Buffer and first element.
    pub from: (BufferId, usize),
    /// Buffer and first element.
    pub to: (BufferId, usize),
    /// How many.
    pub elements: usize,
}

/// A tensor over part of a buffer; owns no bytes.
pub struct View {
    value: NonNull<ort::sys::OrtValue>,
    memory: u64,
}

/// Views bound to a session's inputs and outputs.
pub struct Binding {
    inner: IoBinding,
    memory: u64,
}

// SAFETY: an OrtValue over foreign memory is a plain description (device, address, shape) without thread affinity; it is
// only handed to ONNX Runtime through `&Memory` or `&mut Memory`, one thread at a time.
unsafe impl Send for View {}

impl Memory {
    /// No buffers yet; `device` says where those of [`Location::Device`] will be.
    pub fn new(device: Allocator) -> Self {
        let number = NEXT_MEMORY.fetch_add(1, Ordering::Relaxed);
        Self { number, host: Allocator::default(), device, buffers: Vec::new() }
    }

    /// Whether the host reads and writes the device's buffers directly.
    pub fn device_is_host(&self) -> bool {
        self.device.memory_info().is_cpu_accessible()
    }

    /// Adds a buffer of so many elements. What the host can reach is filled with zeros.
    pub fn allocate(
        &mut self,
        place: Location,
        element: TensorElementType,
        elements: usize,
    ) -> Result<BufferId, ort::Error> {
        let allocator = match place {
            Location::Host => &self.host,
            Location::Device => &self.device,
        };
        let mut tensor = DynTensor::new(allocator, element, [elements])?;
        if tensor.memory_info().is_cpu_accessible() {
            let bytes = element.byte_size(elements).ok_or_else(|| ort::Error::new("element without a size"))?;
            // SAFETY: the tensor was just allocated with `bytes` bytes of host memory, nothing else points at it, and all
            // zeros are a value of every element type used here.
            unsafe { std::ptr::write_bytes(tensor.data_ptr_mut().cast::<u8>(), 0, bytes) };
        }
        self.buffers.push(tensor);
        Ok(BufferId(self.buffers.len() - 1))
    }

    /// A buffer's elements, on the host only.
    pub fn read<T: PrimitiveTensorElementType>(&self, buffer: BufferId) -> Result<&[T], ort::Error> {
        Ok(self.buffers[buffer.0].try_extract_tensor::<T>()?.1)
    }

    /// The same to write.
    pub fn write<T: PrimitiveTensorElementType>(&mut self, buffer: BufferId) -> Result<&mut [T], ort::Error> {
        Ok(self.buffers[buffer.0].try_extract_tensor_mut::<T>()?.1)
    }

    /// A tensor of this shape over the elements of a buffer from `start` on.
    pub fn view(&self, buffer: BufferId, start: usize, shape: &[usize]) -> Result<View, ort::Error> {
        let tensor = &self.buffers[buffer.0];
        let element = *tensor.data_type();
        let held = tensor.shape().iter().product::<i64>() as usize;
        let elements: usize = shape.iter().product();
        let size = |count| element.byte_size(count).ok_or_else(|| ort::Error::new("element without a size"));
        if start + elements > held {
            let message = format!("a view of {elements} elements from {start} leaves its buffer of {held}");
            return Err(ort::Error::new(message));
        }
        let dimensions: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        // SAFETY: `start + elements <= held` was checked, so the address stays inside the buffer.
        let data = unsafe { tensor.data_ptr().cast::<u8>().add(size(start)?) };
        let mut value = std::ptr::null_mut();
        // SAFETY: the memory info describes the buffer's device; data and length lie inside the buffer, which lives as long
        // as this memory; the shape is copied by the call. The value owns nothing, so it may outlive the buffer unused.
        ortsys![unsafe CreateTensorWithDataAsOrtValue(
            tensor.memory_info().ptr(), data.cast_mut().cast(), size(elements)?,
            dimensions.as_ptr(), dimensions.len(), element.into(), &mut value)?];
        let value = NonNull::new(value).ok_or_else(|| ort::Error::new("no tensor was made"))?;
        Ok(View { value, memory: self.number })
    }

    /// Copies elements between buffers of one element type, in order. Ranges of one buffer must not overlap.
    pub fn copy(&mut self, environment: &Environment, spans: &[Span]) -> Result<(), ort::Error> {
        let on_host = |buffer: BufferId| self.buffers[buffer.0].memory_info().is_cpu_accessible();
        if spans.iter().all(|copy| on_host(copy.from.0) && on_host(copy.to.0)) {
            return spans.iter().try_for_each(|copy| self.copy_on_host(copy));
        }
        let views = |end: fn(&Span) -> (BufferId, usize)| -> Result<Vec<View>, ort::Error> {
            spans.iter().map(|copy| self.view(end(copy).0, end(copy).1, &[copy.elements])).collect()
        };
        let (from, to) = (views(|copy| copy.from)?, views(|copy| copy.to)?);
        let sources: Vec<*const ort::sys::OrtValue> =
            from.iter().map(|view| view.value.as_ptr().cast_const()).collect();
        let mut targets: Vec<*const ort::sys::OrtValue> =
            to.iter().map(|view| view.value.as_ptr().cast_const()).collect();
        // SAFETY: all pointers are live values of views inside their buffers; the runtime compares shapes and types and
        // refuses a mismatch; a null stream makes the copy synchronous; `&mut self` keeps everybody else away.
        ortsys![unsafe CopyTensors(
            environment.ptr().cast_mut(), sources.as_ptr(), targets.as_mut_ptr(), std::ptr::null_mut(), sources.len())?];
        Ok(())
    }

    fn copy_on_host(&mut self, copy: &Span) -> Result<(), ort::Error> {
        let (source, target) = (&self.buffers[copy.from.0.0], &self.buffers[copy.to.0.0]);
        let element = *source.data_type();
        let held = |tensor: &DynTensor| tensor.shape().iter().product::<i64>() as usize;
        let fits = copy.from.1 + copy.elements <= held(source) && copy.to.1 + copy.elements <= held(target);
        if !fits || element != *target.data_type() {
            return Err(ort::Error::new("a copy leaves its buffer or changes the element type"));
        }
        let size = |count| element.byte_size(count).ok_or_else(|| ort::Error::new("element without a size"));
        let (from_byte, to_byte, bytes) = (size(copy.from.1)?, size(copy.to.1)?, size(copy.elements)?);
        // SAFETY: both ranges lie inside their host buffers (checked above); `copy` may overlap; `&mut self` excludes every
        // other access to the bytes.
        unsafe {
            let from = source.data_ptr().cast::<u8>().add(from_byte);
            let to = target.data_ptr().cast::<u8>().cast_mut().add(to_byte);
            std::ptr::copy(from, to, bytes);
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the value was made by `Memory::view` and is released once; bindings hold their own reference.
        ortsys![unsafe ReleaseValue(self.value.as_ptr())];
    }
}

impl Binding {
    /// Nothing bound yet; takes views of `memory`.
    pub fn new(session: &Session, memory: &Memory) -> Result<Self, ort::Error> {
        Ok(Self { inner: session.create_binding()?, memory: memory.number })
    }

    /// Binds an input. Where the graph wants the input on the view's device this is a reference: what the buffer holds when
    /// the graph runs counts. Else the runtime copies it now.
    pub fn input(&mut self, name: &str, view: &View) -> Result<(), ort::Error> {
        self.check(view)?;
        let name = CString::new(name).map_err(|error| ort::Error::new(error.to_string()))?;
        // SAFETY: binding and value are live; the runtime takes its own reference to the value.
        ortsys![unsafe BindInput(self.inner.ptr_mut(), name.as_ptr(), view.value.as_ptr())?];
        Ok(())
    }

    /// Binds an output: the graph writes into the view's buffer.
    pub fn output(&mut self, name: &str, view: &View) -> Result<(), ort::Error> {
        self.check(view)?;
        let name = CString::new(name).map_err(|error| ort::Error::new(error.to_string()))?;
        // SAFETY: as for `input`; the buffer is written only in `run`, which has the memory exclusively.
        ortsys![unsafe BindOutput(self.inner.ptr_mut(), name.as_ptr(), view.value.as_ptr())?];
        Ok(())
    }

    /// Runs the graph on what is bound.
    pub fn run(
        &self,
        session: &mut Session,
        memory: &mut Memory,
        options: &RunOptions<NoSelectedOutputs>,
    ) -> Result<(), ort::Error> {
        if memory.number != self.memory {
            return Err(ort::Error::new("the binding belongs to another memory"));
        }
        // Nothing was bound through `ort` itself, so it returns no outputs.
        session.run_binding_with_options(&self.inner, options)?;
        Ok(())
    }

    fn check(&self, view: &View) -> Result<(), ort::Error> {
        match view.memory == self.memory {
            true => Ok(()),
            false => Err(ort::Error::new("the view belongs to another memory")),
        }
    }
}

/// Run under valgrind by `make memcheck`.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use TensorElementType::{Float32, Int32, Int64};

    use super::*;
    use crate::llm::graph::GraphDims;
    use crate::onnx::runtime;
    use taiji_export::names;
    use taiji_export::{ExportOptions, GRAPH_FILE, export};

    fn environment() -> Environment {
        runtime::environment(None).unwrap()
    }

    #[test]
    fn copies_stay_inside_their_buffers() {
        let environment = environment();
        let mut memory = Memory::new(Allocator::default());
        let (one, other) = (
            memory.allocate(Location::Host, Float32, 8).unwrap(),
            memory.allocate(Location::Device, Float32, 4).unwrap(),
        );
        let integers = memory.allocate(Location::Host, Int32, 8).unwrap();
        assert_eq!(memory.read::<f32>(one).unwrap(), [0.0; 8]);
        memory.write::<f32>(one).unwrap().copy_from_slice(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let span = |from, to, elements| Span { from, to, elements };
        memory.copy(&environment, &[span((one, 5), (other, 1), 3), span((one, 0), (other, 0), 1)]).unwrap();
        assert_eq!(memory.read::<f32>(other).unwrap(), [0.0, 5.0, 6.0, 7.0]);
        for wrong in [span((one, 6), (other, 0), 3), span((one, 0), (other, 2), 3), span((one, 0), (integers, 0), 1)] {
            assert!(memory.copy(&environment, &[wrong]).is_err());
        }
        assert!(memory.view(one, 6, &[3]).is_err());
        assert!(memory.read::<i64>(one).is_err(), "another element type");
    }

    #[test]
    fn views_and_bindings_keep_to_their_memory() {
        let folder = model();
        let mut session = runtime::open_session(&environment(), &folder.path().join(GRAPH_FILE), 1).unwrap();
        let (mut memory, mut foreign) = (Memory::new(Allocator::default()), Memory::new(Allocator::default()));
        let buffer = foreign.allocate(Location::Host, Int64, 4).unwrap();
        memory.allocate(Location::Host, Int64, 4).unwrap();
        let view = foreign.view(buffer, 0, &[1, 4]).unwrap();
        let mut binding = Binding::new(&session, &memory).unwrap();
        assert!(binding.input("input_ids", &view).is_err() && binding.output("logits", &view).is_err());
        assert!(binding.run(&mut session, &mut foreign, &RunOptions::new().unwrap()).is_err());
    }

    fn model() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = testkit::fixture("qwen2");
        export(&checkpoint, folder.path(), &ExportOptions::default()).unwrap();
        folder
    }

    /// A prompt written into the middle row of a pool, in place: its neighbours stay as they are, and the views may go
    /// before the binding runs.
    #[test]
    fn a_graph_writes_its_slice_and_nothing_else() {
        let folder = model();
        let mut session = runtime::open_session(&environment(), &folder.path().join(GRAPH_FILE), 1).unwrap();
        let dims = GraphDims::of(&session).unwrap();
        let (rows, slots, tokens) = (3, 8, 4);
        let row = dims.kv_heads * slots * dims.head;
        let mut memory = Memory::new(Allocator::default());
        let mut binding = Binding::new(&session, &memory).unwrap();
        let mut cache = Vec::new();
        for layer in 0..dims.layers {
            for part in ["key", "value"] {
                let buffer = memory.allocate(Location::Device, Float32, rows * row).unwrap();
                memory.write::<f32>(buffer).unwrap().fill(7.0);
                let view = memory.view(buffer, row, &[1, dims.kv_heads, slots, dims.head]).unwrap();
                binding.input(&names::past(layer, part), &view).unwrap();
                binding.output(&names::present(layer, part), &view).unwrap();
                cache.push(buffer);
            }
        }
        let ids = memory.allocate(Location::Host, Int64, tokens).unwrap();
        memory.write::<i64>(ids).unwrap().copy_from_slice(&[3, 9, 27, 81]);
        let [seqlens, total] = [3, 4].map(|number| {
            let buffer = memory.allocate(Location::Host, Int32, 1).unwrap();
            memory.write::<i32>(buffer).unwrap()[0] = number;
            buffer
        });
        let indices = memory.allocate(Location::Host, Int64, 1).unwrap();
        memory.write::<i64>(indices).unwrap()[0] = 3;
        let logits = memory.allocate(Location::Host, Float32, dims.vocabulary).unwrap();
        binding.input("input_ids", &memory.view(ids, 0, &[1, tokens]).unwrap()).unwrap();
        binding.input("seqlens_k", &memory.view(seqlens, 0, &[1]).unwrap()).unwrap();
        binding.input("total_sequence_length", &memory.view(total, 0, &[]).unwrap()).unwrap();
        binding.input("logits_indices", &memory.view(indices, 0, &[1]).unwrap()).unwrap();
        binding.output("logits", &memory.view(logits, 0, &[1, dims.vocabulary]).unwrap()).unwrap();
        binding.run(&mut session, &mut memory, &RunOptions::new().unwrap()).unwrap();

        let found = memory.read::<f32>(logits).unwrap();
        assert!(found.iter().all(|logit| logit.is_finite()) && found.iter().any(|&logit| logit != 0.0));
        for buffer in cache {
            let held = memory.read::<f32>(buffer).unwrap();
            for (index, &value) in held.iter().enumerate() {
                let slot = index % (slots * dims.head) / dims.head;
                let is_written = index / row == 1 && slot < tokens;
                assert_eq!(value != 7.0, is_written, "element {index}");
            }
        }
    }
}
