"""Section `roll-outs`: an alignment's groups of answers, ours beside `generate` of Hugging Face transformers, sampled at temperature 1.

8 prompts of 256 tokens, 8 answers each of 64 tokens, f32, two threads; the same work for both: stops are ignored. Ours reports each
token's log-probability, too. Decode alone is the whole without what the same prompts take for one token.
Models: SmolLM2-135M-Instruct and the demo bundle's decoder of 0.96 M parameters.
"""

import contextlib
import json
import pathlib
import random
import shutil

import prepare
import smollm2
from measure import Row, ratios, rotated
from protocol import Worker

PROMPTS, GROUP, PROMPT_TOKENS, NEW_TOKENS = 8, 8, 256, 64
DEMO = pathlib.Path("models/demo/1/checkpoints/sft")
WANTED = {"whole": "≥ 3", "decode": "≥ 2"}


def checkpoints(context):
    """Folder of each model, by name."""
    smol = context.models.work / "smollm2"
    if not (smol / "config.json").is_file():
        shutil.rmtree(smol, ignore_errors=True)
        command = [context.programs["trainer"], "convert", "gguf", str(smollm2.model_file()), "--out", str(smol)]
        prepare.quietly(command, context.models.work / "export.log")
    return {"SmolLM2": smol, "the 1 M model": DEMO}


def commands(context, name, checkpoint):
    graphs = context.models.work / f"roll-outs-{name.replace(' ', '-')}"
    shutil.rmtree(graphs, ignore_errors=True)
    length = PROMPT_TOKENS + NEW_TOKENS
    export = [context.programs["trainer"], "export", "--checkpoint", checkpoint, "--out", graphs, "--max-positions", length]
    prepare.quietly([str(part) for part in export], context.models.work / "export.log")
    (graphs / "generation.json").write_text('{"stop": []}')  # answers go on whatever comes
    # As the trainer opens it: room for all answers, no prompt read in pieces.
    ours = [*prepare.our_command(context.programs, graphs, PROMPTS * GROUP, length), "cpu", PROMPT_TOKENS]
    return {f"ours, {name}": ours, f"HF generate, {name}": prepare.hf_command(checkpoint)}


def measure(worker, prompts, seed):
    """Tokens a second of the whole, and of decoding alone."""
    def ask(new_tokens):
        return worker.ask("roll_outs", prompts=prompts, group=GROUP, new_tokens=new_tokens, seed=seed)

    first, whole = ask(1), ask(NEW_TOKENS)
    decode = (whole["tokens"] - first["tokens"]) / (whole["total_s"] - first["total_s"])
    return whole["tokens"] / whole["total_s"], decode


def run(context):
    """Rows of the table; `context` as in `run.py`."""
    rows, speeds = [], []
    for name, checkpoint in checkpoints(context).items():
        vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
        found = {"whole": {}, "decode": {}}
        programs = commands(context, name, checkpoint)
        for number in range(context.pairs):
            generator = random.Random(number)
            prompts = [[generator.randrange(16, vocabulary) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
            with contextlib.ExitStack() as stack:
                workers = [stack.enter_context(Worker(one, command, context.log)) for one, command in programs.items()]
                for worker in workers:  # warm: allocations, caches, clocks
                    worker.ask("roll_outs", prompts=[[5] * 32], group=2, new_tokens=4, seed=1)
                for worker in rotated(workers, number):
                    whole, decode = measure(worker, prompts, number)
                    found["whole"].setdefault(worker.name, []).append(whole)
                    found["decode"].setdefault(worker.name, []).append(decode)
            context.say(f"roll-outs, {name}: {number + 1} of {context.pairs} done")
        ours, peer = programs
        for part, label in (("whole", "with prefill"), ("decode", "decode alone")):
            pair = found[part][ours], found[part][peer]
            rows.append(Row(f"{name}: ours / HF `generate`, {label}", ratios(*pair), WANTED[part]))
            speeds += [Row(f"{one}, {label}", values, unit="tokens/s") for one, values in found[part].items()]
    context.note = (f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens × {GROUP} answers of {NEW_TOKENS}, sampled at temperature 1, "
                    "f32, 2 threads; ours gives log-probabilities beside")
    return rows + speeds
