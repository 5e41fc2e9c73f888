//! Runs steps on the session, over key-value buffers that stay where they are.
//!
//! In: a `batch::Step`. Out: logits. Owned by the engine thread (`onnx`). One set of buffers per row bucket: the same
//! tensor is bound as `past` and as `present`, so that the attention kernel appends in place instead of copying it all.
//! The tensors are allocated by ONNX Runtime; the binding would silently copy borrowed ones.

use std::collections::BTreeMap;

use ort::session::{IoBinding, Session};
use ort::value::Tensor;

use super::batch::Step;
use super::graph::{GraphDims, past, present};

/// The session with its buffers.
pub struct Pool {
    session: Session,
    dims: GraphDims,
    /// Slots M of every row.
    slots: usize,
    buckets: BTreeMap<usize, Bucket>,
}

/// Buffers for one number of rows.
struct Bucket {
    binding: IoBinding,
    /// Bound in `binding` too, which shares ownership.
    logits: Tensor<f32>,
    logits_rows: usize,
}

impl Pool {
    /// Takes a session whose contract was checked; `slots` is the most tokens of a row.
    pub fn new(session: Session, dims: GraphDims, slots: usize) -> Self {
        Self { session, dims, slots, buckets: BTreeMap::new() }
    }

    /// Runs one step for `rows` rows; the result is [wanted rows, vocabulary].
    pub fn run(&mut self, rows: usize, step: &Step) -> Result<&[f32], ort::Error> {
        if !self.buckets.contains_key(&rows) {
            let made = Bucket::new(&self.session, &self.dims, rows, self.slots, 0.0)?;
            self.buckets.insert(rows, made);
        }
        let Some(bucket) = self.buckets.get_mut(&rows) else {
            return Err(ort::Error::new("the buffer is missing"));
        };
        bucket.bind(rows, step, self.dims.vocabulary)?;
        self.session.run_binding(&bucket.binding)?;
        Ok(bucket.logits.extract_tensor().1)
    }

    /// Forgets all buffers; the next run makes new ones. For use after a failure.
    pub fn reset(&mut self) {
        self.buckets.clear();
    }

    /// Makes the buffers of a bucket and fills them, to show that what they hold does not matter.
    #[cfg(test)]
    pub fn fill(&mut self, rows: usize, garbage: f32) -> Result<(), ort::Error> {
        let made = Bucket::new(&self.session, &self.dims, rows, self.slots, garbage)?;
        self.buckets.insert(rows, made);
        Ok(())
    }
}

impl Bucket {
    fn new(session: &Session, dims: &GraphDims, rows: usize, slots: usize, content: f32) -> Result<Self, ort::Error> {
        let mut binding = session.create_binding()?;
        let shape = [rows, dims.kv_heads, slots, dims.head];
        for layer in 0..dims.layers {
            for part in ["key", "value"] {
                let mut buffer = Tensor::<f32>::new(session.allocator(), shape)?;
                buffer.extract_tensor_mut().1.fill(content);
                binding.bind_input(past(layer, part), &buffer)?;
                binding.bind_output(present(layer, part), &mut buffer)?;
            }
        }
        let logits = Tensor::<f32>::new(session.allocator(), [rows, dims.vocabulary])?;
        Ok(Self { binding, logits, logits_rows: 0 })
    }

    fn bind(&mut self, rows: usize, step: &Step, vocabulary: usize) -> Result<(), ort::Error> {
        let wanted = step.logits_indices.len();
        let scalar: [i64; 0] = [];
        let binding = &mut self.binding;
        binding.bind_input("input_ids", &Tensor::from_array(([rows, step.width], step.input_ids.clone()))?)?;
        binding.bind_input("seqlens_k", &Tensor::from_array(([rows], step.seqlens.clone()))?)?;
        binding.bind_input("total_sequence_length", &Tensor::from_array((scalar, vec![step.total]))?)?;
        binding.bind_input("logits_indices", &Tensor::from_array(([wanted], step.logits_indices.clone()))?)?;
        if self.logits_rows != wanted {
            self.logits = Tensor::<f32>::new(&ort::memory::Allocator::default(), [wanted, vocabulary])?;
            binding.bind_output("logits", &mut self.logits)?;
            self.logits_rows = wanted;
        }
        Ok(())
    }
}
