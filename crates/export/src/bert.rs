//! BERT encoders as an ONNX graph that pools and normalises inside.
//!
//! In: a checkpoint of `BertModel` (sentence-transformers layout), mean pooling. Out: nodes and weights in a
//! `GraphWriter`. Called by `export`. Graph inputs: `input_ids`, `attention_mask` i64 [B, S] (1 = token, 0 = padding,
//! padding on the right); output `sentence_embedding` f32 [B, d] of norm 1. Token type 0 is assumed.

use super::ExportError;
use super::checkpoint::{Checkpoint, Weight};
use super::names;
use super::onnx::{FLOAT, INT32, INT64, fixed, float, int, microsoft, node, symbol, value};
use super::options::Element;
use super::pooling::Pooling;
use super::writer::GraphWriter;

/// Sizes of one encoder.
struct Shape {
    hidden: usize,
    inner: usize,
    heads: usize,
    epsilon: f32,
    /// Operator that adds the bias and applies the activation.
    activation: &'static str,
    /// Some checkpoints put "bert." before every name.
    prefix: &'static str,
}

/// Writes the whole encoder.
pub fn write(source: &mut Checkpoint, graph: &mut GraphWriter, positions: usize) -> Result<(), ExportError> {
    check_pooling(source)?;
    let shape = shape(source)?;
    let batch_by_length = [symbol("batch"), symbol("sequence")];
    graph.input(value(names::INPUT_IDS, INT64, &batch_by_length));
    graph.input(value(names::ATTENTION_MASK, INT64, &batch_by_length));
    graph.output(value(names::SENTENCE_EMBEDDING, FLOAT, &[symbol("batch"), fixed(shape.hidden)]));

    write_embedding(source, graph, &shape, positions)?;
    graph.node(node("Cast", &[names::ATTENTION_MASK], &["mask"], vec![int("to", i64::from(INT32))]));
    for layer in 0..source.config.num_hidden_layers {
        write_attention(source, graph, &shape, layer)?;
        write_feed_forward(source, graph, &shape, layer)?;
    }
    write_pooling(graph, source.config.num_hidden_layers);
    Ok(())
}

fn shape(source: &Checkpoint) -> Result<Shape, ExportError> {
    let config = &source.config;
    let activation = match config.hidden_act.as_deref() {
        Some("gelu") => "BiasGelu",
        Some("gelu_new" | "gelu_pytorch_tanh") => "FastGelu",
        other => return Err(ExportError::NotBuilt(format!("activation {other:?} in an encoder"))),
    };
    let kind = config.position_embedding_type.as_deref().unwrap_or("absolute");
    if kind != "absolute" {
        return Err(ExportError::NotBuilt(format!("position embedding of type '{kind}'")));
    }
    if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        let message =
            format!("width {} does not divide among {} heads", config.hidden_size, config.num_attention_heads);
        return Err(ExportError::Config { message });
    }
    let prefix = if source.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
    Ok(Shape {
        hidden: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        epsilon: config.layer_norm_eps.unwrap_or(1e-12),
        activation,
        prefix,
    })
}

/// sentence-transformers says in `1_Pooling/config.json` how vectors are pooled; only the mean is in the graph.
fn check_pooling(source: &Checkpoint) -> Result<(), ExportError> {
    match Pooling::of(&source.folder)? {
        None | Some(Pooling::Mean) => Ok(()),
        Some(Pooling::Last) => Err(ExportError::NotBuilt("pooling of the last token in a BertModel".to_owned())),
    }
}

/// `input_ids` → `layers.0.input` [B, S, d].
fn write_embedding(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    positions: usize,
) -> Result<(), ExportError> {
    let name = |part: &str| format!("{}embeddings.{part}", shape.prefix);
    let words = name("word_embeddings.weight");
    let weight = source.read(&words, &[source.config.vocab_size, shape.hidden])?;
    graph.weight(&words, &weight, Element::F32)?;

    // Token type 0 is the same for every token: its row is added to the positions once, here.
    let most = source.config.max_position_embeddings;
    let mut table = source.read(&name("position_embeddings.weight"), &[most, shape.hidden])?;
    let types = source.read(&name("token_type_embeddings.weight"), &[source.config.type_vocab_size, shape.hidden])?;
    table.values.truncate(positions * shape.hidden);
    for row in table.values.chunks_mut(shape.hidden) {
        row.iter_mut().zip(&types.values).for_each(|(cell, addend)| *cell += addend);
    }
    graph.weight("positions", &Weight { shape: vec![positions, shape.hidden], values: table.values }, Element::F32)?;

    graph.integers("first", &[1], &[0]);
    graph.node(node("Shape", &[names::INPUT_IDS], &["length"], vec![int("start", 1), int("end", 2)]));
    graph.node(node("Slice", &["positions", "first", "length", "first"], &["positions_used"], vec![]));
    graph.node(node("Gather", &[&words, names::INPUT_IDS], &["words"], vec![int("axis", 0)]));
    graph.node(node("Add", &["words", "positions_used"], &["summed"], vec![]));
    let (gamma, beta) = (name("LayerNorm.weight"), name("LayerNorm.bias"));
    copy(source, graph, &gamma, &[shape.hidden])?;
    copy(source, graph, &beta, &[shape.hidden])?;
    let attributes = vec![int("axis", -1), float("epsilon", shape.epsilon)];
    graph.node(node("LayerNormalization", &["summed", &gamma, &beta], &["layers.0.input"], attributes));
    Ok(())
}

/// `layers.{l}.input` → `layers.{l}.middle`: self-attention, projection, residual and norm.
fn write_attention(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    layer: usize,
) -> Result<(), ExportError> {
    let name = |part: &str| format!("{}encoder.layer.{layer}.attention.{part}", shape.prefix);
    let local = |part: &str| format!("layers.{layer}.{part}");
    let square = [shape.hidden, shape.hidden];

    let mut packed = source.read(&name("self.query.weight"), &square)?;
    let mut packed_bias = source.read(&name("self.query.bias"), &[shape.hidden])?;
    for part in ["key", "value"] {
        packed = packed.stacked(source.read(&name(&format!("self.{part}.weight")), &square)?);
        packed_bias = packed_bias.stacked(source.read(&name(&format!("self.{part}.bias")), &[shape.hidden])?);
    }
    let (weight, bias) = (name("self.qkv.weight"), name("self.qkv.bias"));
    graph.weight(&weight, &packed.transposed(), Element::F32)?;
    graph.weight(&bias, &packed_bias, Element::F32)?;
    let heads = vec![int("num_heads", shape.heads as i64)];
    graph.node(microsoft("Attention", &[&local("input"), &weight, &bias, "mask"], &[&local("heads")], heads));

    linear(source, graph, &name("output.dense"), [shape.hidden, shape.hidden], &local("heads"), &local("attended"))?;
    add_and_norm(source, graph, shape, &name("output"), [&local("attended"), &local("input"), &local("middle")])
}

/// `layers.{l}.middle` → `layers.{l+1}.input`: two linear layers with an activation, residual and norm.
fn write_feed_forward(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    layer: usize,
) -> Result<(), ExportError> {
    let name = |part: &str| format!("{}encoder.layer.{layer}.{part}", shape.prefix);
    let local = |part: &str| format!("layers.{layer}.{part}");
    let next = format!("layers.{}.input", layer + 1);

    linear(source, graph, &name("intermediate.dense"), [shape.inner, shape.hidden], &local("middle"), &local("wide"))?;
    let bias = name("intermediate.dense.bias");
    copy(source, graph, &bias, &[shape.inner])?;
    graph.node(microsoft(shape.activation, &[&local("wide"), &bias], &[&local("activated")], vec![]));
    linear(source, graph, &name("output.dense"), [shape.hidden, shape.inner], &local("activated"), &local("narrow"))?;
    add_and_norm(source, graph, shape, &name("output"), [&local("narrow"), &local("middle"), &next])
}

/// MatMul with the weight `{name}.weight` [out, in]; the bias is left to the node that follows.
fn linear(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    name: &str,
    shape: [usize; 2],
    input: &str,
    output: &str,
) -> Result<(), ExportError> {
    let weight_name = format!("{name}.weight");
    let weight = source.read(&weight_name, &shape)?.transposed();
    graph.weight(&weight_name, &weight, Element::F32)?;
    graph.node(node("MatMul", &[input, &weight_name], &[output], vec![]));
    Ok(())
}

/// LayerNorm(input + dense bias + residual), with the weights of `{name}.dense.bias` and `{name}.LayerNorm`.
fn add_and_norm(
    source: &mut Checkpoint,
    graph: &mut GraphWriter,
    shape: &Shape,
    name: &str,
    [input, residual, output]: [&str; 3],
) -> Result<(), ExportError> {
    let parts = [format!("{name}.LayerNorm.weight"), format!("{name}.LayerNorm.bias"), format!("{name}.dense.bias")];
    for part in &parts {
        copy(source, graph, part, &[shape.hidden])?;
    }
    let inputs = [input, residual, &parts[0], &parts[1], &parts[2]];
    graph.node(microsoft("SkipLayerNormalization", &inputs, &[output], vec![float("epsilon", shape.epsilon)]));
    Ok(())
}

/// Mean over the tokens of a row, then norm 1. Dividing by the count would change nothing after normalising: left out.
fn write_pooling(graph: &mut GraphWriter, layers: usize) {
    graph.integers("second", &[1], &[1]);
    graph.node(node("Cast", &[names::ATTENTION_MASK], &["token_weights"], vec![int("to", i64::from(FLOAT))]));
    graph.node(node("Unsqueeze", &["token_weights", "second"], &["token_row"], vec![]));
    graph.node(node("MatMul", &["token_row", &format!("layers.{layers}.input")], &["pooled_row"], vec![]));
    graph.node(node("Squeeze", &["pooled_row", "second"], &["pooled"], vec![]));
    let attributes = vec![int("axis", -1), int("p", 2)];
    graph.node(node("LpNormalization", &["pooled"], &[names::SENTENCE_EMBEDDING], attributes));
}

fn copy(source: &mut Checkpoint, graph: &mut GraphWriter, name: &str, shape: &[usize]) -> Result<(), ExportError> {
    let weight = source.read(name, shape)?;
    graph.weight(name, &weight, Element::F32)
}
