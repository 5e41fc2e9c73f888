//! Products with weights, in floats or in blocks of few bits.
//!
//! In: a weight [out, in] of the checkpoint. Out: a node, and the weight in the form the node takes: `MatMul` wants
//! [in, out], the packed operators keep the order. Called by `decoder` and `attention`.

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::decoder::{DecoderGraph, HEAD};
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
        let read = |source: &mut Checkpoint| source.read(&weight, &shape);
        if !biased {
            return self.multiply(&weight, shape, input, output, read);
        }
        let (bias, product) = (format!("{name}.bias"), format!("{output}_unbiased"));
        self.multiply(&weight, shape, input, &product, read)?;
        self.copy(&bias, &shape[..1])?;
        self.graph.node(node("Add", &[&product, &bias], &[output], vec![]));
        Ok(())
    }

    /// `output` = `input` × the weight that `read` gives, [out, in], kept under `name`.
    pub fn multiply(
        &mut self,
        name: &str,
        shape: [usize; 2],
        input: &str,
        output: &str,
        read: impl FnOnce(&mut Checkpoint) -> Result<Weight, ExportError>,
    ) -> Result<(), ExportError> {
        let Some(blocks) = (if name == HEAD { self.numbers.head_blocks } else { self.numbers.blocks }) else {
            self.weight(name, |source| Ok(read(source)?.transposed()))?;
            self.graph.node(node("MatMul", &[input, name], &[output], vec![]));
            return Ok(());
        };
        let (rows, row_blocks, bytes) = (shape[0], blocks.of_row(shape[1]), blocks.bytes());
        self.write_packed(name, blocks, &[rows, row_blocks, bytes], read)?;
        self.multiply_packed(name, &scales(name), blocks, shape, [input, output]);
        Ok(())
    }

    /// `input_ids` → `embedded` from a table in blocks, whose bytes the head shares.
    pub fn write_packed_embedding(&mut self, name: &str, shape: [usize; 2]) -> Result<(), ExportError> {
        let Some(blocks) = self.numbers.head_blocks else { return Ok(()) };
        let [rows, width] = shape;
        let (row_blocks, padded) = (blocks.of_row(width), blocks.of_row(width) * blocks.block);
        self.write_packed(name, blocks, &[rows, row_blocks * blocks.bytes()], |source| source.read(name, &shape))?;
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

    /// The head over the bytes of the packed embedding `table`.
    pub fn packed_head(
        &mut self,
        name: &str,
        table: &str,
        shape: [usize; 2],
        input: &str,
        output: &str,
    ) -> Result<(), ExportError> {
        let Some(blocks) = self.numbers.head_blocks else { return Ok(()) };
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
        let packed = PackedWeight::of(&weight, blocks);
        let mut scale_bytes = Vec::new();
        Element::F32.write(&packed.scales.values, &mut scale_bytes);
        self.graph.packed(name, shape, UINT8, &packed.bytes, packed.parameters)?;
        self.graph.packed(&scales(name), &packed.scales.shape, FLOAT, &scale_bytes, 0)
    }
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
