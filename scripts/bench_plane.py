"""`make bench-overhead`, `make bench-replicas`: writes their sections between the markers of docs/benchmarks.md.

Usage: bench_plane.py overhead|replicas [--quick]. `benches/ingest` does the work and prints JSON.
"""

import json
import statistics
import subprocess
import sys
import time

from bench_ingest import BUNDLE, MEASURED, program, row
from page import commit, machine, write_figures, write_section

# DESIGN 9: milliseconds at 2,000 events/s, and how many times the refreshes of one replica two should do.
P50_MS, P99_MS, RATE, TWICE = 10, 50, 2000, 1.8
# Most that an earlier release may be quicker by.
SLOWER = 1.1


def overhead(ways):
    lines = ["| what | wanted | median | lowest | highest |", "|---|---|---|---|---|"]
    for way in ways:
        who, runs = "every event a refresh" if way["always_due"] else "default policy", way["runs"]
        name = f"{way['rate']:,.0f} events/s, {who}"
        for what, wanted in (("p50_ms", P50_MS), ("p90_ms", None), ("p99_ms", P99_MS), ("max_ms", None)):
            bar = f"≤ {wanted}" if wanted and way["rate"] == RATE else ""
            label = what.replace("_ms", ", ms")
            lines.append(row(f"{name}: {label}", bar, [run["ours"][what] for run in runs]))
            lines.append(row(f"the same, bare: {label}", "", [run["bare"][what] for run in runs], f"{name}, bare: {label}"))
            if "earlier" in runs[0]:
                earlier = [run["earlier"][what] for run in runs]
                lines.append(row(f"the same, earlier release: {label}", "", earlier, f"{name}, earlier release: {label}"))
                ratios = [run["ours"][what] / run["earlier"][what] for run in runs]
                lines.append(row("ours / earlier release", f"≤ {SLOWER}" if what == "p50_ms" else "", ratios,
                                 f"{name}: {what.replace('_ms', '')}, ours / earlier release"))
        given_up = [run["ours"]["given_up"] for run in runs]
        lines.append(row("given up after 10 s, events", "", given_up, f"{name}: given up after 10 s, events"))
        refreshes = [run["ours"]["refreshes"] / run["ours"]["events"] for run in runs]
        lines.append(row("refreshes of an event", "", refreshes, f"{name}: refreshes of an event"))
        cpu = "taiji's processor time of an event, µs"
        lines.append(row(cpu, "", [run["ours"]["cpu_us"] for run in runs], f"{name}: {cpu}"))
        if "earlier" in runs[0]:
            lines.append(row("the same, earlier release", "", [run["earlier"]["cpu_us"] for run in runs], f"{name}, earlier release: {cpu}"))
    runs = ways[0]["runs"]
    probes = statistics.median(run["ours"]["probes"] for run in runs)
    return f"{len(runs)} runs of all, alternating, {probes:.0f} probed events each", lines


def replicas(rounds):
    lines = ["| what | wanted | median | lowest | highest |", "|---|---|---|---|---|"]
    lines.append(row("two infer replicas / one, refreshes", f"≥ {TWICE}", [one["two"] / one["one"] for one in rounds]))
    lines.append(row("one replica, refreshes/s", "", [one["one"] for one in rounds]))
    lines.append(row("two replicas, refreshes/s", "", [one["two"] for one in rounds]))
    return f"{len(rounds)} rounds of both, alternating", lines


def main():
    what, quick = sys.argv[1], "--quick" in sys.argv[2:]
    command = [program(), BUNDLE, what] + (["--quick"] if quick else [])
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    size, lines = {"overhead": overhead, "replicas": replicas}[what](found)
    header = f"`make bench-{what}{' QUICK=1' if quick else ''}` at commit {commit()}, {time.strftime('%Y-%m-%d')}; {machine()}; {size}."
    section = "\n".join([header, ""] + lines)
    if not quick:
        write_section(f"bench-{what}", section)
        write_figures(f"bench-{what}", f"make bench-{what}", MEASURED)
    print(section)


if __name__ == "__main__":
    main()
