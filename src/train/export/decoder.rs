//! Qwen2 and Qwen3 decoders as an ONNX graph with GroupQueryAttention over a shared key-value buffer.
//!
//! In: a checkpoint. Out: nodes and weights in a `GraphWriter`. Called by `export`.
//!
//! | graph input | type | shape | meaning |
//! |---|---|---|---|
//! | `input_ids` | i64 | [B, S] | right-padded |
//! | `seqlens_k` | i32 | [B] | tokens of the row after this step, minus 1 |
//! | `total_sequence_length` | i32 | [] | longest row after this step |
//! | `logits_indices` | i64 | [N] | flat positions in B*S at which logits are wanted |
//! | `past_key_values.{l}.key`, `.value` | f32 | [B, K, M, hd] | the shared buffer |
//!
//! Outputs: `logits` f32 [N, V], `hidden_states` f32 [B, S, d] (after the last norm), `present.{l}.key`, `.value`: bind
//! them to the memory of the past. B, S, N, M are free; K, hd, V, d are fixed.

use super::ExportError;
use super::checkpoint::{Checkpoint, Config, Weight};
use super::onnx::{FLOAT, INT32, INT64, fixed, float, int, microsoft, node, symbol, value};
use super::writer::GraphWriter;

const EMBEDDING: &str = "model.embed_tokens.weight";

/// Sizes of one decoder.
struct Shape {
    layers: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    vocabulary: usize,
    positions: usize,
    epsilon: f32,
}

/// Writes the whole decoder.
pub fn write(source: &mut Checkpoint, graph: &mut GraphWriter, positions: usize) -> Result<(), ExportError> {
    let shape = Shape::of(&source.config, positions)?;
    let theta = source.config.theta()?;
    declare(graph, &shape);
    write_rope(graph, &shape, theta)?;

    let embedding = source.read(EMBEDDING, &[shape.vocabulary, shape.hidden])?;
    graph.weight(EMBEDDING, &embedding)?;
    drop(embedding);
    graph.node(node("Gather", &[EMBEDDING, "input_ids"], &["embedded"], vec![int("axis", 0)]));
    let first_norm = "model.layers.0.input_layernorm.weight";
    copy(source, graph, first_norm, &[shape.hidden])?;
    let norm = vec![int("axis", -1), float("epsilon", shape.epsilon), int("stash_type", 1)];
    graph.node(node("SimplifiedLayerNormalization", &["embedded", first_norm], &["layers.0.normed"], norm));

    for layer in 0..shape.layers {
        let residual = match layer {
            0 => "embedded".to_owned(),
            _ => format!("layers.{layer}.residual"),
        };
        write_attention(source, graph, &shape, layer)?;
        write_feed_forward(source, graph, &shape, layer, &residual)?;
    }
    write_head(source, graph, &shape)
}

impl Shape {
    fn of(config: &Config, positions: usize) -> Result<Self, ExportError> {
        let shape = Self {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            kv_heads: config.kv_heads(),
            head: config.head_width(),
            vocabulary: config.vocab_size,
            positions,
            epsilon: config.rms_norm_eps.unwrap_or(1e-6),
        };
        if config.use_sliding_window {
            return Err(ExportError::NotBuilt("sliding window attention".to_owned()));
        }
        if config.hidden_act.as_deref() != Some("silu") {
            return Err(ExportError::NotBuilt(format!("activation {:?} in a decoder", config.hidden_act)));
        }
        // Limits of ONNX Runtime's attention kernel.
        if shape.layers == 0 || shape.head == 0 || !shape.head.is_multiple_of(16) {
            let message = format!("head_dim {} must be a multiple of 16 and there must be a layer", shape.head);
            return Err(ExportError::Config { message });
        }
        if shape.kv_heads == 0 || !shape.heads.is_multiple_of(shape.kv_heads) {
            let message = format!("{} heads do not divide among {} key-value heads", shape.heads, shape.kv_heads);
            return Err(ExportError::Config { message });
        }
        Ok(shape)
    }

    fn query_width(&self) -> usize {
        self.heads * self.head
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head
    }
}

fn declare(graph: &mut GraphWriter, shape: &Shape) {
    graph.input(value("input_ids", INT64, &[symbol("batch"), symbol("sequence")]));
    graph.input(value("seqlens_k", INT32, &[symbol("batch")]));
    graph.input(value("total_sequence_length", INT32, &[]));
    graph.input(value("logits_indices", INT64, &[symbol("selected")]));
    graph.output(value("logits", FLOAT, &[symbol("selected"), fixed(shape.vocabulary)]));
    graph.output(value("hidden_states", FLOAT, &[symbol("batch"), symbol("sequence"), fixed(shape.hidden)]));
    let cache = [symbol("batch"), fixed(shape.kv_heads), symbol("slots"), fixed(shape.head)];
    for layer in 0..shape.layers {
        for part in ["key", "value"] {
            graph.input(value(&format!("past_key_values.{layer}.{part}"), FLOAT, &cache));
            graph.output(value(&format!("present.{layer}.{part}"), FLOAT, &cache));
        }
    }
}

/// cos and sin of position * theta^(-2i/hd), [positions, hd/2]; computed as the reference does: frequencies in f32.
fn write_rope(graph: &mut GraphWriter, shape: &Shape, theta: f64) -> Result<(), ExportError> {
    let half = shape.head / 2;
    let frequencies: Vec<f32> =
        (0..half).map(|index| (1.0 / theta.powf(2.0 * index as f64 / shape.head as f64)) as f32).collect();
    let table = |function: fn(f64) -> f64| Weight {
        shape: vec![shape.positions, half],
        values: (0..shape.positions)
            .flat_map(|position| frequencies.iter().map(move |&frequency| position as f32 * frequency))
            .map(|angle| function(f64::from(angle)) as f32)
            .collect(),
    };
    graph.weight("rope.cos", &table(f64::cos))?;
    graph.weight("rope.sin", &table(f64::sin))
}

/// `layers.{l}.normed` → `layers.{l}.attended` [B, S, d], and the layer's keys and values.
fn write_attention(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    layer: usize,
) -> Result<(), ExportError> {
    let prefix = format!("model.layers.{layer}.self_attn");
    let local = |name: &str| format!("layers.{layer}.{name}");
    let (query, kv, hidden) = (shape.query_width(), shape.kv_width(), shape.hidden);

    let mut packed = source.read(&format!("{prefix}.q_proj.weight"), &[query, hidden])?;
    packed = packed.stacked(source.read(&format!("{prefix}.k_proj.weight"), &[kv, hidden])?);
    packed = packed.stacked(source.read(&format!("{prefix}.v_proj.weight"), &[kv, hidden])?);
    let weight = format!("{prefix}.qkv_proj.weight");
    graph.weight(&weight, &packed.transposed())?;
    let mut projected = local("qkv");
    graph.node(node("MatMul", &[&local("normed"), &weight], &[&projected], vec![]));

    if source.has(&format!("{prefix}.q_proj.bias")) {
        let mut packed_bias = source.read(&format!("{prefix}.q_proj.bias"), &[query])?;
        packed_bias = packed_bias.stacked(source.read(&format!("{prefix}.k_proj.bias"), &[kv])?);
        packed_bias = packed_bias.stacked(source.read(&format!("{prefix}.v_proj.bias"), &[kv])?);
        let bias = format!("{prefix}.qkv_proj.bias");
        graph.weight(&bias, &packed_bias)?;
        let biased = local("qkv_biased");
        graph.node(node("Add", &[&projected, &bias], &[&biased], vec![]));
        projected = biased;
    }

    let (mut key_name, mut value_name) = (String::new(), String::new());
    if source.has(&format!("{prefix}.q_norm.weight")) {
        (projected, key_name, value_name) = write_head_norms(source, graph, shape, layer, &projected)?;
    }
    write_group_query(graph, shape, layer, [&projected, &key_name, &value_name]);

    let output = format!("{prefix}.o_proj.weight");
    let output_weight = source.read(&output, &[hidden, query])?.transposed();
    graph.weight(&output, &output_weight)?;
    graph.node(node("MatMul", &[&local("heads"), &output], &[&local("attended")], vec![]));
    Ok(())
}

/// Qwen3 normalises every head of query and key before rotation; the CPU kernel leaves that to nodes.
fn write_head_norms(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    layer: usize,
    packed: &str,
) -> Result<(String, String, String), ExportError> {
    let local = |name: &str| format!("layers.{layer}.{name}");
    let (query, kv) = (shape.query_width() as i64, shape.kv_width() as i64);
    if layer == 0 {
        graph.integers("qkv_widths", &[3], &[query, kv, kv]);
        graph.integers("per_head", &[4], &[0, 0, -1, shape.head as i64]);
        graph.integers("query_flat", &[3], &[0, 0, query]);
        graph.integers("key_flat", &[3], &[0, 0, kv]);
    }
    let parts = [local("query"), local("key"), local("value")];
    let split = vec![int("axis", -1)];
    graph.node(node("Split", &[packed, "qkv_widths"], &[&parts[0], &parts[1], &parts[2]], split));
    for (part, norm, flat) in [("query", "q_norm", "query_flat"), ("key", "k_norm", "key_flat")] {
        let weight = format!("model.layers.{layer}.self_attn.{norm}.weight");
        copy(source, graph, &weight, &[shape.head])?;
        let (by_head, normed) = (local(&format!("{part}_by_head")), local(&format!("{part}_by_head_normed")));
        graph.node(node("Reshape", &[&local(part), "per_head"], &[&by_head], vec![]));
        let attributes = vec![int("axis", -1), float("epsilon", shape.epsilon), int("stash_type", 1)];
        graph.node(node("SimplifiedLayerNormalization", &[&by_head, &weight], &[&normed], attributes));
        graph.node(node("Reshape", &[&normed, flat], &[&local(&format!("{part}_normed"))], vec![]));
    }
    Ok((local("query_normed"), local("key_normed"), local("value")))
}

/// `projected` = query, key, value; key and value are empty when all three are packed in the first.
fn write_group_query(graph: &mut GraphWriter, shape: &Shape, layer: usize, projected: [&str; 3]) {
    let past = |part: &str| format!("past_key_values.{layer}.{part}");
    let present = |part: &str| format!("present.{layer}.{part}");
    let [query, key, value_input] = projected;
    graph.node(microsoft(
        "GroupQueryAttention",
        &[
            query,
            key,
            value_input,
            &past("key"),
            &past("value"),
            "seqlens_k",
            "total_sequence_length",
            "rope.cos",
            "rope.sin",
        ],
        &[&format!("layers.{layer}.heads"), &present("key"), &present("value")],
        vec![
            int("num_heads", shape.heads as i64),
            int("kv_num_heads", shape.kv_heads as i64),
            int("do_rotary", 1),
            int("rotary_interleaved", 0),
            float("scale", 1.0 / (shape.head as f32).sqrt()),
        ],
    ));
}

/// SwiGLU, and the norm in front of whatever follows: the next layer or the head.
fn write_feed_forward(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    layer: usize,
    residual: &str,
) -> Result<(), ExportError> {
    let prefix = format!("model.layers.{layer}");
    let local = |name: &str| format!("layers.{layer}.{name}");
    let norm = format!("{prefix}.post_attention_layernorm.weight");
    copy(source, graph, &norm, &[shape.hidden])?;
    let skip = |input: &str, skipped: &str, gamma: &str, outputs: [&str; 2]| {
        let epsilon = vec![float("epsilon", shape.epsilon)];
        // Output 3 is input + skip: the new residual without a node of its own.
        microsoft(
            "SkipSimplifiedLayerNormalization",
            &[input, skipped, gamma],
            &[outputs[0], "", "", outputs[1]],
            epsilon,
        )
    };
    graph.node(skip(&local("attended"), residual, &norm, [&local("inner_normed"), &local("inner_residual")]));

    for (part, rows, columns) in [
        ("gate_proj", shape.inner, shape.hidden),
        ("up_proj", shape.inner, shape.hidden),
        ("down_proj", shape.hidden, shape.inner),
    ] {
        let name = format!("{prefix}.mlp.{part}.weight");
        let weight = source.read(&name, &[rows, columns])?.transposed();
        graph.weight(&name, &weight)?;
    }
    let weight = |part: &str| format!("{prefix}.mlp.{part}.weight");
    graph.node(node("MatMul", &[&local("inner_normed"), &weight("gate_proj")], &[&local("gate")], vec![]));
    graph.node(node("MatMul", &[&local("inner_normed"), &weight("up_proj")], &[&local("up")], vec![]));
    graph.node(microsoft("QuickGelu", &[&local("gate")], &[&local("activated")], vec![float("alpha", 1.0)]));
    graph.node(node("Mul", &[&local("activated"), &local("up")], &[&local("product")], vec![]));
    graph.node(node("MatMul", &[&local("product"), &weight("down_proj")], &[&local("down")], vec![]));

    let is_last = layer + 1 == shape.layers;
    let next = layer + 1;
    let (gamma, normed, new_residual) = match is_last {
        true => ("model.norm.weight".to_owned(), "hidden_states".to_owned(), String::new()),
        false => (
            format!("model.layers.{next}.input_layernorm.weight"),
            format!("layers.{next}.normed"),
            format!("layers.{next}.residual"),
        ),
    };
    copy(source, graph, &gamma, &[shape.hidden])?;
    graph.node(skip(&local("down"), &local("inner_residual"), &gamma, [&normed, &new_residual]));
    Ok(())
}

/// `hidden_states` → `logits` at the wanted positions only.
fn write_head(source: &mut Checkpoint, graph: &mut GraphWriter, shape: &Shape) -> Result<(), ExportError> {
    graph.integers("flat_rows", &[2], &[-1, shape.hidden as i64]);
    graph.node(node("Reshape", &["hidden_states", "flat_rows"], &["flat"], vec![]));
    graph.node(node("Gather", &["flat", "logits_indices"], &["selected"], vec![int("axis", 0)]));
    if source.config.tie_word_embeddings {
        // One table serves both ends: no second copy in the file or in memory.
        let attributes = vec![int("transB", 1)];
        graph.node(microsoft("FusedMatMul", &["selected", EMBEDDING], &["logits"], attributes));
        return Ok(());
    }
    let name = "lm_head.weight";
    let weight = source.read(name, &[shape.vocabulary, shape.hidden])?.transposed();
    graph.weight(name, &weight)?;
    graph.node(node("MatMul", &["selected", name], &["logits"], vec![]));
    Ok(())
}

fn copy(source: &mut Checkpoint, graph: &mut GraphWriter, name: &str, shape: &[usize]) -> Result<(), ExportError> {
    let weight = source.read(name, shape)?;
    graph.weight(name, &weight)
}
