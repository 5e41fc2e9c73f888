//! What everything that is trained has in common: named parameters, their place on the tape, and files of named tensors.
//!
//! In: tensors. Out: [`Module`] (read by `fit`, which trains it and knows nothing else of it) and [`TensorFile`] (read and
//! written by checkpoints and resumable states). Uses nothing else of this crate.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result, Shape, Storage, Tensor, Var, bail};

pub mod tensor_file;

pub use tensor_file::{FileError, TensorFile};

/// One tensor that can be trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name, one of a kind in its module.
    pub name: String,
    /// Value, f32.
    pub var: Var,
    /// Weight decay applies: matrices yes, norms and biases no.
    pub decay: bool,
}

/// Something that can be trained.
pub trait Module {
    /// Every parameter, frozen ones included, in a fixed order.
    fn parameters(&self) -> Vec<Parameter>;

    /// Takes the parameters whose names `frozen` accepts off the tape and puts all others on it. No gradient is made for a
    /// parameter off the tape, and what lies before the first one on it costs no tape at all.
    fn freeze(&self, frozen: &dyn Fn(&str) -> bool);
}

/// A tensor of a module. Operations take it as the tensor it is, on the tape unless it is frozen.
#[derive(Debug)]
pub struct Weight {
    var: Var,
    /// The same values off the tape.
    off_tape: Tensor,
    frozen: AtomicBool,
}

impl Weight {
    /// A weight on the tape with a copy of these values.
    pub fn new(values: &Tensor) -> Result<Self> {
        let var = Var::from_tensor(values)?;
        Ok(Self { off_tape: var.as_detached_tensor(), var, frozen: AtomicBool::new(false) })
    }

    /// The variable, whether frozen or not.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The tensor as operations take it: on the tape unless it is frozen.
    pub fn on_tape(&self) -> Tensor {
        self.deref().clone()
    }

    /// The same values off the tape.
    pub fn off_tape(&self) -> Tensor {
        self.off_tape.clone()
    }

    /// Takes it off the tape or puts it back.
    pub fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }
}

impl Deref for Weight {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        if self.frozen.load(Ordering::Relaxed) { &self.off_tape } else { self.var.as_tensor() }
    }
}

/// Runs `job` on the values of a contiguous f32 CPU tensor, without a copy.
pub fn with_values<R>(tensor: &Tensor, job: impl FnOnce(&[f32]) -> R) -> Result<R> {
    if tensor.dtype() != DType::F32 {
        bail!("the trainer's kernels take f32 tensors, got {:?}", tensor.dtype());
    }
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("the trainer's kernels take contiguous tensors");
    };
    match &*storage {
        Storage::Cpu(cpu) => Ok(job(&cpu.as_slice::<f32>()?[start..end])),
        _ => bail!("the trainer's kernels run on the cpu device"),
    }
}

/// A tensor from values, moved, not copied.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}
