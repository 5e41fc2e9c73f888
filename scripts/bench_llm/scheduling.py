"""Sections about our own scheduling: `trace`, `gap`, `beam`, `rss`. Each returns the rows of its table."""

import math
import random
import statistics

import prepare
from measure import Row, percentile, ratios, rotated
from protocol import Worker

ROWS = 8


def tokens(generator, context, count):
    return [generator.randrange(3, context.shape["vocabulary"]) for _ in range(count)]


def arrivals(context, seed):
    """Poisson arrivals faster than the engine answers, prompts 32..256, outputs log-uniform 16..512."""
    generator, at, requests = random.Random(seed), 0.0, []
    for _ in range(context.trace_requests):
        at += generator.expovariate(context.trace_rate)
        new_tokens = round(math.exp(generator.uniform(math.log(16), math.log(512))))
        requests.append({"at_s": at, "prompt": tokens(generator, context, generator.randint(32, 256)),
                         "new_tokens": new_tokens})
    return requests


def trace(context):
    """Continuous batching against static batches, both on our engine."""
    ways = {"continuous": (0, False), "static padded": (ROWS, True), "static": (ROWS, False)}
    speeds = {name: [] for name in ways}
    command = prepare.our_command(context.programs, context.models.ours("f32"), ROWS, 1024)
    with Worker("ours f32", command, context.log) as worker:
        for number in range(context.pairs):
            requests = arrivals(context, 100 + number)
            for name, (rows, padded) in rotated(list(ways.items()), number):
                answer = worker.ask("trace", requests=requests, static_rows=rows, padded=padded)
                speeds[name].append(answer["new_tokens"] / answer["makespan_s"])
            context.say(f"trace {number + 1} done")
    context.note = (f"{context.trace_requests} requests at {context.trace_rate} /s, {ROWS} rows. Padded: the rows of a "
                    "static batch go on until the longest has ended, as a batch of fixed shape does (transformers' "
                    "generate, our engine before); else rows that have ended leave it")
    return [
        Row("continuous / static, padded", ratios(speeds["continuous"], speeds["static padded"]), "≥ 2"),
        Row("continuous / static, ended rows leave", ratios(speeds["continuous"], speeds["static"])),
        *(Row(name, values, unit="tokens/s") for name, values in speeds.items()),
    ]


def gap(context):
    """Token gaps of seven decoding rows while a long prompt is read."""
    length = context.long_prompt
    folder = context.models.ours("f32", positions=16384)
    command = prepare.our_command(context.programs, folder, ROWS, length + 1336)
    generator, figures = random.Random(3), {}
    with Worker("ours f32", command, context.log) as worker:
        for number in range(context.pairs):
            answer = worker.ask(
                "gap", rows=[tokens(generator, context, 64) for _ in range(ROWS - 1)], new_tokens=1200, warm_tokens=64,
                prompt_alone=tokens(generator, context, length), prompt_beside=tokens(generator, context, length))
            step = statistics.median(answer["alone_s"])
            chunk = answer["chunks_s"] / answer["chunks"]
            p99 = percentile(answer["beside_s"], 0.99)
            for name, value in (
                    ("ratio", p99 / (chunk + step)), ("p99", 1000 * p99), ("step", 1000 * step), ("chunk", 1000 * chunk),
                    ("median", 1000 * statistics.median(answer["beside_s"])), ("chunks", answer["chunks"]),
                    ("alone", answer["prefill_alone_s"]), ("beside", answer["prefill_beside_s"])):
                figures.setdefault(name, []).append(value)
            context.say(f"gap {number + 1} done")
    context.note = f"7 rows decode, a prompt of {length} tokens joins them"
    return [
        Row("p99 gap / (mean chunk + median step)", figures["ratio"], "≤ 2"),
        Row("p99 gap while the prompt is read", figures["p99"], unit="ms"),
        Row("median gap while the prompt is read", figures["median"], unit="ms"),
        Row("median step before it", figures["step"], unit="ms"),
        Row("mean chunk of the prompt", figures["chunk"], unit="ms"),
        Row("chunks", figures["chunks"]),
        Row("prompt read alone", figures["alone"], unit="s"),
        Row("prompt read beside the rows", figures["beside"], unit="s"),
    ]


def beam(context):
    """Eight beam searches together against one by one, over the decode levels."""
    folder = context.models.ours("f32", more=context.beam_export)
    generator, seconds = random.Random(4), {True: [], False: []}
    # Semantic IDs of 4 tokens: 64 codes a level, 4,000 items.
    codes = [[100 + 64 * level + code for code in range(64)] for level in range(4)]
    items = sorted({tuple(generator.choice(level) for level in codes) for _ in range(4000)})
    prefill, calls = [], {True: [], False: []}
    with Worker("ours f32", prepare.our_command(context.programs, folder, ROWS, 512), context.log) as worker:
        for number in range(context.pairs + 1):
            prompts = [tokens(generator, context, 256) for _ in range(8)]
            for together in rotated([True, False], number):
                answer = worker.ask("beam", prompts=prompts, items=items, width=20, together=together)
                if number > 0:  # the first round warms
                    seconds[together].append(answer["levels_s"])
                    prefill.append(answer["prefill_s"])
                    calls[together].append(answer["calls"])
    context.note = "8 requests, width 20, prompts of 256 tokens, 4 levels; the engine times its levels apart from prefill"
    return [
        Row("one by one / together", ratios(seconds[False], seconds[True]), "≥ 1.5"),
        Row("decode levels, together", [1000 * value for value in seconds[True]], unit="ms"),
        Row("decode levels, one by one", [1000 * value for value in seconds[False]], unit="ms"),
        Row("steps of the levels, together", calls[True]),
        Row("steps of the levels, one by one", calls[False]),
        Row("prefill of the 8 prompts", [1000 * value for value in prefill], unit="ms"),
    ]


def rss(context):
    """Resident memory after 1,000 and after 10,000 requests."""
    folder = context.models.ours("f32", shape="tiny")
    marks = [1000, context.rss_requests]
    with Worker("ours tiny", prepare.our_command(context.programs, folder, ROWS, 128), context.log) as worker:
        answer = worker.ask("rss", vocabulary=1024, longest_prompt=96, new_tokens=8, at=marks)
    first, last = answer["rss_bytes"]
    context.note = f"tiny model, prompts of 1 to 96 tokens, 8 new tokens, 8 callers; {marks[1]:,} requests"
    return [
        Row("resident memory, last / after 1,000 requests", [last / first], "≤ 1.02"),
        Row("resident memory at the end", [last / 2**20], unit="MiB"),
    ]
