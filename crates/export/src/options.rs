//! What can be asked of an export, and how each choice is written.
//!
//! In: the command line or code. Out: checked [`ExportOptions`]. Called by `taiji-trainer`, the pipeline and `export`.

use super::names::GRAPH_FILE;
use super::{ExportError, onnx};

/// Number format of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// 16-bit floats: weights, activations and cache; logits stay f32.
    F16,
    /// bfloat16, likewise; runs on GPUs only.
    Bf16,
    /// 8-bit weights in blocks, activations and cache f32.
    Int8,
    /// 4-bit weights in blocks, activations and cache f32.
    Int4,
}

/// Kind of attention in a decoder's graph; encoders have one kind only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Flavour {
    /// GroupQueryAttention over a shared buffer: text, many rows at once.
    #[default]
    Gqa,
    /// The same with positions and bias as inputs: beams of one request.
    Tree,
    /// Standard operators: rows of any length at any position in one call, over a small buffer.
    Std,
    /// PagedAttention over blocks: GPUs only, f16 or bf16.
    Paged,
}

/// What the graph of a decoder checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Text.
    Decoder,
    /// A vector for each text: the last token's state, of norm 1.
    Encoder,
}

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Most positions the graph takes; `None` = the checkpoint's, at most [`super::DEFAULT_MAX_POSITIONS`].
    pub max_positions: Option<usize>,
    /// Number format.
    pub precision: Precision,
    /// Kinds of attention, one graph each over the same weights. The first becomes `graph.onnx`.
    pub flavours: Vec<Flavour>,
    /// int4, int8: weights that share a scale; `None` = 128 for int4, 32 for int8. With `None` here and for the head's bits int4 takes over
    /// the blocks that a checkpoint brings along ([`super::BLOCKS_FILE`]).
    pub block: Option<usize>,
    /// int4, int8: 1 computes in f32; 4 rounds activations to 8 bits, which is the fast way.
    pub accuracy_level: i64,
    /// int4: bits of the output head, and of the embedding tied to it, 4 or 8; `None` = those of the other layers.
    pub head_bits: Option<usize>,
    /// `None` = encoder if the checkpoint says how to pool, else decoder.
    pub role: Option<Role>,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            max_positions: None,
            precision: Precision::default(),
            flavours: vec![Flavour::default()],
            block: None,
            accuracy_level: 4,
            head_bits: None,
            role: None,
        }
    }
}

/// Kind of number in weights, activations and cache (T in the tables of `decoder`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
}

/// Weights of `bits` bits in blocks of `block` along the input features, one scale a block, no zero points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// 4 or 8.
    pub bits: usize,
    /// Weights that share a scale.
    pub block: usize,
    /// See [`ExportOptions::accuracy_level`].
    pub accuracy_level: i64,
}

/// How a decoder's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Activations, cache, norms, and weights unless `blocks` says otherwise.
    pub element: Element,
    /// Weights of the linear layers.
    pub blocks: Option<Blocks>,
    /// Weights of the output head, and of the embedding tied to it.
    pub head_blocks: Option<Blocks>,
    /// Accuracy level of blocks that a checkpoint brings along; `None` = they are not taken.
    pub kept_level: Option<i64>,
}

impl ExportOptions {
    /// Checks the number settings.
    pub(super) fn numbers(&self) -> Result<Numbers, ExportError> {
        if self.head_bits.is_some() && self.precision != Precision::Int4 {
            return Err(ExportError::Option("bits of the head are chosen for int4 only".to_owned()));
        }
        let float = |element| Ok(Numbers { element, blocks: None, head_blocks: None, kept_level: None });
        let (bits, usual) = match self.precision {
            Precision::F32 => return float(Element::F32),
            Precision::F16 => return float(Element::F16),
            Precision::Bf16 => return float(Element::Bf16),
            Precision::Int8 => (8, 32),
            Precision::Int4 => (4, 128),
        };
        let block = self.block.unwrap_or(usual);
        if !block.is_power_of_two() || block < 16 {
            return Err(ExportError::Option(format!("block {block}: choose a power of two from 16")));
        }
        if !(0..=4).contains(&self.accuracy_level) {
            return Err(ExportError::Option(format!("accuracy level {}: choose 0 to 4", self.accuracy_level)));
        }
        let head_bits = self.head_bits.unwrap_or(bits);
        if head_bits != 4 && head_bits != 8 {
            return Err(ExportError::Option(format!("{head_bits} bits of the head: choose 4 or 8")));
        }
        let blocks = |bits| Some(Blocks { bits, block, accuracy_level: self.accuracy_level });
        // Whoever names a size of blocks or bits wants others than the checkpoint's own.
        let keeps = self.precision == Precision::Int4 && self.block.is_none() && self.head_bits.is_none();
        let kept_level = keeps.then_some(self.accuracy_level);
        Ok(Numbers { element: Element::F32, blocks: blocks(bits), head_blocks: blocks(head_bits), kept_level })
    }

    /// An encoder has one graph.
    pub(super) fn check_encoder(&self) -> Result<(), ExportError> {
        match self.flavours[..] {
            [Flavour::Gqa] => Ok(()),
            _ => Err(ExportError::Option("an encoder has one graph: leave the flavour out".to_owned())),
        }
    }

    /// Checks the list of flavours.
    pub(super) fn check_flavours(&self) -> Result<(), ExportError> {
        if self.flavours.is_empty() {
            return Err(ExportError::Option("no flavour: name at least one, e.g. gqa".to_owned()));
        }
        for (index, flavour) in self.flavours.iter().enumerate() {
            if self.flavours[..index].contains(flavour) {
                return Err(ExportError::Option(format!("flavour {} is named twice", flavour.name())));
            }
        }
        let halved = matches!(self.precision, Precision::F16 | Precision::Bf16);
        if self.flavours.contains(&Flavour::Paged) && !halved {
            let precision = self.precision.name();
            let message = format!("flavour paged in {precision}: its kernel takes f16 and bf16 only");
            return Err(ExportError::Option(message));
        }
        Ok(())
    }
}

impl Precision {
    /// Name on the command line and in the graph's notes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl Flavour {
    const ALL: [Self; 4] = [Self::Gqa, Self::Tree, Self::Std, Self::Paged];

    /// Name on the command line, in file names and in the graph's notes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gqa => "gqa",
            Self::Tree => "tree",
            Self::Std => "std",
            Self::Paged => "paged",
        }
    }

    /// File name of the graph at a place in the list of flavours.
    pub fn graph_file(self, place: usize) -> String {
        match place {
            0 => GRAPH_FILE.to_owned(),
            _ => format!("graph.{}.onnx", self.name()),
        }
    }

    /// Every name a graph file may have.
    pub(super) fn graph_files() -> Vec<String> {
        Self::ALL.iter().map(|flavour| flavour.graph_file(1)).chain([GRAPH_FILE.to_owned()]).collect()
    }
}

impl Element {
    /// Element type in ONNX.
    pub(super) fn onnx(self) -> i32 {
        match self {
            Self::F32 => onnx::FLOAT,
            Self::F16 => onnx::FLOAT16,
            Self::Bf16 => onnx::BFLOAT16,
        }
    }

    /// Bytes of a number.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether a number is within the range; infinity in the checkpoint is not ours to judge.
    pub(super) fn holds(self, value: f32) -> bool {
        match self {
            Self::F16 => !value.is_finite() || half::f16::from_f32(value).is_finite(),
            Self::F32 | Self::Bf16 => true,
        }
    }

    /// Appends numbers, little-endian, rounded to the nearest.
    pub(super) fn write(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes())),
        }
    }
}
