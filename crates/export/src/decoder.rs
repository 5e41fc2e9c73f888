//! Qwen2, Qwen3 and Llama decoders as ONNX graphs: the layers, whatever the kind of attention.
//!
//! In: a checkpoint. Out: nodes and weights in a `GraphWriter`, under the same names in every form. Called by `export`.
//! What goes in and out of each graph is in `inputs`, attention in `attention`, products with weights in `linear`.

use std::collections::{HashMap, HashSet};

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::config::{Config, Family};
use super::layout::LAST_NORM;
use super::linear::Stack;
use super::names;
use super::nbits::PackedWeight;
use super::onnx::{BASE, FLOAT, Versions, WITH_SCATTER, float, int, microsoft, node};
use super::options::{Element, Flavour, Numbers};
use super::rope;
use super::writer::GraphWriter;

/// Name of the embedding table.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the output head.
pub const HEAD: &str = "lm_head.weight";
/// Name of the states at the wanted positions, the head's input.
pub const SELECTED: &str = "selected";

/// No size of a model is larger; products of two stay far from overflow.
const MOST: usize = 1 << 28;
/// No model has more layers: a list of their tensors is made before any is looked for.
const MOST_LAYERS: usize = 4096;

/// What kind of graph is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Tokens to logits, over a cache.
    Text(Flavour),
    /// Tokens to one vector a row, without a cache.
    Vector,
}

impl Form {
    /// Versions of format and operators the graph needs.
    pub fn versions(self) -> Versions {
        match self {
            Self::Text(Flavour::Std) => WITH_SCATTER,
            Self::Text(_) | Self::Vector => BASE,
        }
    }
}

/// Sizes of one decoder.
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width d.
    pub hidden: usize,
    /// Width F of the feed-forward part.
    pub inner: usize,
    /// Heads H.
    pub heads: usize,
    /// Key and value heads K.
    pub kv_heads: usize,
    /// Width hd of a head.
    pub head: usize,
    /// Vocabulary V.
    pub vocabulary: usize,
    /// Epsilon of the norms.
    pub epsilon: f32,
    /// Query and key are normalised by head (Qwen3).
    pub head_norms: bool,
    /// Query, key and value have biases.
    pub qkv_bias: bool,
    /// The projection behind attention has a bias.
    pub output_bias: bool,
    /// The feed-forward part has biases.
    pub inner_bias: bool,
}

/// One graph of a decoder being written.
pub struct DecoderGraph<'a> {
    /// Where weights come from.
    pub source: &'a mut Checkpoint,
    /// Where nodes and weights go.
    pub graph: &'a mut GraphWriter,
    /// Sizes.
    pub shape: Shape,
    /// Number formats.
    pub numbers: Numbers,
    /// Kind of graph.
    pub form: Form,
    /// Weights that were rounded beforehand, by name.
    pub calibrated: &'a HashMap<String, PackedWeight>,
    /// Values whose sums by block are in the graph.
    pub summed: HashSet<String>,
}

/// Writes the whole decoder into the writer's current graph.
pub fn write(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    positions: usize,
    (numbers, calibrated): (Numbers, &HashMap<String, PackedWeight>),
    form: Form,
) -> Result<(), ExportError> {
    let shape = Shape::of(&source.config)?;
    let settings = source.config.rope()?;
    let mut decoder = DecoderGraph { source, graph, shape, numbers, form, calibrated, summed: HashSet::new() };
    decoder.declare();
    if form == Form::Vector {
        decoder.write_lengths();
    }
    for (name, table) in rope::tables(&settings, positions, decoder.shape.head) {
        decoder.weight(name, |_| Ok(table()))?;
    }
    decoder.write_embedding()?;
    for layer in 0..decoder.shape.layers {
        let residual = match layer {
            0 => "embedded".to_owned(),
            _ => format!("layers.{layer}.residual"),
        };
        decoder.write_attention(layer)?;
        decoder.write_feed_forward(layer, &residual)?;
    }
    match form {
        Form::Text(_) => decoder.write_head(),
        Form::Vector => {
            decoder.write_pooling();
            Ok(())
        }
    }
}

impl Shape {
    /// Reads the sizes and checks what the kernels ask for.
    pub fn of(config: &Config) -> Result<Self, ExportError> {
        let family = config.family()?;
        let (qwen2, qwen3) = (family == Family::Qwen2, family == Family::Qwen3);
        let shape = Self {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head: config.head_width(),
            vocabulary: config.vocab_size,
            epsilon: config.rms_norm_eps.unwrap_or(1e-6) as f32,
            head_norms: qwen3,
            qkv_bias: qwen2 || config.attention_bias,
            output_bias: !qwen2 && config.attention_bias,
            inner_bias: config.mlp_bias,
        };
        if config.use_sliding_window {
            return Err(config.setting("use_sliding_window", "is true; such attention is not built".to_owned()));
        }
        if config.hidden_act.as_deref() != Some("silu") {
            let message = format!("is {:?}; only silu is built for a decoder", config.hidden_act);
            return Err(config.setting("hidden_act", message));
        }
        for (key, value, most) in [
            ("num_hidden_layers", shape.layers, MOST_LAYERS),
            ("hidden_size", shape.hidden, MOST),
            ("intermediate_size", shape.inner, MOST),
            ("vocab_size", shape.vocabulary, MOST),
            ("max_position_embeddings", config.max_position_embeddings, MOST),
        ] {
            if value == 0 || value > most {
                return Err(config.setting(key, format!("is {value}; 1 to {most} can be computed")));
            }
        }
        // Limits of ONNX Runtime's attention kernel.
        if shape.head == 0 || !shape.head.is_multiple_of(16) || shape.head > MOST {
            return Err(config.setting("head_dim", format!("is {}; a multiple of 16 can be computed", shape.head)));
        }
        if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) || shape.heads > MOST {
            let message = format!("is {}, among which {} heads do not divide", shape.kv_heads, shape.heads);
            return Err(config.setting("num_key_value_heads", message));
        }
        Ok(shape)
    }

    /// Width of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head
    }

    /// Width of all key heads, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head
    }
}

impl DecoderGraph<'_> {
    /// The flat token axis of the paged form.
    pub fn is_flat(&self) -> bool {
        self.form == Form::Text(Flavour::Paged)
    }

    /// Adds a weight, read only if no earlier graph has written it.
    pub fn weight(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Checkpoint) -> Result<Weight, ExportError>,
    ) -> Result<(), ExportError> {
        if self.graph.reuse(name) {
            return Ok(());
        }
        let weight = read(self.source)?;
        self.graph.weight(name, &weight, self.numbers.element)
    }

    /// Adds a weight as the checkpoint has it.
    pub fn copy(&mut self, name: &str, shape: &[usize]) -> Result<(), ExportError> {
        self.weight(name, |source| source.read(name, shape))
    }

    /// RMS norm of the last axis.
    pub fn norm(&mut self, input: &str, weight: &str, output: &str) {
        let attributes = vec![int("axis", -1), float("epsilon", self.shape.epsilon), int("stash_type", 1)];
        self.graph.node(node("SimplifiedLayerNormalization", &[input, weight], &[output], attributes));
    }

    /// `input_ids` → `embedded`, `layers.0.normed`.
    fn write_embedding(&mut self) -> Result<(), ExportError> {
        let table = [self.shape.vocabulary, self.shape.hidden];
        let is_head = self.source.config.tie_word_embeddings && self.form != Form::Vector;
        match self.table_blocks(EMBEDDING).filter(|_| is_head) {
            Some(blocks) => self.write_packed_embedding(EMBEDDING, table, blocks)?,
            None => {
                self.copy(EMBEDDING, &table)?;
                self.graph.node(node("Gather", &[EMBEDDING, names::INPUT_IDS], &["embedded"], vec![int("axis", 0)]));
            }
        }
        let first_norm = "model.layers.0.input_layernorm.weight";
        self.copy(first_norm, &[self.shape.hidden])?;
        self.norm("embedded", first_norm, "layers.0.normed");
        Ok(())
    }

    /// SwiGLU, and the norm in front of whatever follows: the next layer or the head.
    fn write_feed_forward(&mut self, layer: usize, residual: &str) -> Result<(), ExportError> {
        let prefix = format!("model.layers.{layer}");
        let local = |name: &str| format!("layers.{layer}.{name}");
        let mlp = |name: &str| format!("{prefix}.mlp.{name}");
        let (hidden, inner, biased) = (self.shape.hidden, self.shape.inner, self.shape.inner_bias);
        let norm = format!("{prefix}.post_attention_layernorm.weight");
        self.copy(&norm, &[hidden])?;
        self.skip_norm(&local("attended"), residual, &norm, [&local("inner_normed"), &local("inner_residual")]);

        self.linear(&mlp("gate_proj"), [inner, hidden], biased, &local("inner_normed"), &local("gate"))?;
        self.linear(&mlp("up_proj"), [inner, hidden], biased, &local("inner_normed"), &local("up"))?;
        let alpha = vec![float("alpha", 1.0)];
        self.graph.node(microsoft("QuickGelu", &[&local("gate")], &[&local("activated")], alpha));
        self.graph.node(node("Mul", &[&local("activated"), &local("up")], &[&local("product")], vec![]));
        self.linear(&mlp("down_proj"), [hidden, inner], biased, &local("product"), &local("down"))?;

        let next = layer + 1;
        let (gamma, normed, new_residual) = match next == self.shape.layers {
            true => (LAST_NORM.to_owned(), names::HIDDEN_STATES.to_owned(), String::new()),
            false => (
                format!("model.layers.{next}.input_layernorm.weight"),
                format!("layers.{next}.normed"),
                format!("layers.{next}.residual"),
            ),
        };
        self.copy(&gamma, &[hidden])?;
        self.skip_norm(&local("down"), &local("inner_residual"), &gamma, [&normed, &new_residual]);
        Ok(())
    }

    /// Norm of input + skipped; the sum is the second output, a residual without a node of its own.
    fn skip_norm(&mut self, input: &str, skipped: &str, gamma: &str, outputs: [&str; 2]) {
        let epsilon = vec![float("epsilon", self.shape.epsilon)];
        let [normed, sum] = outputs;
        let inputs = [input, skipped, gamma];
        self.graph.node(microsoft("SkipSimplifiedLayerNormalization", &inputs, &[normed, "", "", sum], epsilon));
    }

    /// `hidden_states` → `logits` f32 at the wanted positions only.
    fn write_head(&mut self) -> Result<(), ExportError> {
        let (vocabulary, hidden) = (self.shape.vocabulary, self.shape.hidden);
        let mut flat = names::HIDDEN_STATES;
        if !self.is_flat() {
            flat = "flat";
            self.graph.integers("flat_rows", &[2], &[-1, hidden as i64]);
            self.graph.node(node("Reshape", &[names::HIDDEN_STATES, "flat_rows"], &[flat], vec![]));
        }
        self.graph.node(node("Gather", &[flat, names::LOGITS_INDICES], &[SELECTED], vec![int("axis", 0)]));

        let product = match self.numbers.element {
            Element::F32 => names::LOGITS,
            Element::F16 | Element::Bf16 => "logits_rounded",
        };
        match (self.source.config.tie_word_embeddings, self.table_blocks(EMBEDDING)) {
            // One table serves both ends: no second copy in the file or in memory.
            (true, None) => {
                let attributes = vec![int("transB", 1)];
                self.graph.node(microsoft("FusedMatMul", &[SELECTED, EMBEDDING], &[product], attributes));
            }
            (true, Some(table)) => {
                self.packed_head(EMBEDDING, [vocabulary, hidden], table.blocks, [SELECTED, product])?;
            }
            (false, _) => {
                self.multiply(HEAD, &Stack::of_one(HEAD, [vocabulary, hidden]), SELECTED, product)?;
            }
        }
        if product != names::LOGITS {
            self.graph.node(node("Cast", &[product], &[names::LOGITS], vec![int("to", i64::from(FLOAT))]));
        }
        Ok(())
    }
}
