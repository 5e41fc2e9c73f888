"""Writes a Qwen2 checkpoint with random weights, shaped like a Hugging Face folder.

In: the name of a shape. Out: config.json, model.safetensors (or shards with an index), tokenizer.json,
tokenizer_config.json, generation.json and generation_config.json. Called by `prepare.py` and `gpu.py`, or by hand:

    python scripts/bench_llm/make_model.py mid .cache/bench/mid

The same shape and seed give the same bytes. Tensors are drawn and written one after the other, so that a model larger
than the memory can be made. Speed does not depend on what the weights are, so random ones serve.
"""

import json
import pathlib
import sys

import numpy

SHAPES = {
    # The model of the benchmark: 129 M parameters.
    "mid": dict(layers=12, hidden=768, inner=3072, heads=12, kv_heads=4, vocabulary=16384, positions=32768),
    # For `--quick`: the rig itself, not its figures.
    "quick": dict(layers=4, hidden=256, inner=1024, heads=4, kv_heads=2, vocabulary=4096, positions=32768),
    # For many short requests: memory, not speed.
    "tiny": dict(layers=2, hidden=128, inner=256, heads=4, kv_heads=2, vocabulary=1024, positions=4096),
    # DeepSeek-R1-Distill-Qwen-7B, and two of its layers with the full head.
    "r1-7b": dict(layers=28, hidden=3584, inner=18944, heads=28, kv_heads=4, vocabulary=152064, positions=131072,
                  dtype="BF16", epsilon=1e-6),
    "r1-7b-cut": dict(layers=2, hidden=3584, inner=18944, heads=28, kv_heads=4, vocabulary=152064, positions=131072,
                      dtype="BF16", epsilon=1e-6),
}
SPREAD = 0.02
SHARD_BYTES = 2 << 30
CHUNK = 1 << 22
WIDTHS = {"F32": 4, "BF16": 2}


def tensors(shape):
    """Name and dimensions of every tensor, in the order in which they are written."""
    hidden, inner, vocabulary = shape["hidden"], shape["inner"], shape["vocabulary"]
    kv_width = hidden // shape["heads"] * shape["kv_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}."
        for name, width in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            yield f"{prefix}self_attn.{name}_proj.weight", (width, hidden)
            yield f"{prefix}self_attn.{name}_proj.bias", (width,)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, hidden)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def encoded(values, dtype):
    """Bytes of f32 numbers in the checkpoint's number format; bf16 rounds to nearest."""
    if dtype == "F32":
        return values.tobytes()
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16).tobytes()


def write_tensor(file, name, dims, dtype, generator, repeated=None):
    """Norms stand near 1; everything else has mean 0. `repeated`: bytes of CHUNK numbers to take again and again."""
    left = int(numpy.prod(dims))
    while left:
        count = min(left, CHUNK)
        if repeated and "norm" not in name:
            file.write(memoryview(repeated)[:count * WIDTHS[dtype]])
            left -= count
            continue
        values = generator.standard_normal(count, dtype=numpy.float32) * numpy.float32(SPREAD)
        file.write(encoded(values + numpy.float32(1.0) if "norm" in name else values, dtype))
        left -= count


def shards(shape, dtype):
    """The tensors in groups of at most SHARD_BYTES (a larger tensor stands alone)."""
    groups, size = [[]], 0
    for name, dims in tensors(shape):
        length = int(numpy.prod(dims)) * WIDTHS[dtype]
        if groups[-1] and size + length > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append((name, dims, length))
        size += length
    return groups


def write_weights(folder, shape, seed, is_repeated=False):
    dtype = shape.get("dtype", "F32")
    generator = numpy.random.Generator(numpy.random.SFC64(seed))
    repeated = None
    if is_repeated:
        repeated = encoded(generator.standard_normal(CHUNK, dtype=numpy.float32) * numpy.float32(SPREAD), dtype)
    groups, places = shards(shape, dtype), {}
    for number, group in enumerate(groups, 1):
        file_name = "model.safetensors"
        if len(groups) > 1:
            file_name = f"model-{number:05}-of-{len(groups):05}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, dims, length in group:
            header[name] = {"dtype": dtype, "shape": list(dims), "data_offsets": [offset, offset + length]}
            offset += length
            places[name] = file_name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file_name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, dims, _ in group:
                write_tensor(file, name, dims, dtype, generator, repeated)
    if len(groups) > 1:
        total = sum(length for group in groups for _, _, length in group)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def config(shape):
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[shape.get("dtype", "F32")],
        "hidden_size": shape["hidden"], "intermediate_size": shape["inner"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv_heads"],
        "vocab_size": shape["vocabulary"], "max_position_embeddings": shape["positions"],
        "rms_norm_eps": shape.get("epsilon", 1e-6), "rope_theta": 10000.0, "tie_word_embeddings": False,
        "use_sliding_window": False, "use_cache": True, "bos_token_id": 0, "eos_token_id": 0,
    }


def tokenizer(vocabulary):
    """One word a token, w0, w1, ..., behind three special ones."""
    specials = ["<|endoftext|>", "</answer>", "<unk>"]
    names = specials + [f"w{index}" for index in range(vocabulary - len(specials))]
    added = [{"id": place, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for place, name in enumerate(specials[:2])]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {name: place for place, name in enumerate(names)},
                  "unk_token": "<unk>"},
    }


def make(name, folder, seed=1, repeated=False):
    """Writes the checkpoint unless a whole one of the same shape is there; returns the folder. `repeated`: the same four million numbers
    over and over, which is written as fast as the disk takes it; for speed alone."""
    shape, folder = SHAPES[name], pathlib.Path(folder)
    made = folder / "made.json"
    wanted = json.dumps({**shape, "seed": seed, **({"repeated": True} if repeated else {})})
    if made.is_file() and made.read_text() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(shape["vocabulary"])))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}))
    (folder / "generation.json").write_text(json.dumps({"stop": ["</answer>"]}))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 0}))
    write_weights(folder, shape, seed, repeated)
    made.write_text(wanted)  # last: a torn checkpoint is made again
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(f"usage: make_model.py {'|'.join(SHAPES)} FOLDER")
    print(make(sys.argv[1], sys.argv[2]))
