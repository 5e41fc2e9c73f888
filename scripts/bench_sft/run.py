"""`make bench-sft`: tokens a second of processor time in SFT steps, ours beside PyTorch eager, one thread each, turn by turn.

Both take whole steps (forward, backward, clipping, AdamW) on the same checkpoint and batch: texts of one length, so that nobody pads; the
same rows have logits; the losses of each turn agree, or it ends. Time is the processor time of each process, which other work on the machine
changes less than the clock.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

HERE = pathlib.Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


def batch(vocabulary, texts, length, learned_before, rank, lr):
    """Random texts; the last 46 places weigh 1, those before `learned_before` (0: they cost no logits)."""
    draw = random.Random(1)
    text = lambda: [draw.randrange(vocabulary) for _ in range(length)]
    weights = [learned_before] * (length - 46) + [1.0] * 46
    return {"texts": [text() for _ in range(texts)], "targets": [text() for _ in range(texts)], "weights": weights, "rank": rank, "lr": lr}


def random_model(folder, vocabulary, width, layers, heads, kv_heads, ffn):
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=width**-0.5)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


class Worker:
    def __init__(self, command, folder):
        one = dict.fromkeys(["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"], "1")
        # The second as a run of a recipe has it (crates/trainer/src/workers.rs).
        environment = {**os.environ, **one, "MIMALLOC_PURGE_DELAY": "-1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [*command, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, stderr=subprocess.DEVNULL)

    def seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def steps(self, count):
        """Loss before the first step, and processor seconds a step."""
        before = self.seconds()
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench-sft: {self.process.args[0]} ended with {self.process.wait()}")
        return float(line), (self.seconds() - before) / count

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(name, folder, setting, steps, rounds, worker, wanted):
    (folder / "batch.json").write_text(json.dumps(setting))
    workers = {"ours": Worker([worker], folder), "torch": Worker([sys.executable, HERE / "torch_worker.py"], folder)}
    tokens = sum(map(len, setting["texts"]))
    rates = {who: [] for who in workers}
    for turn in range(rounds + 1):
        losses = {}
        for who in ["ours", "torch"] if turn % 2 else ["torch", "ours"]:
            losses[who], seconds = workers[who].steps(steps)
            # The first turn warms up.
            if turn:
                rates[who].append(tokens / seconds)
        # Adapters begin with different random A's: their losses part.
        if turn == 0 or not setting["rank"]:
            assert abs(losses["ours"] - losses["torch"]) < 2e-3 * abs(losses["torch"]), (name, turn, losses)
    for one in workers.values():
        one.end()
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["torch"])]
    middle = {who: statistics.median(all_of) for who, all_of in rates.items()}
    ratio = statistics.median(ratios)
    print(f"| {name} | {middle['ours']:,.0f} | {middle['torch']:,.0f} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {wanted} |", flush=True)
    return ratio >= wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", required=True, help="our half, built")
    parser.add_argument("--smollm2", type=pathlib.Path, help="the checkpoint; without it its row is left out")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="a part of a row's name")
    options = parser.parse_args()
    print(f"PyTorch {torch.__version__}, eager, sdpa; {options.rounds} turns each; processor time")
    print("| model and batch | ours, tokens/s | PyTorch | ratio: median (least to largest) | wanted |\n|---|---|---|---|---|")
    held = []
    with tempfile.TemporaryDirectory() as work:
        shapes = [
            ("1 M", (2048, 128, 4, 4, 2, 384), 10, 1.2),
            ("4 M", (2048, 256, 4, 4, 2, 704), 4, 1.0),
        ]
        for name, shape, steps, wanted in shapes:
            if options.only and options.only not in name:
                continue
            folder = pathlib.Path(work) / name.replace(" ", "")
            parameters = random_model(folder, *shape)
            full = f"{name} ({parameters / 1e6:.2f} M parameters), 8 × 256 tokens, all learned"
            held.append(compare(full, folder, batch(shape[0], 8, 256, 0.2, 0, 1e-3), steps, options.rounds, options.worker, wanted))
        if options.smollm2 and (not options.only or options.only in "SmolLM2"):
            folder = pathlib.Path(work) / "smollm2"
            shutil.copytree(options.smollm2, folder, ignore=shutil.ignore_patterns("gradients*"))
            name = "SmolLM2, LoRA of rank 16, 4 × 256 tokens, 46 of each learned"
            held.append(compare(name, folder, batch(49152, 4, 256, 0.0, 16, 1e-4), 1, options.rounds, options.worker, 1.0))
    sys.exit(not all(held))


main()
