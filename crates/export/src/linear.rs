//! Products with weights, in floats or in blocks of few bits.
//!
//! In: a weight [out, in] of the checkpoint. Out: a node, and the weight in the form the node takes: `MatMul` wants
//! [in, out], the packed operators keep the order. Called by `decoder` and `attention`.

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::decoder::{DecoderGraph, HEAD, SELECTED};
use super::kept::{BLOCK, Kept, KeptWeight};
use super::names;
use super::nbits::PackedWeight;
use super::onnx::{AttributeProto, UINT8, int, microsoft, node};
use super::options::Blocks;

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
        if let Some(level) = self.brought_level() {
            return self.multiply_brought(name, stack, level, [input, output]);
        }
        let blocks = match name {
            HEAD => self.numbers.head_blocks,
            _ => self.numbers.blocks_of(name, self.shape.layers),
        };
        match blocks {
            Some(blocks) => self.multiply_rounded(name, stack, blocks, [input, output]),
            None => self.multiply_floats(name, stack, [input, output]),
        }
    }

    fn multiply_floats(&mut self, name: &str, stack: &Stack, [input, output]: [&str; 2]) -> Result<(), ExportError> {
        self.weight(name, |source| Ok(stack.read(source)?.transposed()))?;
        self.graph.node(node("MatMul", &[input, name], &[output], vec![]));
        Ok(())
    }

    fn multiply_rounded(
        &mut self,
        name: &str,
        stack: &Stack,
        blocks: Blocks,
        ends: [&str; 2],
    ) -> Result<(), ExportError> {
        let shape = stack.shape();
        let (rows, row_blocks, bytes) = (shape[0], blocks.of_row(shape[1]), blocks.bytes());
        self.write_packed(name, blocks, &[rows, row_blocks, bytes], |source| stack.read(source))?;
        self.multiply_packed(name, &scales(name), blocks, shape, ends);
        Ok(())
    }

    /// Accuracy level of the blocks that the checkpoint brings along, if it does and they are wanted.
    fn brought_level(&self) -> Option<i64> {
        self.numbers.kept_level.filter(|_| self.source.brings_blocks())
    }

    /// As the checkpoint has it: in its blocks, or in floats. Parts kept in different ways are multiplied one by one.
    fn multiply_brought(
        &mut self,
        name: &str,
        stack: &Stack,
        level: i64,
        [input, output]: [&str; 2],
    ) -> Result<(), ExportError> {
        let parts: Vec<Option<Kept>> = stack.names.iter().map(|part| self.source.kept(part)).collect();
        match parts.first() {
            Some(&first) if parts.iter().all(|part| *part == first) => match first {
                Some(kept) if kept.is_exact => self.multiply_kept(name, stack, kept, level, [input, output]),
                Some(kept) => self.multiply_rounded(name, stack, kept.blocks(level), [input, output]),
                None => self.multiply_floats(name, stack, [input, output]),
            },
            _ => {
                let outputs: Vec<String> = (0..parts.len()).map(|part| format!("{output}_{part}")).collect();
                for ((part, &rows), product) in stack.names.iter().zip(&stack.rows).zip(&outputs) {
                    self.multiply_brought(part, &Stack::of_one(part, [rows, stack.width]), level, [input, product])?;
                }
                let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
                self.graph.node(node("Concat", &outputs, &[output], vec![int("axis", -1)]));
                Ok(())
            }
        }
    }

    /// A product with blocks as the checkpoint brings them. The operator's fast kernels know no float zero points, so minimums are added apart: each
    /// block's, times the sum of its inputs.
    fn multiply_kept(
        &mut self,
        name: &str,
        stack: &Stack,
        kept: Kept,
        level: i64,
        [input, output]: [&str; 2],
    ) -> Result<(), ExportError> {
        let ([rows, width], offsets, blocks) = (stack.shape(), offsets(name), kept.blocks(level));
        let (is_shifted, shape) = (kept.is_shifted, [rows, blocks.of_row(width), blocks.bytes()]);
        self.write_kept(name, &shape, is_shifted, |source| stack.read_kept(source, kept))?;
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
    pub fn write_packed_embedding(
        &mut self,
        name: &str,
        shape: [usize; 2],
        table: TableBlocks,
    ) -> Result<(), ExportError> {
        let ([rows, width], blocks) = (shape, table.blocks);
        let (row_blocks, padded) = (blocks.of_row(width), blocks.of_row(width) * blocks.block);
        let flat = [rows, row_blocks * blocks.bytes()];
        match table.kept {
            Some(kept) => self.write_kept(name, &flat, false, |source| source.read_kept(name, shape, kept))?,
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

    /// Blocks of an embedding table that is the head, too; `None` = floats. What the checkpoint brings along is taken, but blocks with
    /// minimums cannot be looked up in: they are rounded again, as a head is.
    pub fn table_blocks(&self, name: &str) -> Option<TableBlocks> {
        let rounded = self.numbers.head_blocks.map(|blocks| TableBlocks { blocks, kept: None });
        let Some(level) = self.brought_level() else { return rounded };
        match self.source.kept(name)? {
            kept if kept.is_shifted => rounded,
            kept => Some(TableBlocks { blocks: kept.blocks(level), kept: kept.is_exact.then_some(kept) }),
        }
    }

    /// The head over the bytes of the packed embedding `table`.
    pub fn packed_head(
        &mut self,
        table: &str,
        shape: [usize; 2],
        blocks: Blocks,
        [input, output]: [&str; 2],
    ) -> Result<(), ExportError> {
        self.graph.alias(HEAD, table, &[shape[0], blocks.of_row(shape[1]), blocks.bytes()])?;
        self.multiply_packed(HEAD, &scales(table), blocks, shape, [input, output]);
        Ok(())
    }

    fn multiply_packed(&mut self, name: &str, scales: &str, blocks: Blocks, shape: [usize; 2], ends: [&str; 2]) {
        let [input, output] = ends;
        let attributes = product_attributes(blocks, shape);
        let zeros = zeros(name);
        let inputs = [input, name, scales, &zeros];
        let given = if blocks.zero_points { inputs.len() } else { 3 };
        self.graph.node(microsoft("MatMulNBits", &inputs[..given], &[output], attributes));
    }

    /// Writes a weight in blocks and its scales, unless an earlier graph has.
    fn write_packed(
        &mut self,
        name: &str,
        blocks: Blocks,
        shape: &[usize],
        read: impl FnOnce(&mut Checkpoint) -> Result<Weight, ExportError>,
    ) -> Result<(), ExportError> {
        if self.graph.reuse(name)
            && self.graph.reuse(&scales(name))
            && (!blocks.zero_points || self.graph.reuse(&zeros(name)))
        {
            return Ok(());
        }
        if let Some(packed) = self.calibrated.get(name) {
            return self.add_packed(name, shape, packed);
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
                let element = self.numbers.element;
                element.write(&weight.values, &mut bytes);
                self.graph.packed(&offsets(name), &weight.shape, element.onnx(), &bytes, 0)
            }
            None => Ok(()),
        }
    }

    fn add_packed(&mut self, name: &str, shape: &[usize], packed: &PackedWeight) -> Result<(), ExportError> {
        let mut scale_bytes = Vec::new();
        let element = self.numbers.element;
        element.write(&packed.scales.values, &mut scale_bytes);
        self.graph.packed(name, shape, UINT8, &packed.bytes, packed.parameters)?;
        self.graph.packed(&scales(name), &packed.scales.shape, element.onnx(), &scale_bytes, 0)?;
        let Some(bytes) = &packed.zeros else { return Ok(()) };
        let rows = packed.scales.shape.first().copied().unwrap_or(1);
        self.graph.packed(&zeros(name), &[rows, bytes.len() / rows], UINT8, bytes, 0)
    }
}

/// How an embedding table is kept.
#[derive(Clone, Copy)]
pub struct TableBlocks {
    /// Its blocks.
    pub blocks: Blocks,
    /// They are the checkpoint's own.
    kept: Option<Kept>,
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

    /// Reads and joins the tensors.
    pub fn read(&self, source: &mut Checkpoint) -> Result<Weight, ExportError> {
        let mut whole = Weight { shape: vec![0, self.width], values: Vec::new() };
        for (name, &rows) in self.names.iter().zip(&self.rows) {
            whole = whole.stacked(source.read(name, &[rows, self.width])?);
        }
        Ok(whole)
    }

    fn read_kept(&self, source: &mut Checkpoint, kept: Kept) -> Result<KeptWeight, ExportError> {
        let mut whole: Option<KeptWeight> = None;
        for (name, &rows) in self.names.iter().zip(&self.rows) {
            let part = source.read_kept(name, [rows, self.width], kept)?;
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

/// Name of a packed weight's zero points.
fn zeros(name: &str) -> String {
    format!("{name}.zero_points")
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
