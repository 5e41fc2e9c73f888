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
    /// 8-bit weights in blocks, activations and cache f32 or what [`ExportOptions::activations`] says.
    Int8,
    /// 4-bit weights in blocks, likewise.
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
    /// int4, int8: weights that share a scale; `None` = 32. With `None` here and for the head's bits, and no zero points and no
    /// calibration, int4 takes over the blocks that a checkpoint brings along ([`super::BLOCKS_FILE`]).
    pub block: Option<usize>,
    /// int4: each block of the layers has a zero point of its own.
    pub zero_points: bool,
    /// int4, int8: 1 computes in f32; 4 rounds activations to 8 bits, which is the fast way.
    pub accuracy_level: i64,
    /// int4, int8: number format of activations, cache, scales and all that is not in blocks. A GPU's attention has no f32.
    pub activations: Element,
    /// int4: bits of the output head, and of the embedding tied to it: 4, 8 or 32; `None` = 8.
    pub head_bits: Option<usize>,
    /// int4: bits of the weights whose errors are felt most ([`Numbers::blocks_of`]), 4 or 8; `None` = 8.
    pub sensitive_bits: Option<usize>,
    /// int4: windows of tokens that the rounding is fitted to; empty = every weight is rounded by itself.
    pub calibration: Vec<Vec<u32>>,
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
            zero_points: false,
            accuracy_level: 4,
            activations: Element::F32,
            head_bits: None,
            sensitive_bits: None,
            calibration: Vec::new(),
            role: None,
        }
    }
}

/// Kind of number in weights, activations and cache (T in the tables of `decoder`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Element {
    /// 32-bit float.
    #[default]
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
}

/// Weights of `bits` bits in blocks of `block` along the input features, one scale a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// 4 or 8.
    pub bits: usize,
    /// Weights that share a scale.
    pub block: usize,
    /// See [`ExportOptions::accuracy_level`].
    pub accuracy_level: i64,
    /// One zero point a block, too.
    pub zero_points: bool,
}

/// How a decoder's numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers {
    /// Activations, cache, norms, and weights unless `blocks` says otherwise.
    pub element: Element,
    /// Weights of the linear layers.
    pub blocks: Option<Blocks>,
    /// Those among them whose errors are felt most.
    pub sensitive_blocks: Option<Blocks>,
    /// Weights of the output head, and of the embedding tied to it.
    pub head_blocks: Option<Blocks>,
    /// Accuracy level of blocks that a checkpoint brings along; `None` = they are not taken.
    pub kept_level: Option<i64>,
}

impl Numbers {
    /// Blocks of a linear layer's weight in a decoder of so many layers. Measured on SmolLM2 (docs/results.md): of what rounding to 4
    /// bits costs, a quarter comes from the values, 3 % of the weights, and half of what the last projections cost comes from the first
    /// and last eighth of the layers. Query, key and value are one product.
    pub fn blocks_of(&self, name: &str, layers: usize) -> Option<Blocks> {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let ends = layers.div_ceil(8);
        let is_outer = layer.is_some_and(|layer| layer < ends || layer + ends >= layers);
        match name.contains(".qkv_proj.") || (is_outer && name.contains(".down_proj.")) {
            true => self.sensitive_blocks,
            false => self.blocks,
        }
    }
}

impl ExportOptions {
    /// Checks the number settings.
    pub(super) fn numbers(&self) -> Result<Numbers, ExportError> {
        self.check_int4()?;
        let float = |element| {
            Ok(Numbers { element, blocks: None, sensitive_blocks: None, head_blocks: None, kept_level: None })
        };
        let bits = match self.precision {
            Precision::F32 | Precision::F16 | Precision::Bf16 if self.activations != Element::F32 => {
                let message = "activations are chosen for int4 and int8 only".to_owned();
                return Err(ExportError::Option(message));
            }
            Precision::F32 => return float(Element::F32),
            Precision::F16 => return float(Element::F16),
            Precision::Bf16 => return float(Element::Bf16),
            Precision::Int8 => 8,
            Precision::Int4 => 4,
        };
        let block = self.block.unwrap_or(32);
        if !block.is_power_of_two() || block < 16 {
            return Err(ExportError::Option(format!("block {block}: choose a power of two from 16")));
        }
        if !(0..=4).contains(&self.accuracy_level) {
            return Err(ExportError::Option(format!("accuracy level {}: choose 0 to 4", self.accuracy_level)));
        }
        let blocks = |bits, zero_points| Blocks { bits, block, accuracy_level: self.accuracy_level, zero_points };
        let head_blocks = match self.head_bits.unwrap_or(8) {
            bits @ (4 | 8) => Some(blocks(bits, false)),
            32 => None,
            bits => return Err(ExportError::Option(format!("{bits} bits of the head: choose 4, 8 or 32"))),
        };
        let sensitive_blocks = match self.sensitive_bits.unwrap_or(8) {
            8 => Some(blocks(8, false)),
            4 => Some(blocks(bits, self.zero_points)),
            bits => return Err(ExportError::Option(format!("{bits} bits of sensitive weights: choose 4 or 8"))),
        };
        let kept_level = self.keeps_blocks().then_some(self.accuracy_level);
        let blocks = Some(blocks(bits, self.zero_points));
        Ok(Numbers { element: self.activations, blocks, sensitive_blocks, head_blocks, kept_level })
    }

    /// What is for int4 only.
    fn check_int4(&self) -> Result<(), ExportError> {
        let given = [
            ("bits of the head are", self.head_bits.is_some()),
            ("bits of sensitive weights are", self.sensitive_bits.is_some()),
            ("zero points are", self.zero_points),
            ("a text to calibrate on is", !self.calibration.is_empty()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((what, _)) if self.precision != Precision::Int4 => {
                Err(ExportError::Option(format!("{what} chosen for int4 only")))
            }
            _ => Ok(()),
        }
    }

    /// Whoever says how to round wants other blocks than the checkpoint's own.
    fn keeps_blocks(&self) -> bool {
        let bits = self.head_bits.or(self.sensitive_bits);
        let says_how = self.block.is_some() || bits.is_some() || self.zero_points || !self.calibration.is_empty();
        self.precision == Precision::Int4 && !says_how
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
        let halved = matches!(self.precision, Precision::F16 | Precision::Bf16) || self.activations != Element::F32;
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
    /// Name on the command line and in the graph's notes.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

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
