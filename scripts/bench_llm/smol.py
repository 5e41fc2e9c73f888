"""Section `smol`: decode of SmolLM2-135M-Instruct at batch 1, ours in f32, in int4 and with its file's own blocks, genai in int4.

In: the folders that `make int4-check` leaves. Rounds as in `engines`: every one starts all workers anew, each is stopped outside its turn.
"""

import contextlib
import pathlib
import random
import sys

import prepare
from engines import NEW_TOKENS, PROMPT_TOKENS, better
from measure import Row, ratios, rotated
from protocol import Worker

MADE = pathlib.Path(".cache/int4-check")
OURS = {"ours f32": "f32", "ours int4": "default", "ours kept": "kept"}
PEER = "genai int4-32"
# Answers of one round, whose tokens and seconds are added up.
ANSWERS = 3
VOCABULARY = 49152


def commands(context):
    """Command of each worker. Of genai the way (threads that spin, or sleep) that decodes faster."""
    if not all((MADE / "graphs" / name / "graph.onnx").is_file() for name in OURS.values()):
        sys.exit("bench-llm: section smol needs the graphs that `make int4-check` makes: run it first")
    found = {name: prepare.our_command(context.programs, MADE / "graphs" / graph, 32, 256) for name, graph in OURS.items()}
    checkpoint = MADE / "whole"
    data = MADE / "graphs" / "f32" / "graph.onnx.data"
    folder = prepare.build_genai("int4-32", checkpoint, context.models.work / "smol-genai-int4-32", f"{data.stat().st_mtime}")
    with contextlib.ExitStack() as stack:
        ways = [prepare.genai_command(folder, spin) for spin in (True, False)]
        found[PEER] = better([stack.enter_context(Worker(PEER, way, context.log)) for way in ways]).process.args
    return found


def speed(worker, generator):
    """Tokens a second of decoding."""
    tokens = seconds = 0
    for _ in range(ANSWERS):
        prompt = [generator.randrange(3, VOCABULARY) for _ in range(PROMPT_TOKENS[1])]
        answer = worker.ask("generate", prompts=[prompt], new_tokens=NEW_TOKENS)
        tokens, seconds = tokens + answer["rest_tokens"], seconds + answer["rest_s"]
    return tokens / seconds


def run(context):
    """Rows of the table; `context` as in `run.py`."""
    programs, speeds = commands(context), {}
    for number in range(context.pairs):
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(Worker(name, command, context.log)) for name, command in programs.items()]
            for worker in workers:  # warm: allocations, caches, clocks
                worker.ask("generate", prompts=[[5] * 32], new_tokens=4)
            for worker in rotated(workers, number):
                speeds.setdefault(worker.name, []).append(speed(worker, random.Random(number)))
        context.say(f"smol {number + 1} of {context.pairs} done")
    context.note = f"prompts of {PROMPT_TOKENS[1]} tokens, {NEW_TOKENS} new ones"
    rows = [
        Row("ours int4 / ours f32", ratios(speeds["ours int4"], speeds["ours f32"]), "≥ 3"),
        Row("ours int4 / genai int4 block 32", ratios(speeds["ours int4"], speeds[PEER]), "≥ 0.97"),
        Row("ours with the file's blocks / ours f32", ratios(speeds["ours kept"], speeds["ours f32"])),
        Row("ours with the file's blocks / genai int4 block 32", ratios(speeds["ours kept"], speeds[PEER])),
    ]
    return rows + [Row(f"decode, {name}", values, unit="tokens/s") for name, values in speeds.items()]
