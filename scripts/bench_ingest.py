"""`make bench-ingest`: events through Kafka into Redis, measured; writes the section between the markers of docs/benchmarks.md.

`benches/ingest` does the work and prints one JSON object. Ratios are formed within a round; the table shows medians and spread.
"""

import json
import statistics
import subprocess
import sys
import time

from page import commit, machine, unit_of, write_figures, write_section

BUNDLE = "models/demo/1"
# Share of the bare pair's rate that is wanted, and most processor time of service and Redis together, in that of the bare pair.
WANTED, MOST_CPU = 0.80, 1.25
NAMES = {"ours": "taiji serve", "bare": "bare pair, same writes", "plain": "plain writer"}


def program():
    """Builds the benchmark; the path of its executable."""
    command = ["cargo", "build", "--release", "--locked", "--workspace", "--bench", "ingest", "--message-format=json"]
    for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "ingest" and message["executable"]:
            return message["executable"]
    sys.exit("bench-ingest: cargo names no executable")


# What became rows of a table, for programs: name, unit, values.
MEASURED = []


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def row(what, wanted, values, kept=None):
    """A line of the table; `kept` is its name among the figures where the line's own leans on the one above."""
    spread = [statistics.median(values), min(values), max(values)]
    MEASURED.append((kept or what, unit_of(kept or what), values))
    return f"| {what} | {wanted} | " + " | ".join(number(value) for value in spread) + " |"


def tables(found):
    rounds, memory = found["rounds"], found["memory"]
    values = lambda way, what: [one[way][what] for one in rounds if way in one]
    cpu = lambda one, way: one[way]["cpu_us"] + one[way]["redis_cpu_us"]
    ratio = lambda way: [one["ours"]["events_s"] / one[way]["events_s"] for one in rounds if way in one]
    lines = ["| what | wanted | median | lowest | highest |", "|---|---|---|---|---|"]
    lines.append(row("taiji serve / bare pair, same writes", f"≥ {WANTED:.2f}", ratio("bare")))
    lines.append(row("processor time of service and Redis an event / bare pair's", f"≤ {MOST_CPU:.2f}",
                     [cpu(one, "ours") / cpu(one, "bare") for one in rounds]))
    lines.append(row("taiji serve / plain writer", "", ratio("plain")))
    for what, label in (("events_s", "events/s"), ("cpu_us", "its processor time of an event, µs"),
                        ("redis_cpu_us", "Redis' processor time of an event, µs"), ("bytes_user", "Redis memory, bytes a user")):
        lines += [row(f"{name}: {label}", "", values(way, what)) for way, name in NAMES.items()]
    history, feature = memory["history_bytes"], memory["feature_bytes"]
    lines += ["", "| memory of a user in Redis | bytes | of 1 million users, by calculation |", "|---|---|---|"]
    MEASURED.extend((f"{what}, bytes a user", "bytes a user", [size]) for what, size in (("history", history), ("features of one space", feature)))
    for what, size in ((f"history ({memory['users']:,} users: {memory['kept']:.0f} behaviours kept on average, "
                        f"{memory['full']:.1%} with full lists)", history),
                       (f"features of one space ({memory['feature_users']:,} users, canned texts)", feature),
                       ("together", history + feature)):
        lines.append(f"| {what} | {size:,.0f} | {size / 1000:,.1f} GB |")
    return lines


def main():
    quick = "--quick" in sys.argv[1:]
    command = [program(), BUNDLE] + (["--quick"] if quick else [])
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    size = found["size"]
    header = f"`make bench-ingest{' QUICK=1' if quick else ''}` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}; "
    header += f"{len(found['rounds'])} rounds; {size['events']:,} events of {size['bytes']} bytes, {size['users']:,} users, "
    header += f"{size['partitions']} partitions; broker, Redis and reader on the same cores."
    section = "\n".join([header, ""] + tables(found))
    if not quick:
        write_section("bench-ingest", section)
        write_figures("bench-ingest", "make bench-ingest", MEASURED)
    print(section)


if __name__ == "__main__":
    main()
