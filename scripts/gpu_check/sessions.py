"""Proof 1: a graph opens on the GPU and computes there what f32 computes on the processor.

Two layers of the 1.5 B shape with random weights. f16 and bf16 beside f32; int4 with activations of 16 bits beside the same blocks with
f32's. A text written greedily is the same with CUDA graphs and without.
"""

import random
import statistics

PROOF = 1
# Of the mean difference of log-probabilities (nats); bf16 has an eighth of f16's precision.
MOST = {"f16": 0.005, "bf16": 0.04, "int4": 0.01}


def texts(vocabulary, count=4, length=96):
    generator = random.Random(1)
    drawn = lambda: [generator.randrange(3, vocabulary) for _ in range(length)]
    return [[drawn(), drawn()] for _ in range(count)]


def difference(wanted, found):
    """Largest and mean."""
    apart = [abs(one - other) for rows in zip(wanted, found) for one, other in zip(*rows)]
    return max(apart), statistics.mean(apart)


def run(setting, figures):
    checkpoint = setting.checkpoint(setting.shape)
    given = texts(setting.vocabulary)

    def scores(folder, provider):
        with setting.engine(folder, provider) as engine:
            return engine.ask("score", texts=given)["logprobs"]

    exact = setting.export(checkpoint, "f32")
    wanted = scores(exact, "cpu")
    for precision in setting.half:
        folder = setting.export(checkpoint, precision, "--precision", precision)
        largest, mean = difference(wanted, scores(folder, setting.provider))
        figures.add(PROOF, f"{precision}: log-probabilities beside f32 on the processor, mean difference", mean, "nats", most=MOST[precision])
        figures.add(PROOF, f"{precision}: the largest", largest, "nats")

    blocks = setting.export(checkpoint, "int4", "--precision", "int4", "--accuracy-level", "1")
    wanted = scores(blocks, "cpu")
    for numbers in setting.half:
        folder = setting.export(checkpoint, f"int4-{numbers}", "--precision", "int4", "--accuracy-level", "1",
                                "--activations", numbers)
        largest, mean = difference(wanted, scores(folder, setting.provider))
        most = MOST["int4"] if numbers == "f16" else MOST["bf16"]
        figures.add(PROOF, f"int4 with {numbers}: beside the same blocks on the processor, mean difference", mean, "nats", most=most)
        figures.add(PROOF, f"int4 with {numbers}: the largest", largest, "nats")
    if setting.on_gpu:
        graphs(setting, figures, setting.work / f"{checkpoint.name}-f16", given)
        single(setting, figures, exact, given)


def graphs(setting, figures, folder, given):
    """Rows of different lengths, in batches that are no buckets, with and without captured graphs."""
    prompts = [prompt for prompt, _ in given] * 2
    written = {}
    for provider in ("cuda", "cuda-graphs"):
        with setting.engine(folder, provider) as engine:
            written[provider] = [engine.ask("generate", prompts=prompts[:rows], new_tokens=48)["last"] for rows in (1, 3, 5, 8, 3)]
    pairs = [pair for batches in zip(*written.values()) for pair in zip(*batches)]
    same = sum(one == other for one, other in pairs) / len(pairs)
    figures.add(PROOF, "CUDA graphs: texts of 48 tokens that end alike with and without", same, least=0.95)


def single(setting, figures, folder, given):
    """Attention has no f32 kernel on CUDA: what happens is reported, not judged."""
    try:
        with setting.engine(folder, "cuda") as engine:
            engine.ask("score", texts=given[:1])
        figures.say(PROOF, "an f32 graph on CUDA", "opens and answers")
    except SystemExit as refused:
        figures.say(PROOF, "an f32 graph on CUDA", f"is refused: {refused}")
