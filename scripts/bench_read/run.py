"""`make bench-read`: reads of taiji beside the smallest handler, beside bare pipelined reads and beside Feast's own server, on Redis and on
Valkey; writes its section of docs/benchmarks.md and docs/measured/bench-read.json.

Usage: run.py [--quick] [--no-feast] [--program PATH]. `taiji-loadtest bench-read` does the work and prints JSON; ratios are formed within
a round. `--quick` tries the whole rig with short rounds and writes nothing.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from feast_server import Feast
from page import commit, machine, write_figures, write_section

BINARIES = os.environ.get("CARGO_TARGET_DIR", "target") + "/release"
VENV, FOLDER, REQUIREMENTS = ".cache/feast-venv", ".cache/bench-read/feast", "scripts/bench_read/requirements.txt"
FULL, QUICK = {"rounds": 7, "seconds": 10, "users": 1000}, {"rounds": 2, "seconds": 1, "users": 200}
# What reads in protobuf are held to: share of the smallest handler's rate, processor time of a call in that of its, p99 in that of its, share of
# the bare reads' rate, and how many times Feast's own server.
RATE, CPU, P99, RAW, FEAST_ONE, FEAST_MANY = 0.85, 1.2, 1.3, 0.70, 25, 30
# Of reads in JSON, of either.
JSON = 0.60
# A p99 says nothing where more are refused.
ANSWERED = 0.999
# What taiji-loadtest takes of the handler's capacity.
OPEN = 0.6
WAYS = [("ours-protobuf-one", "taiji in protobuf, 1 user"), ("smallest-protobuf-one", "smallest handler, the same protobuf"),
        ("ours-protobuf-many", "taiji in protobuf, 100 users"), ("smallest-protobuf-many", "smallest handler, the same protobuf of 100 users"),
        ("ours-one", "taiji in JSON, 1 user"), ("smallest-one", "smallest handler, the same JSON"), ("raw-one", "bare reads of 1 user"),
        ("ours-many", "taiji in JSON, 100 users"), ("smallest-many", "smallest handler, the same JSON of 100 users"),
        ("raw-many", "bare reads of 100 users"), ("ours-feast-one", "taiji in Feast's shape, 1 user"),
        ("smallest-feast-one", "smallest handler, the same bytes in Feast's shape"), ("ours-feast-many", "taiji in Feast's shape, 100 users"),
        ("smallest-feast-many", "smallest handler, the same bytes in Feast's shape of 100 users"),
        ("feast-1-one", "Feast's server, 1 worker, 1 user"), ("feast-2-one", "Feast's server, 2 workers, 1 user"),
        ("feast-1-many", "Feast's server, 1 worker, 100 users"), ("feast-2-many", "Feast's server, 2 workers, 100 users")]


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


class Table:
    """Rows of a server's section, and the same as figures."""

    def __init__(self, server):
        self.server, self.rows, self.figures = server, [], []

    def add(self, what, wanted, unit, values):
        if not values:
            return
        spread = " | ".join(number(value) for value in (statistics.median(values), min(values), max(values)))
        shown = f"{what}, {unit}" if unit != "ratio" else what
        self.rows.append(f"| {shown} | {wanted} | {spread} |")
        # Without its release, so that figures of one name can be followed from run to run.
        self.figures.append((f"{self.server.split(' ')[0]}: {what}", unit, values))

    def text(self):
        return "\n".join([f"**{self.server}**", "", "| what | wanted | median | lowest | highest |", "|---|---|---|---|---|"] + self.rows)


def table(found):
    rounds, opened, made = found["rounds"], found["open"], Table(found["server"])
    rates = lambda way: [one[way]["rate"] for one in rounds if way in one]
    ratio = lambda ours, theirs: [mine / other for mine, other in zip(rates(ours), rates(theirs))]
    cpu = lambda way: [one[way]["service_us"] + one[way]["redis_us"] for one in rounds]
    made.add("1 user, protobuf: taiji / smallest handler", f"≥ {RATE:.2f}", "ratio", ratio("ours-protobuf-one", "smallest-protobuf-one"))
    made.add("1 user, protobuf: processor time of a call, service and Redis, taiji / smallest handler", f"≤ {CPU}", "ratio",
             [ours / theirs for ours, theirs in zip(cpu("ours-protobuf-one"), cpu("smallest-protobuf-one"))])
    made.add(f"1 user, protobuf, open at {OPEN:.0%} of the handler's capacity: p99, taiji / smallest handler", f"≤ {P99}", "ratio",
             [one["ours"]["p99_ms"] / one["smallest"]["p99_ms"] for one in opened["rounds"]])
    made.add("100 users, protobuf: taiji / bare reads", f"≥ {RAW:.2f}", "ratio", ratio("ours-protobuf-many", "raw-many"))
    made.add("1 user, JSON: taiji / smallest handler", f"≥ {JSON:.2f}", "ratio", ratio("ours-one", "smallest-one"))
    made.add("100 users, JSON: taiji / bare reads", f"≥ {JSON:.2f}", "ratio", ratio("ours-many", "raw-many"))
    made.add("100 users, protobuf: taiji / smallest handler", "", "ratio", ratio("ours-protobuf-many", "smallest-protobuf-many"))
    made.add("100 users, JSON: taiji / smallest handler", "", "ratio", ratio("ours-many", "smallest-many"))
    made.add("1 user, protobuf: taiji / bare reads", "", "ratio", ratio("ours-protobuf-one", "raw-one"))
    made.add("Feast's shape, 1 user: taiji / smallest handler", f"≥ {JSON:.2f}", "ratio", ratio("ours-feast-one", "smallest-feast-one"))
    made.add("Feast's shape, 100 users: taiji / smallest handler", "", "ratio", ratio("ours-feast-many", "smallest-feast-many"))
    for size, users, wanted in (("one", "1 user", FEAST_ONE), ("many", "100 users", FEAST_MANY)):
        best = [max(pair) for pair in zip(rates(f"feast-1-{size}"), rates(f"feast-2-{size}"))]
        made.add(f"Feast's shape, {users}: taiji / Feast's own server, best of 1 and 2 workers", f"≥ {wanted}", "ratio",
                 [ours / theirs for ours, theirs in zip(rates(f"ours-feast-{size}"), best)])
    for way, name in WAYS:
        made.add(name, "", "calls/s", rates(way))
    for way, name in WAYS:
        for part, whose in (("service_us", "service"), ("redis_us", "Redis")):
            made.add(f"{name}: processor time of a call, {whose}", "", "µs", [one[way][part] for one in rounds if one.get(way, {}).get(part) is not None])
    for who, name in (("ours", "taiji"), ("smallest", "smallest handler")):
        for what, unit in (("p50_ms", "ms"), ("p99_ms", "ms"), ("answered", "ratio"), ("late_p99_ms", "ms")):
            label = {"p50_ms": "p50", "p99_ms": "p99", "answered": "share answered 2xx", "late_p99_ms": "sent late by the generator, p99"}[what]
            made.add(f"open, {name}: {label}", f"≥ {ANSWERED}" if what == "answered" else "", unit, [one[who][what] for one in opened["rounds"]])
    made.add("open: rate", "", "calls/s", [opened["rate"]])
    return made


def measure(options, size, valkey, feast_urls):
    command = [f"{BINARIES}/taiji-loadtest", "bench-read", "--program", options.program or f"{BINARIES}/taiji"]
    for name, value in size.items():
        command += [f"--{name}", str(value)]
    command += ["--valkey"] if valkey else []
    for url in feast_urls:
        command += ["--feast", url]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def with_feast(options, size, server, valkey):
    if options.no_feast:
        return measure(options, size, valkey, [])
    with Feast(VENV, FOLDER, server, size["users"]) as feast:
        return measure(options, size, valkey, feast.urls)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-feast", action="store_true")
    parser.add_argument("--program")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    if not options.no_feast:
        subprocess.run(["bash", "scripts/venv.sh", VENV, REQUIREMENTS], check=True)
    valkey = subprocess.run(["bash", "scripts/valkey.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    found = [with_feast(options, size, server, is_valkey) for server, is_valkey in (("redis-server", False), (valkey, True))]
    tables = [table(one) for one in found]
    command = f"make bench-read{' QUICK=1' if options.quick else ''}"
    bytes_of = ", ".join(f"{name} {size:,.0f}" for name, size in found[0]["bytes"].items())
    header = f"`{command}` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}; {size['rounds']} rounds of {size['seconds']} s a way, "
    header += f"all ways in every round; {size['users']:,} users, {found[0]['callers']} calls under way; keys and metrics on; bytes of an "
    header += f"answer: {bytes_of}; generator, service and store on the same cores."
    section = "\n\n".join([header] + [one.text() for one in tables])
    print(section)
    if not options.quick:
        write_section("bench-read", section)
        write_figures("bench-read", command, [figure for one in tables for figure in one.figures])


if __name__ == "__main__":
    main()
