//! Attention of a decoder layer in each kind of graph.
//!
//! In: `layers.{l}.normed`. Out: `layers.{l}.attended`, and the layer's keys and values where there is a cache. Called by
//! `decoder`.

use super::ExportError;
use super::checkpoint::Weight;
use super::decoder::{DecoderGraph, Form};
use super::linear::Stack;
use super::names;
use super::onnx::{AttributeProto, float, int, ints, microsoft, node};
use super::options::{Element, Flavour};

/// Names of query, key and value; key and value are empty when all three are packed in the first.
type Projected = [String; 3];

impl DecoderGraph<'_> {
    /// Writes one layer's attention, from the norm before to the projection behind.
    pub fn write_attention(&mut self, layer: usize) -> Result<(), ExportError> {
        let local = |name: &str| format!("layers.{layer}.{name}");
        let packed = self.write_qkv(layer)?;
        match self.form {
            Form::Text(Flavour::Std) => self.write_standard(layer, &packed)?,
            Form::Text(Flavour::Paged) => {
                let projected = self.project(layer, packed)?;
                self.write_paged(layer, &projected);
            }
            Form::Text(Flavour::Gqa | Flavour::Tree) | Form::Vector => {
                let projected = self.project(layer, packed)?;
                self.write_group_query(layer, &projected);
            }
        }
        let name = format!("model.layers.{layer}.self_attn.o_proj");
        let shape = [self.shape.hidden, self.shape.query_width()];
        self.linear(&name, shape, self.shape.output_bias, &local("heads"), &local("attended"))
    }

    /// Query, key and value in one product; the name of the result [.., (H+2K)*hd].
    fn write_qkv(&mut self, layer: usize) -> Result<String, ExportError> {
        let prefix = format!("model.layers.{layer}.self_attn");
        let local = |name: &str| format!("layers.{layer}.{name}");
        let (query, kv, hidden) = (self.shape.query_width(), self.shape.kv_width(), self.shape.hidden);
        let parts = [("q", query), ("k", kv), ("v", kv)];
        let (weight, projected) = (format!("{prefix}.qkv_proj.weight"), local("qkv"));
        let stack = Stack::of(parts.map(|(part, rows)| (format!("{prefix}.{part}_proj.weight"), rows)), hidden);
        self.multiply(&weight, &stack, &local("normed"), &projected)?;
        if !self.shape.qkv_bias {
            return Ok(projected);
        }
        let (bias, biased) = (format!("{prefix}.qkv_proj.bias"), local("qkv_biased"));
        self.weight(&bias, |source| {
            let mut whole = Weight { shape: vec![0], values: Vec::new() };
            for (part, rows) in parts {
                whole = whole.stacked(source.read(&format!("{prefix}.{part}_proj.bias"), &[rows])?);
            }
            Ok(whole)
        })?;
        self.graph.node(node("Add", &[&projected, &bias], &[&biased], vec![]));
        Ok(biased)
    }

    /// What the fused kernels take: everything packed, or apart when the heads are normalised first.
    fn project(&mut self, layer: usize, packed: String) -> Result<Projected, ExportError> {
        if !self.shape.head_norms {
            return Ok([packed, String::new(), String::new()]);
        }
        let parts = self.split(layer, &packed);
        let local = |name: &str| format!("layers.{layer}.{name}");
        for (part, norm, flat) in [("query", "q_norm", "query_flat"), ("key", "k_norm", "key_flat")] {
            let normed = self.head_norm(layer, part, norm)?;
            self.graph.node(node("Reshape", &[&normed, flat], &[&local(&format!("{part}_normed"))], vec![]));
        }
        let [_, _, value] = parts;
        Ok([local("query_normed"), local("key_normed"), value])
    }

    /// Splits the packed projections; the shapes that all layers use come with the first.
    fn split(&mut self, layer: usize, packed: &str) -> Projected {
        let parts = ["query", "key", "value"].map(|part| format!("layers.{layer}.{part}"));
        let (query, kv, head) = (self.shape.query_width() as i64, self.shape.kv_width() as i64, self.shape.head as i64);
        if layer == 0 {
            // Reshape keeps an axis where it finds 0: rows and tokens, or tokens alone.
            let kept: &[i64] = if self.is_flat() { &[0] } else { &[0, 0] };
            let shape = |rest: &[i64]| [kept, rest].concat();
            let constant = |values: Vec<i64>| ([values.len() as i64], values);
            for (name, (dims, values)) in [
                ("qkv_widths", constant(vec![query, kv, kv])),
                ("per_head", constant(shape(&[-1, head]))),
                ("query_flat", constant(shape(&[query]))),
                ("key_flat", constant(shape(&[kv]))),
            ] {
                if name == "key_flat" && self.form == Form::Text(Flavour::Std) {
                    continue;
                }
                self.graph.integers(name, &dims, &values);
            }
        }
        let outputs = parts.each_ref().map(String::as_str);
        self.graph.node(node("Split", &[packed, "qkv_widths"], &outputs, vec![int("axis", -1)]));
        parts
    }

    /// Qwen3 normalises every head of query and key before rotation; the CPU kernel leaves that to nodes.
    fn head_norm(&mut self, layer: usize, part: &str, norm: &str) -> Result<String, ExportError> {
        let local = |name: &str| format!("layers.{layer}.{name}");
        let weight = format!("model.layers.{layer}.self_attn.{norm}.weight");
        self.copy(&weight, &[self.shape.head])?;
        let (by_head, normed) = (local(&format!("{part}_by_head")), local(&format!("{part}_by_head_normed")));
        self.graph.node(node("Reshape", &[&local(part), "per_head"], &[&by_head], vec![]));
        self.norm(&by_head, &weight, &normed);
        Ok(normed)
    }

    fn write_group_query(&mut self, layer: usize, [query, key, value]: &Projected) {
        let past = |part: &str| match self.form {
            Form::Vector => String::new(),
            Form::Text(_) => names::past(layer, part),
        };
        let present = |part: &str| names::present(layer, part);
        let (past_key, past_value) = (past("key"), past("value"));
        let mut inputs = vec![
            query.as_str(),
            key.as_str(),
            value.as_str(),
            past_key.as_str(),
            past_value.as_str(),
            names::SEQLENS_K,
            names::TOTAL_SEQUENCE_LENGTH,
            "rope.cos",
            "rope.sin",
        ];
        if self.form == Form::Text(Flavour::Tree) {
            inputs.extend([names::POSITION_IDS, names::ATTENTION_BIAS]);
        }
        let outputs = [format!("layers.{layer}.heads"), present("key"), present("value")];
        let attributes = self.kernel_attributes();
        let outputs = outputs.each_ref().map(String::as_str);
        self.graph.node(microsoft("GroupQueryAttention", &inputs, &outputs, attributes));
    }

    fn write_paged(&mut self, layer: usize, [query, key, value]: &Projected) {
        let past = |part: &str| names::past(layer, part);
        let present = |part: &str| names::present(layer, part);
        let (past_key, past_value) = (past("key"), past("value"));
        let inputs = [
            query.as_str(),
            key.as_str(),
            value.as_str(),
            &past_key,
            &past_value,
            "cumulative_sequence_lengths",
            "past_sequence_lengths",
            "block_table",
            "rope.cos",
            "rope.sin",
            // Slots follow from the block table; sinks, norms inside the kernel and cache scales are not used.
            "",
            "",
            "",
            "",
            "",
            "",
            "attention_metadata",
        ];
        let outputs = [format!("layers.{layer}.heads"), present("key"), present("value")];
        let attributes = self.kernel_attributes();
        let outputs = outputs.each_ref().map(String::as_str);
        self.graph.node(microsoft("PagedAttention", &inputs, &outputs, attributes));
    }

    fn kernel_attributes(&self) -> Vec<AttributeProto> {
        vec![
            int("num_heads", self.shape.heads as i64),
            int("kv_num_heads", self.shape.kv_heads as i64),
            int("do_rotary", 1),
            int("rotary_interleaved", 0),
            float("scale", self.scale()),
        ]
    }

    fn scale(&self) -> f32 {
        1.0 / (self.shape.head as f32).sqrt()
    }

    /// Rotation, cache and attention as separate operators: rows of any length at any position in one call.
    ///
    /// The H/K query heads of a key-value head see the same keys, so they are laid one behind the other along the tokens:
    /// [B, H, S, hd] read as [B, K, H/K * S, hd]. The operator would copy keys and values once per query head instead.
    fn write_standard(&mut self, layer: usize, packed: &str) -> Result<(), ExportError> {
        let local = |name: &str| format!("layers.{layer}.{name}");
        let present = |part: &str| names::present(layer, part);
        self.split(layer, packed);
        let by_head = || ints("perm", &[0, 2, 1, 3]);
        for (part, norm) in [("query", "q_norm"), ("key", "k_norm"), ("value", "")] {
            let apart = match self.shape.head_norms && part != "value" {
                true => self.head_norm(layer, part, norm)?,
                false => {
                    let apart = local(&format!("{part}_by_head"));
                    self.graph.node(node("Reshape", &[&local(part), "per_head"], &[&apart], vec![]));
                    apart
                }
            };
            let heads_first = local(&format!("{part}_heads"));
            self.graph.node(node("Transpose", &[&apart], &[&heads_first], vec![by_head()]));
        }
        for part in ["query", "key"] {
            let inputs = [&local(&format!("{part}_heads")), "rope.cos", "rope.sin", names::POSITION_IDS];
            let turned = local(&format!("{part}_turned"));
            self.graph.node(node("RotaryEmbedding", &inputs, &[&turned], vec![int("interleaved", 0)]));
        }
        for (part, new) in [("key", local("key_turned")), ("value", local("value_heads"))] {
            let inputs = [&names::past(layer, part), &new, names::WRITE_INDICES];
            self.graph.node(node("TensorScatter", &inputs, &[&present(part)], vec![int("axis", 2)]));
        }
        let bias = self.standard_bias(layer);
        let (grouped, attended) = (local("query_grouped"), local("heads_grouped"));
        self.graph.node(node("Reshape", &[&local("query_turned"), "per_group"], &[&grouped], vec![]));
        let inputs = [&grouped, &present("key"), &present("value"), bias, "", "", names::NONPAD_KV_SEQLEN];
        let attributes = vec![float("scale", self.scale()), int("is_causal", 0)];
        self.graph.node(node("Attention", &inputs, &[&attended], attributes));
        self.graph.node(node("Reshape", &[&attended, "per_query_head"], &[&local("heads_first")], vec![]));
        self.graph.node(node("Transpose", &[&local("heads_first")], &[&local("tokens_first")], vec![by_head()]));
        self.graph.node(node("Reshape", &[&local("tokens_first"), "query_flat"], &[&local("heads")], vec![]));
        Ok(())
    }

    /// The bias of all heads of a group, in the graph's own numbers; it comes in as f32, for one head. Made with the first
    /// layer, for all.
    fn standard_bias(&mut self, layer: usize) -> &'static str {
        const GROUPED: &str = "attention_bias_grouped";
        if layer > 0 {
            return GROUPED;
        }
        let element = self.numbers.element;
        let mut one_head = names::ATTENTION_BIAS;
        if element != Element::F32 {
            let to = vec![int("to", i64::from(element.onnx()))];
            self.graph.node(node("Cast", &[one_head], &["attention_bias_rounded"], to));
            one_head = "attention_bias_rounded";
        }
        let (heads, kv_heads, head) = (self.shape.heads, self.shape.kv_heads, self.shape.head as i64);
        self.graph.node(node("Concat", &vec![one_head; heads / kv_heads], &[GROUPED], vec![int("axis", 2)]));
        for (name, rows) in [("per_group", kv_heads), ("per_query_head", heads)] {
            self.graph.integers(name, &[4], &[0, rows as i64, -1, head]);
        }
        GROUPED
    }
}
