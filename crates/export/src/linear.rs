//! Products with weights, in floats or in blocks of few bits.
//!
//! In: a weight [out, in] of the checkpoint. Out: a node, and the weight in the form the node takes: `MatMul` wants
//! [in, out], the packed operators keep the order. Called by `decoder` and `attention`.

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::decoder::{DecoderGraph, HEAD, SELECTED};
use super::kept::{BLOCK, KeptWeight};
use super::names;
use super::nbits::PackedWeight;
use super::onnx::{AttributeProto, FLOAT, UINT8, int, microsoft, node};
use super::options::{Blocks, Element};

impl DecoderGraph<'_> {
    /// `output` = `input` × `{name}.weight`, plus `{name}.bias` where the model has one.
    pub fn linear(
        &mut self,
        name: &str,
        shape: [usize; 2],
        biased: bool,
        input: &str,
        output: &str,
    ) -> Result<(), ExportError> {
        let weight = format!("{name}.weight");
        let stack = Stack::of_one(&weight, shape);
        if !biased {
            return self.multiply(&weight, &stack, input, output);
        }
        let (bias, product) = (format!("{name}.bias"), format!("{output}_unbiased"));
        self.multiply(&weight, &stack, input, &product)?;
        self.copy(&bias, &shape[..1])?;
        self.graph.node(node("Add", &[&product, &bias], &[output], vec![]));
        Ok(())
    }

    /// `output` = `input` × the weight of a stack, [out, in], kept under `name`.
    pub fn multiply(&mut self, name: &str, stack: &Stack, input: &str, output: &str) -> Result<(), ExportError> {
        if let Some(blocks) = self.kept_blocks(stack) {
            return self.multiply_kept(name, stack, blocks, [input, output]);
        }
        let Some(blocks) = (if name == HEAD { self.numbers.head_blocks } else { self.numbers.blocks }) else {
            self.weight(name, |source| Ok(stack.read(source)?.transposed()))?;
            self.graph.node(node("MatMul", &[input, name], &[output], vec![]));
            return Ok(());
        };
        let shape = stack.shape();
        let (rows, row_blocks, bytes) = (shape[0], blocks.of_row(shape[1]), blocks.bytes());
        self.write_packed(name, blocks, &[rows, row_blocks, bytes], |source| stack.read(source))?;
        self.multiply_packed(name, &scales(name), blocks, shape, [input, output]);
        Ok(())
    }

    /// The blocks that the checkpoint brings along for a weight, if they are wanted and all its parts have them.
    fn kept_blocks(&self, stack: &Stack) -> Option<Blocks> {
        self.source.kept_blocks(&stack.names, self.numbers.kept_level?)
    }

    /// A product with blocks as the checkpoint brings them. The operator's fast kernels know no float zero points, so minimums are added apart: each
    /// block's, times the sum of its inputs.
    fn multiply_kept(
        &mut self,
        name: &str,
        stack: &Stack,
        blocks: Blocks,
        [input, output]: [&str; 2],
    ) -> Result<(), ExportError> {
        let ([rows, width], offsets) = (stack.shape(), offsets(name));
        let is_shifted = stack.names.first().is_some_and(|first| self.source.is_shifted(first));
        let shape = [rows, blocks.of_row(width), blocks.bytes()];
        self.write_kept(name, &shape, is_shifted, |source| stack.read_kept(source, blocks))?;
        if !is_shifted {
            self.multiply_packed(name, &scales(name), blocks, [rows, width], [input, output]);
            return Ok(());
        }
        let (centred, shift) = (format!("{output}_centred"), format!("{output}_shift"));
        self.multiply_packed(name, &scales(name), blocks, [rows, width], [input, &centred]);
        let sums = self.block_sums(input, blocks.of_row(width));
        self.graph.node(node("MatMul", &[&sums, &offsets], &[&shift], vec![]));
        self.graph.node(node("Add", &[&centred, &shift], &[output], vec![]));
        Ok(())
    }

    /// Sums of `input` [.., in] over each block, [.., blocks]; made once for all products with it.
    fn block_sums(&mut self, input: &str, blocks: usize) -> String {
        let (parts, sums, shape) = (format!("{input}_parts"), format!("{input}_sums"), format!("{input}_parts_shape"));
        if !self.summed.insert(input.to_owned()) {
            return sums;
        }
        // The wanted positions are flat already, as is everything in the paged form; 0 = as it was.
        let kept = if input == SELECTED || self.is_flat() { 1 } else { 2 };
        let dims: Vec<i64> = std::iter::repeat_n(0, kept).chain([blocks as i64, BLOCK as i64]).collect();
        self.graph.integers(&shape, &[dims.len() as i64], &dims);
        self.graph.integers(&format!("{sums}_axis"), &[1], &[-1]);
        self.graph.node(node("Reshape", &[input, &shape], &[&parts], vec![]));
        let drop = vec![int("keepdims", 0)];
        self.graph.node(node("ReduceSum", &[&parts, &format!("{sums}_axis")], &[&sums], drop));
        sums
    }

    /// `input_ids` → `embedded` from a table in blocks, whose bytes the head shares.
    pub fn write_packed_embedding(&mut self, name: &str, shape: [usize; 2]) -> Result<(), ExportError> {
        let kept = self.kept_table(name, shape);
        let Some(blocks) = kept.or(self.numbers.head_blocks) else { return Ok(()) };
        let [rows, width] = shape;
        let (row_blocks, padded) = (blocks.of_row(width), blocks.of_row(width) * blocks.block);
        let flat = [rows, row_blocks * blocks.bytes()];
        match kept {
            Some(_) => self.write_kept(name, &flat, false, |source| source.read_kept(name, shape, blocks))?,
            None => self.write_packed(name, blocks, &flat, |source| source.read(name, &shape))?,
        }
        let gathered = if padded == width { "embedded" } else { "embedded_padded" };
        let attributes = vec![
            int("bits", blocks.bits as i64),
            int("block_size", blocks.block as i64),
            int("gather_axis", 0),
            int("quantize_axis", 1),
        ];
        let inputs = [name, names::INPUT_IDS, &scales(name)];
        self.graph.node(microsoft("GatherBlockQuantized", &inputs, &[gathered], attributes));
        if padded != width {
            // The last block of a row is filled up with zeros, which the model must not see.
            self.graph.integers("embedded_begin", &[1], &[0]);
            self.graph.integers("embedded_end", &[1], &[width as i64]);
            self.graph.integers("embedded_axis", &[1], &[2]);
            let inputs = [gathered, "embedded_begin", "embedded_end", "embedded_axis"];
            self.graph.node(node("Slice", &inputs, &["embedded"], vec![]));
        }
        Ok(())
    }

    /// The blocks of a table that the checkpoint brings along; those with minimums cannot be looked up in.
    fn kept_table(&self, name: &str, shape: [usize; 2]) -> Option<Blocks> {
        self.kept_blocks(&Stack::of_one(name, shape)).filter(|_| !self.source.is_shifted(name))
    }

    /// The head over the bytes of the packed embedding `table`.
    pub fn packed_head(
        &mut self,
        name: &str,
        table: &str,
        shape: [usize; 2],
        input: &str,
        output: &str,
    ) -> Result<(), ExportError> {
        let Some(blocks) = self.kept_table(table, shape).or(self.numbers.head_blocks) else { return Ok(()) };
        self.graph.alias(name, table, &[shape[0], blocks.of_row(shape[1]), blocks.bytes()])?;
        self.multiply_packed(name, &scales(table), blocks, shape, [input, output]);
        Ok(())
    }

    fn multiply_packed(&mut self, name: &str, scales: &str, blocks: Blocks, shape: [usize; 2], ends: [&str; 2]) {
        let [input, output] = ends;
        let attributes = product_attributes(blocks, shape);
        self.graph.node(microsoft("MatMulNBits", &[input, name, scales], &[output], attributes));
    }

    /// Writes a weight in blocks and its scales, unless an earlier graph has.
    fn write_packed(
        &mut self,
        name: &str,
        blocks: Blocks,
        shape: &[usize],
        read: impl FnOnce(&mut Checkpoint) -> Result<Weight, ExportError>,
    ) -> Result<(), ExportError> {
        if self.graph.reuse(name) && self.graph.reuse(&scales(name)) {
            return Ok(());
        }
        let weight = read(self.source)?;
        if let Some(value) = weight.values.iter().find(|value| !value.is_finite()) {
            let message = format!("holds {value}, which cannot be packed: choose another precision");
            let path = self.source.folder.clone();
            return Err(ExportError::Weight { path, name: name.to_owned(), message });
        }
        self.add_packed(name, shape, &PackedWeight::of(&weight, blocks))
    }

    /// Writes a weight in the blocks it came in, unless an earlier graph has.
    fn write_kept(
        &mut self,
        name: &str,
        shape: &[usize],
        is_shifted: bool,
        read: impl FnOnce(&mut Checkpoint) -> Result<KeptWeight, ExportError>,
    ) -> Result<(), ExportError> {
        if self.graph.reuse(name)
            && self.graph.reuse(&scales(name))
            && (!is_shifted || self.graph.reuse(&offsets(name)))
        {
            return Ok(());
        }
        let kept = read(self.source)?;
        self.add_packed(name, shape, &kept.packed)?;
        match kept.offsets {
            Some(weight) => {
                let weight = weight.transposed();
                let mut bytes = Vec::new();
                Element::F32.write(&weight.values, &mut bytes);
                self.graph.packed(&offsets(name), &weight.shape, FLOAT, &bytes, 0)
            }
            None => Ok(()),
        }
    }

    fn add_packed(&mut self, name: &str, shape: &[usize], packed: &PackedWeight) -> Result<(), ExportError> {
        let mut scale_bytes = Vec::new();
        Element::F32.write(&packed.scales.values, &mut scale_bytes);
        self.graph.packed(name, shape, UINT8, &packed.bytes, packed.parameters)?;
        self.graph.packed(&scales(name), &packed.scales.shape, FLOAT, &scale_bytes, 0)
    }
}

/// A weight that is made of tensors, one below the other.
pub struct Stack {
    /// Tensors of the checkpoint.
    names: Vec<String>,
    /// Rows (output features) of each.
    rows: Vec<usize>,
    /// Input features.
    width: usize,
}

impl Stack {
    /// One tensor.
    pub fn of_one(name: &str, [rows, width]: [usize; 2]) -> Self {
        Self { names: vec![name.to_owned()], rows: vec![rows], width }
    }

    /// Several.
    pub fn of<const N: usize>(parts: [(String, usize); N], width: usize) -> Self {
        let (names, rows) = parts.into_iter().unzip();
        Self { names, rows, width }
    }

    fn shape(&self) -> [usize; 2] {
        [self.rows.iter().sum(), self.width]
    }

    fn read(&self, source: &mut Checkpoint) -> Result<Weight, ExportError> {
        let mut whole = Weight { shape: vec![0, self.width], values: Vec::new() };
        for (name, &rows) in self.names.iter().zip(&self.rows) {
            whole = whole.stacked(source.read(name, &[rows, self.width])?);
        }
        Ok(whole)
    }

    fn read_kept(&self, source: &mut Checkpoint, blocks: Blocks) -> Result<KeptWeight, ExportError> {
        let mut whole: Option<KeptWeight> = None;
        for (name, &rows) in self.names.iter().zip(&self.rows) {
            let part = source.read_kept(name, [rows, self.width], blocks)?;
            whole = Some(match whole {
                None => part,
                Some(before) => before.stacked(part),
            });
        }
        whole.ok_or_else(|| ExportError::Option("a weight is made of no tensor".to_owned()))
    }
}

/// Name of what a packed weight's blocks add for the sum of their inputs.
pub fn offsets(name: &str) -> String {
    format!("{name}.offsets")
}

/// Name of a packed weight's scales.
fn scales(name: &str) -> String {
    format!("{name}.scales")
}

fn product_attributes(blocks: Blocks, [rows, columns]: [usize; 2]) -> Vec<AttributeProto> {
    vec![
        int("K", columns as i64),
        int("N", rows as i64),
        int("bits", blocks.bits as i64),
        int("block_size", blocks.block as i64),
        int("accuracy_level", blocks.accuracy_level),
    ]
}
