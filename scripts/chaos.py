"""`make chaos`: the chaos suite (tests/e2e/chaos), one line a seed; writes the table between the markers of docs/benchmarks.md.

Environment: SEEDS, SECONDS_EACH, RATE; SEED runs one seed alone and writes no table. Exit code 1 on any violation.
"""

import json
import os
import pathlib
import platform
import subprocess
import sys
import time

PAGE = pathlib.Path("docs/benchmarks.md")
BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"
TEST = ["cargo", "test", "--release", "--locked", "--test", "e2e", "--"]


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def table(rows):
    lines = ["| seed | processes | faults | events | events/s | records/s | reads | slowest recovery, s | settled in, s | violations |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        slowest = f"{row['slowest_s']:.1f} ({row['slowest_after']})" if row["slowest_after"] else "–"
        lines.append(f"| {row['seed']} | {row['mix']} | {row['faults']} | {row['events']:,} | {row['events_rate']:,.0f} | {row['records_rate']:,.0f} | {row['reads']:,} | "
                     f"{slowest} | {row['settled_s']:.1f} | {row['violations']} |")
    return lines


def main():
    seeds, seconds, rate, seed = (os.environ.get(name, "") for name in ("SEEDS", "SECONDS_EACH", "RATE", "SEED"))
    out = pathlib.Path(".cache/chaos.jsonl")
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    wanted = {"TAIJI_CHAOS_SEEDS": seeds or "20", "TAIJI_CHAOS_SECONDS": seconds or "60", "TAIJI_CHAOS_RATE": rate or "2000",
              "TAIJI_CHAOS_SEED": seed, "TAIJI_CHAOS_OUT": str(out), "TAIJI_REQUIRE_KAFKA": "1"}
    ran = subprocess.run(TEST + ["--ignored", "--exact", "chaos::suite", "--nocapture"], env={**os.environ, **wanted})
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if seed or not rows:
        sys.exit(1 if ran.returncode else 0)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    header = (f"`make chaos` at commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}; {machine()}; {len(rows)} seeds of "
              f"{wanted['TAIJI_CHAOS_SECONDS']} s at {wanted['TAIJI_CHAOS_RATE']} different events/s, repeats and bad records on top; "
              f"**{sum(row['violations'] for row in rows)} violations** in {sum(row['events'] for row in rows):,} events.")
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join([header, ""] + table(rows)) + "\n" + END + after)
    sys.exit(1 if ran.returncode else 0)


main()
