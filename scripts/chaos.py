"""`make chaos`: the chaos suite (tests/e2e/chaos), one line a seed; writes the table between the markers of docs/benchmarks.md.

Environment: SEEDS, SECONDS_EACH, RATE, SWEEP (seconds; the default interval of 300 where it is not set), ACK (store.ack); SEED runs one seed alone and writes no table. Exit code 1 on any violation.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from page import commit, machine, write_section

TEST = ["cargo", "test", "--release", "--locked", "--workspace", "--test", "e2e", "--"]


def table(rows):
    lines = ["| seed | store | processes | faults | events | events/s | records/s | reads | slowest recovery, s | settled in, s | lost with the tail | due marks lost | violations |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        slowest = f"{row['slowest_s']:.1f} ({row['slowest_after']})" if row["slowest_after"] else "–"
        lines.append(f"| {row['seed']} | {row['store']} | {row['mix']} | {row['faults']} | {row['events']:,} | {row['events_rate']:,.0f} | {row['records_rate']:,.0f} | {row['reads']:,} | "
                     f"{slowest} | {row['settled_s']:.1f} | {row['lost_with_tail']} | {row['marks_lost']} | {row['violations']} |")
    return lines


def main():
    seeds, seconds, rate, seed, sweep, ack = (os.environ.get(name, "") for name in ("SEEDS", "SECONDS_EACH", "RATE", "SEED", "SWEEP", "ACK"))
    out = pathlib.Path(".cache/chaos.jsonl")
    out.parent.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    wanted = {"TAIJI_CHAOS_SEEDS": seeds or "10", "TAIJI_CHAOS_SECONDS": seconds or "60", "TAIJI_CHAOS_RATE": rate or "1000",
              "TAIJI_CHAOS_SEED": seed, "TAIJI_CHAOS_SWEEP": sweep, "TAIJI_CHAOS_OUT": str(out), "TAIJI_REQUIRE_KAFKA": "1"}
    if ack:
        wanted["TAIJI_CHAOS_ACK"] = ack
    ran = subprocess.run(TEST + ["--ignored", "--exact", "chaos::suite", "--nocapture"], env={**os.environ, **wanted})
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    if seed or not rows:
        sys.exit(1 if ran.returncode else 0)
    header = (f"`make chaos` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}; {len(rows)} seeds of "
              f"{wanted['TAIJI_CHAOS_SECONDS']} s at {wanted['TAIJI_CHAOS_RATE']} different events/s, half by Kafka and half by HTTP, repeats and bad records on top; "
              f"**{sum(row['violations'] for row in rows)} violations** in {sum(row['events'] for row in rows):,} events.")
    write_section("chaos", "\n".join([header, ""] + table(rows)))
    sys.exit(1 if ran.returncode else 0)


main()
