//! A graph's small tensors, by name: a buffer on the host, and one on the device where the host's does not do.
//!
//! In: values. Out: buffers to bind. Owned by `device` and `device_beam`, each with its own. A buffer is kept from call to
//! call and replaced by a larger one when it must be: a captured CUDA graph needs the same addresses again.

use ort::environment::Environment;
use ort::value::{PrimitiveTensorElementType, TensorElementType};

use super::binding::{BufferId, Location, Memory, Span};

/// One tensor's bytes on the host and on the device; on a processor they are the same buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mirror {
    pub host: BufferId,
    pub device: BufferId,
    elements: usize,
    element: TensorElementType,
}

/// The tensors of one session, or of several that run one after the other.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    kept: Vec<(&'static str, Mirror)>,
    edition: usize,
}

/// [`Mirrors`] with what it takes to write them.
pub(super) struct Writer<'a> {
    mirrors: &'a mut Mirrors,
    memory: &'a mut Memory,
    environment: &'a Environment,
}

impl Mirrors {
    /// Rises when a buffer was replaced: what is bound is then stale.
    pub fn edition(&self) -> usize {
        self.edition
    }

    /// For writing.
    pub fn at<'a>(&'a mut self, memory: &'a mut Memory, environment: &'a Environment) -> Writer<'a> {
        Writer { mirrors: self, memory, environment }
    }

    /// A tensor with room for so many elements; what it holds is not said.
    pub fn room(
        &mut self,
        memory: &mut Memory,
        name: &'static str,
        element: TensorElementType,
        elements: usize,
    ) -> Result<Mirror, ort::Error> {
        let is_device_host = memory.device_is_host();
        self.reserve(memory, name, element, elements, is_device_host)
    }

    fn reserve(
        &mut self,
        memory: &mut Memory,
        name: &'static str,
        element: TensorElementType,
        elements: usize,
        is_host_only: bool,
    ) -> Result<Mirror, ort::Error> {
        // Two graphs may want a tensor in different numbers: each has its own.
        let kept = self.kept.iter().position(|(other, mirror)| *other == name && mirror.element == element);
        if let Some(index) = kept
            && self.kept[index].1.elements >= elements
        {
            return Ok(self.kept[index].1);
        }
        let room = elements.next_power_of_two();
        let host = memory.allocate(Location::Host, element, room)?;
        let device = match is_host_only {
            true => host,
            false => memory.allocate(Location::Device, element, room)?,
        };
        let made = Mirror { host, device, elements: room, element };
        match kept {
            Some(index) => self.kept[index].1 = made,
            None => self.kept.push((name, made)),
        }
        self.edition += 1;
        Ok(made)
    }
}

impl Writer<'_> {
    /// Writes a tensor, on the device too.
    pub fn write<T: PrimitiveTensorElementType + Copy>(
        &mut self,
        name: &'static str,
        values: &[T],
    ) -> Result<Mirror, ort::Error> {
        let is_device_host = self.memory.device_is_host();
        let mirror = self.fill(name, values, is_device_host)?;
        mirror.to_device(self.memory, self.environment, values.len())?;
        Ok(mirror)
    }

    /// Writes a tensor that the kernels read on the host, whatever the device.
    pub fn write_host<T: PrimitiveTensorElementType + Copy>(
        &mut self,
        name: &'static str,
        values: &[T],
    ) -> Result<Mirror, ort::Error> {
        self.fill(name, values, true)
    }

    fn fill<T: PrimitiveTensorElementType + Copy>(
        &mut self,
        name: &'static str,
        values: &[T],
        is_host_only: bool,
    ) -> Result<Mirror, ort::Error> {
        let element = T::into_tensor_element_type();
        let mirror = self.mirrors.reserve(self.memory, name, element, values.len(), is_host_only)?;
        self.memory.write::<T>(mirror.host)?[..values.len()].copy_from_slice(values);
        Ok(mirror)
    }
}

impl Mirror {
    /// Copies the first elements to the host.
    pub fn to_host(self, memory: &mut Memory, environment: &Environment, elements: usize) -> Result<(), ort::Error> {
        self.transfer(memory, environment, self.device, self.host, elements)
    }

    fn to_device(self, memory: &mut Memory, environment: &Environment, elements: usize) -> Result<(), ort::Error> {
        self.transfer(memory, environment, self.host, self.device, elements)
    }

    fn transfer(
        self,
        memory: &mut Memory,
        environment: &Environment,
        from: BufferId,
        to: BufferId,
        elements: usize,
    ) -> Result<(), ort::Error> {
        if self.host == self.device || elements == 0 {
            return Ok(());
        }
        memory.copy(environment, &[Span { from: (from, 0), to: (to, 0), elements }])
    }
}
