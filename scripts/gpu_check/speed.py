"""Proof 5: prefill and decode by batch, beside what memory and matrix units allow, and beside transformers on the same shape.

Bounds are measured here: a copy within the GPU's memory, and a product of two matrices of 8192 in bf16. A decode step reads every weight
but the embedding once; a token of a prompt costs two operations a weight of the layers.
"""

import math
import random
import statistics

import make_model
import torch_peer

PROOF = 5
PROMPT, NEW, ROUNDS = 512, 128, 3


def run(setting, figures):
    bounds = torch_peer.bounds() if setting.on_gpu else (None, None)
    if setting.on_gpu:
        figures.add(PROOF, "bytes read and written a second, within the GPU's memory", bounds[0] / 1e9, "GB/s")
        figures.add(PROOF, "operations a second, bf16 product of 8192", bounds[1] / 1e12, "TFLOP/s")
    batches = (1, 8, 32) if setting.full else (1, 2)
    for shape, precisions in (("r1-1.5b", ("bf16", "int4")), ("r1-7b", ("bf16",))) if setting.full else (("tiny", ("f16",)),):
        checkpoint = setting.checkpoint(shape, repeated=True)
        for precision in precisions:
            numbers = ["--activations", "bf16"] if precision == "int4" else []
            folder = setting.export(checkpoint, precision, "--precision", precision, "--max-positions", "4096", *numbers)
            for provider in (("cuda", "cuda-graphs") if setting.on_gpu else ("cpu",)):
                if setting.left() < 40:
                    figures.say(PROOF, f"{shape} {precision} on {provider}", "no time left")
                    continue
                ours(setting, figures, (shape, precision, provider), folder, batches, bounds)
        if setting.on_gpu:
            torch_peer.measure(figures, checkpoint, shape, batches, (PROMPT, NEW), setting.left)


def sizes(shape):
    """Numbers of the embedding, which a step does not read as a whole, and of the layers, which every token is multiplied with."""
    counts = {name: math.prod(dims) for name, dims in make_model.tensors(make_model.SHAPES[shape])}
    return counts["model.embed_tokens.weight"], sum(count for name, count in counts.items() if name.startswith("model.layers."))


def ours(setting, figures, what, folder, batches, bounds):
    shape, precision, provider = what
    vocabulary = make_model.SHAPES[shape]["vocabulary"]
    prompt, new = (PROMPT, NEW) if setting.full else (64, 16)
    table, layers = sizes(shape)
    bytes_read = (folder / "graph.onnx.data").stat().st_size - 2 * table
    generator = random.Random(2)
    # Whole prompts at once: pieces of 256 tokens, right for a processor, halve the rate of a GPU.
    with setting.engine(folder, provider, rows=max(batches), slots=prompt + new, chunk=2048) as engine:
        for batch in batches:
            prompts = [[generator.randrange(3, vocabulary) for _ in range(prompt)] for _ in range(batch)]
            prefill, decode = [], []
            for number in range(ROUNDS + 1):
                first = engine.ask("generate", prompts=prompts, new_tokens=1)["first_s"]
                answer = engine.ask("generate", prompts=prompts, new_tokens=new)
                if number > 0:  # the first round warms, and captures graphs
                    prefill.append(batch * prompt / first)
                    decode.append(answer["rest_tokens"] / answer["rest_s"])
            name = f"{shape} {precision}, {provider}, batch {batch}"
            written, seen = statistics.median(decode), statistics.median(prefill)
            figures.add(PROOF, f"{name}: decode", written, "tokens/s")
            figures.add(PROOF, f"{name}: prefill of {prompt}", seen, "tokens/s")
            if bounds[0] and batch == 1:
                # A copy reads and writes: its rate counts both.
                figures.add(PROOF, f"{name}: decode, share of the bandwidth bound", written * bytes_read / bounds[0], least=goal(precision, 0.7))
            if bounds[1] and batch == max(batches):
                figures.add(PROOF, f"{name}: prefill, share of the matrix peak", 2 * layers * seen / bounds[1], least=goal(precision, 0.6))


def goal(precision, share):
    """The goals are for bf16."""
    return share if precision == "bf16" else None
