//! The paged graph cannot run without a GPU: node by node against the description of its kernel.

use super::*;

fn paged(name: &str, precision: Precision) -> (onnx::GraphProto, TempDir) {
    let out = tempfile::tempdir().unwrap();
    let options = ExportOptions { precision, flavours: vec![Flavour::Paged], ..ExportOptions::default() };
    export(&fixture(name), out.path(), &options).unwrap();
    let bytes = std::fs::read(out.path().join(GRAPH_FILE)).unwrap();
    let model: onnx::ModelProto = prost::Message::decode(bytes.as_slice()).unwrap();
    let noted = |key: &str| model.metadata_props.iter().find(|entry| entry.key == key).unwrap().value.clone();
    assert_eq!((noted(FLAVOUR).as_str(), noted(PRECISION).as_str()), ("paged", precision.name()));
    (model.graph.unwrap(), out)
}

/// `name type [dims]` of an input or output.
fn described(outlet: &onnx::ValueInfoProto) -> String {
    let tensor = outlet.r#type.as_ref().unwrap().tensor_type.as_ref().unwrap();
    let dims = tensor.shape.as_ref().unwrap().dim.iter().map(|dim| match dim.value.as_ref().unwrap() {
        onnx::Dim::Value(length) => length.to_string(),
        onnx::Dim::Param(symbol) => symbol.clone(),
    });
    format!("{} {} [{}]", outlet.name, tensor.elem_type, dims.collect::<Vec<_>>().join(", "))
}

/// `operator(inputs) -> outputs`, the domain in front where it is not ONNX's.
fn written(node: &onnx::NodeProto) -> String {
    let domain = if node.domain.is_empty() { String::new() } else { format!("{}:", node.domain) };
    format!("{domain}{}({}) -> {}", node.op_type, node.input.join(", "), node.output.join(", "))
}

#[test]
fn inputs_and_outputs_are_those_of_the_description() {
    let (graph, _) = paged("qwen2", Precision::F16);
    let inputs: Vec<String> = graph.input.iter().map(described).collect();
    let cache = |name: &str, layer: usize, part: &str| format!("{name}.{layer}.{part} 10 [blocks, block_slots, 2, 16]");
    let mut wanted = vec![
        "input_ids 7 [tokens]".to_owned(),
        "cumulative_sequence_lengths 6 [batch_plus_1]".to_owned(),
        "past_sequence_lengths 6 [batch]".to_owned(),
        "block_table 6 [batch, row_blocks]".to_owned(),
        "attention_metadata 6 [3]".to_owned(),
        "logits_indices 6 [selected]".to_owned(),
    ];
    for layer in 0..2 {
        wanted.extend(["key", "value"].map(|part| cache("past_key_values", layer, part)));
    }
    assert_eq!(inputs, wanted);
    let outputs: Vec<String> = graph.output.iter().map(described).collect();
    assert_eq!(outputs[..2], ["logits 1 [selected, 128]".to_owned(), "hidden_states 10 [tokens, 64]".to_owned()]);
    assert_eq!(outputs[2], cache("present", 0, "key"));
    assert_eq!(outputs.len(), 6);
}

#[test]
fn nodes_are_those_of_the_description() {
    let (graph, _) = paged("qwen2", Precision::Bf16);
    let nodes: Vec<String> = graph.node.iter().map(written).collect();
    let layer = "model.layers.0";
    let kernel = "layers.0.qkv_biased, , , past_key_values.0.key, past_key_values.0.value, cumulative_sequence_lengths, \
                  past_sequence_lengths, block_table, rope.cos, rope.sin, , , , , , , attention_metadata";
    assert_eq!(
        nodes[..13],
        [
            "Gather(model.embed_tokens.weight, input_ids) -> embedded".to_owned(),
            format!("SimplifiedLayerNormalization(embedded, {layer}.input_layernorm.weight) -> layers.0.normed"),
            format!("MatMul(layers.0.normed, {layer}.self_attn.qkv_proj.weight) -> layers.0.qkv"),
            format!("Add(layers.0.qkv, {layer}.self_attn.qkv_proj.bias) -> layers.0.qkv_biased"),
            format!("com.microsoft:PagedAttention({kernel}) -> layers.0.heads, present.0.key, present.0.value"),
            format!("MatMul(layers.0.heads, {layer}.self_attn.o_proj.weight) -> layers.0.attended"),
            format!(
                "com.microsoft:SkipSimplifiedLayerNormalization(layers.0.attended, embedded, \
                 {layer}.post_attention_layernorm.weight) -> layers.0.inner_normed, , , layers.0.inner_residual"
            ),
            format!("MatMul(layers.0.inner_normed, {layer}.mlp.gate_proj.weight) -> layers.0.gate"),
            format!("MatMul(layers.0.inner_normed, {layer}.mlp.up_proj.weight) -> layers.0.up"),
            "com.microsoft:QuickGelu(layers.0.gate) -> layers.0.activated".to_owned(),
            "Mul(layers.0.activated, layers.0.up) -> layers.0.product".to_owned(),
            format!("MatMul(layers.0.product, {layer}.mlp.down_proj.weight) -> layers.0.down"),
            "com.microsoft:SkipSimplifiedLayerNormalization(layers.0.down, layers.0.inner_residual, \
             model.layers.1.input_layernorm.weight) -> layers.1.normed, , , layers.1.residual"
                .to_owned(),
        ]
    );
    // No Reshape in front of the head: the token axis is flat already.
    assert_eq!(
        nodes[nodes.len() - 3..],
        [
            "Gather(hidden_states, logits_indices) -> selected".to_owned(),
            "MatMul(selected, lm_head.weight) -> logits_rounded".to_owned(),
            "Cast(logits_rounded) -> logits".to_owned(),
        ]
    );
    let attention = graph.node.iter().find(|node| node.op_type == "PagedAttention").unwrap();
    let attributes: Vec<(&str, i64, f32)> =
        attention.attribute.iter().map(|attribute| (attribute.name.as_str(), attribute.i, attribute.f)).collect();
    assert_eq!(
        attributes,
        [
            ("num_heads", 4, 0.0),
            ("kv_num_heads", 2, 0.0),
            ("do_rotary", 1, 0.0),
            ("rotary_interleaved", 0, 0.0),
            ("scale", 0, 0.25)
        ]
    );
}

#[test]
fn heads_are_normalised_by_nodes_on_the_flat_axis() {
    let (graph, _) = paged("qwen3-tied", Precision::F16);
    let constant = |name: &str| {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
        tensor.raw_data.as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect::<Vec<_>>()
    };
    assert_eq!(constant("per_head"), [0, -1, 16]);
    assert_eq!((constant("query_flat"), constant("key_flat")), (vec![0, 96], vec![0, 32]));
    let attention = graph.node.iter().find(|node| node.op_type == "PagedAttention").unwrap();
    assert_eq!(attention.input[..3], ["layers.0.query_normed", "layers.0.key_normed", "layers.0.value"]);
}

#[test]
fn every_input_of_every_node_is_there_before_it() {
    for name in ["qwen2", "qwen3-tied", "llama"] {
        let (graph, _) = paged(name, Precision::Bf16);
        let mut known: std::collections::HashSet<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
        known.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
        for node in &graph.node {
            let missing = node.input.iter().find(|input| !input.is_empty() && !known.contains(input.as_str()));
            assert_eq!(missing, None, "{name}: {}", node.name);
            known.extend(node.output.iter().map(String::as_str));
        }
        assert!(graph.output.iter().all(|output| known.contains(output.name.as_str())), "{name}");
    }
}

/// There is no kernel for it here, but the runtime knows the operator: it gets as far as placing it.
#[test]
fn the_cpu_refuses_it_by_name() {
    let (_, out) = paged("qwen2", Precision::F16);
    let refused = try_open(&out.path().join(GRAPH_FILE)).err().unwrap().to_string();
    assert!(refused.contains("PagedAttention"), "{refused}");
}
