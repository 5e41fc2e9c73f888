"""Section `engines`: prefill and decode of ours, onnxruntime-genai and Hugging Face torch at batch 1, 8 and 32.

Outside their turn the workers are stopped. Same checkpoint, same prompts, greedy. Every round starts ours and genai's anew:
where the system puts a process's weights decides up to 15 % of its speed for as long as it lives (measured: 19.5 to 22.9 ms
a step from one start of the same program to the next), so one process an engine would compare luck.
"""

import contextlib
import os
import random

import prepare
from measure import Row, ratios, rotated
from protocol import Worker

BATCHES = tuple(int(batch) for batch in os.environ.get("BENCH_BATCHES", "1,8,32").split(","))
# Shorter at batch 32, so that a round stays below two minutes.
PROMPT_TOKENS = {1: 128, 8: 128, 32: 64}
NEW_TOKENS = 64
# A prefill of one prompt is short: several in a row make one measurement.
PREFILLS = {1: 4, 8: 1, 32: 1}


def start(models, programs, log, stack):
    """All workers by name; genai both spinning and not, of which the better one is kept."""
    def worker(name, command):
        return stack.enter_context(Worker(name, command, log))

    workers = {}
    for kind in ("f32", "int4-128"):
        folder = models.ours(kind)
        workers[f"ours {kind}"] = worker(f"ours {kind}", prepare.our_command(programs, folder, 32, 256))
    for kind in ("f32", "int4-128", "int4-32"):
        pair = [worker(f"genai {kind}", prepare.genai_command(models.genai(kind), spin)) for spin in (True, False)]
        workers[f"genai {kind}"] = better(pair)
    workers["hf f32"] = worker("hf f32", prepare.hf_command(models.checkpoint()))
    # Pairs that are compared stand next to each other.
    order = ["ours f32", "genai f32", "hf f32", "ours int4-128", "genai int4-128", "genai int4-32"]
    return [workers[name] for name in order]


def better(pair):
    """The worker that decodes faster, alternating; the other one ends."""
    prompt = [list(range(10, 10 + PROMPT_TOKENS[1]))]
    seconds = [0.0, 0.0]
    for number in range(6):
        for place, worker in rotated(list(enumerate(pair)), number):
            answer = worker.ask("generate", prompts=prompt, new_tokens=NEW_TOKENS)
            if number > 1:
                seconds[place] += answer["first_s"] + answer["rest_s"]
    kept = pair[seconds.index(min(seconds))]
    pair[1 - pair.index(kept)].close()
    return kept


def fresh(worker, log, stack):
    """The same worker as a new process."""
    worker.close()
    return stack.enter_context(Worker(worker.name, worker.process.args, log))


def measure(worker, prompts):
    """Tokens a second of prefill and decode, and the last tokens."""
    repeats = PREFILLS[len(prompts)]
    first = sum(worker.ask("generate", prompts=prompts, new_tokens=1)["first_s"] for _ in range(repeats))
    answer = worker.ask("generate", prompts=prompts, new_tokens=NEW_TOKENS)
    prefill = repeats * len(prompts) * len(prompts[0]) / first
    return prefill, answer["rest_tokens"] / answer["rest_s"], answer["last"]


def run(context):
    """Rows of the table; `context` as in `run.py`."""
    vocabulary = context.shape["vocabulary"]
    generator = random.Random(1)
    speeds, agreed, compared = {}, 0, 0
    with contextlib.ExitStack() as stack:
        workers = start(context.models, context.programs, context.log, stack)
        facts = ", ".join(f"{worker.name} {worker.facts}" for worker in workers)
        context.say(facts)
        for number in range(context.pairs):
            workers = [worker if worker.name == "hf f32" else fresh(worker, context.log, stack) for worker in workers]
            for worker in workers:
                for batch in BATCHES:  # warm: allocations, caches, clocks
                    worker.ask("generate", prompts=[[5] * 32] * batch, new_tokens=4)
            for batch in BATCHES:
                length = PROMPT_TOKENS[batch]
                prompts = [[generator.randrange(3, vocabulary) for _ in range(length)] for _ in range(batch)]
                last = {}
                for worker in rotated(workers, number):
                    prefill, decode, last[worker.name] = measure(worker, prompts)
                    speeds.setdefault(("prefill", batch, worker.name), []).append(prefill)
                    speeds.setdefault(("decode", batch, worker.name), []).append(decode)
                for name in ("genai f32", "hf f32"):
                    compared += batch
                    agreed += sum(one == other for one, other in zip(last["ours f32"], last[name], strict=True))
            context.say(f"round {number + 1} of {context.pairs} done")
    context.note = (f"prompts of 128 tokens (batch 32: 64), {NEW_TOKENS} new ones; "
                    f"the last greedy f32 token equal to the peers': {agreed} of {compared} rows")
    return ratio_rows(speeds) + speed_rows(speeds)


def ratio_rows(speeds):
    def row(text, step, batch, one, other, wanted=""):
        return Row(f"{step}, batch {batch}: {text}", ratios(speeds[step, batch, one], speeds[step, batch, other]), wanted)

    rows = []
    for step in ("prefill", "decode"):
        for batch in BATCHES:
            rows.append(row("ours / genai, f32", step, batch, "ours f32", "genai f32", "≥ 0.97"))
            wanted = {"decode": "≥ 2.5", "prefill": {1: "≥ 2.5", 8: "≥ 2.0"}.get(batch, "")}[step]
            rows.append(row("ours / HF torch, f32", step, batch, "ours f32", "hf f32", wanted))
            rows.append(row("ours / genai, int4 block 128", step, batch, "ours int4-128", "genai int4-128", "≥ 0.97"))
            rows.append(row("ours int4 block 128 / genai int4 block 32 (its default)", step, batch, "ours int4-128",
                            "genai int4-32"))
            wanted = "≥ 3" if (step, batch) == ("decode", 1) else ""
            rows.append(row("ours int4 / ours f32", step, batch, "ours int4-128", "ours f32", wanted))
    for batch, wanted in ((8, "≥ 4"), (32, "")):
        if batch not in BATCHES:
            continue
        values = ratios(speeds["decode", batch, "ours f32"], speeds["decode", 1, "ours f32"])
        rows.append(Row(f"decode, ours f32: batch {batch} / batch 1", values, wanted))
    return rows


def speed_rows(speeds):
    return [Row(f"{step}, batch {batch}: {name}", values, unit="tokens/s")
            for (step, batch, name), values in sorted(speeds.items(), key=lambda entry: (entry[0][0] == "decode",
                                                                                        entry[0][1]))]
