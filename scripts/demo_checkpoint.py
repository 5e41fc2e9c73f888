"""The demo's decoder back in Hugging Face form, from its exported graph: to try other precisions without training again.

    demo_checkpoint.py MODEL_FOLDER OUT

The exporter keeps every weight; here matrices are turned back and q, k, v taken apart. `make int4-check` exports the
result in f32 again and compares the bytes with the bundle's, so this page cannot drift from the exporter unseen.
"""

import json
import pathlib
import shutil
import sys

import numpy
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file


def main():
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    head = config["hidden_size"] // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    weights = {}
    for tensor in onnx.load(folder / "graph.onnx").graph.initializer:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if not name.startswith("model.") and name != "lm_head.weight":
            continue
        if values.ndim == 2 and name != "model.embed_tokens.weight":
            values = values.T
        if ".qkv_proj." in name:
            for part, rows in zip("qkv", numpy.split(values, [query, query + key]), strict=True):
                weights[name.replace("qkv_proj", f"{part}_proj")] = numpy.ascontiguousarray(rows)
        else:
            weights[name] = numpy.ascontiguousarray(values)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "generation.json"):
        shutil.copy(folder / name, out / name)


main()
