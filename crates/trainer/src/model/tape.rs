//! Puts an already computed result on candle's tape together with the function that computes its gradients.
//!
//! Called by the kernels: they compute forward on slices or detached tensors, keep what backward needs in a closure, and call
//! [`record`]. candle stores the closure in the result's graph node and frees it with the graph.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

pub(super) use crate::nn::{tensor, with_values};

/// Gradients of the inputs, in the inputs' order; unused places are `None`.
pub(super) type Gradients = [Option<Tensor>; 3];

/// a `[m, k]` · b `[k, n]`, strides as they are → the `m·n` values, moved, not copied; for what is recorded afterwards.
pub(super) fn product(a: &Tensor, b: &Tensor) -> Result<Vec<f32>> {
    let ((m, k), (rows, n)) = (a.dims2()?, b.dims2()?);
    if rows != k {
        bail!("a product of {:?} and {:?} does not exist", a.dims(), b.dims());
    }
    let ((a_storage, a_layout), (b_storage, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
    let (Storage::Cpu(left), Storage::Cpu(right)) = (&*a_storage, &*b_storage) else {
        bail!("the trainer's kernels run on the cpu device");
    };
    match left.matmul(right, (1, m, n, k), a_layout, b_layout)? {
        CpuStorage::F32(values) => Ok(values),
        _ => bail!("the trainer's kernels take f32 tensors, got {:?}", a.dtype()),
    }
}

struct Recorded<F> {
    name: &'static str,
    output: Mutex<Option<(Vec<f32>, Shape)>>,
    backward: F,
}

/// A tensor with these values whose gradient flows to `inputs` (one to three) through `backward(gradient of the result)`.
pub(super) fn record<F>(
    name: &'static str,
    inputs: &[&Tensor],
    values: Vec<f32>,
    shape: impl Into<Shape>,
    backward: F,
) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Gradients> + Send + Sync + 'static,
{
    let operation = Recorded { name, output: Mutex::new(Some((values, shape.into()))), backward };
    match inputs {
        [a] => a.apply_op1(operation),
        [a, b] => a.apply_op2(b, operation),
        [a, b, c] => a.apply_op3(b, c, operation),
        _ => bail!("{name}: candle's tape takes one to three inputs, got {}", inputs.len()),
    }
}

impl<F> Recorded<F> {
    fn hand_over(&self) -> Result<(CpuStorage, Shape)> {
        let taken = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taken {
            Some((values, shape)) => Ok((CpuStorage::F32(values), shape)),
            None => bail!("{}: a recorded result can be used once", self.name),
        }
    }
}

impl<F: Fn(&Tensor) -> Result<Gradients>> CustomOp1 for Recorded<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.hand_over()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [a, _, _] = (self.backward)(gradient)?;
        Ok(a)
    }
}

impl<F: Fn(&Tensor) -> Result<Gradients>> CustomOp2 for Recorded<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.hand_over()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b, _] = (self.backward)(gradient)?;
        Ok((a, b))
    }
}

impl<F: Fn(&Tensor) -> Result<Gradients>> CustomOp3 for Recorded<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.hand_over()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = (self.backward)(gradient)?;
        Ok((a, b, c))
    }
}
