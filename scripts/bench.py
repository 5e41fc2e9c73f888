"""`make bench`: the whole way measured on this machine; writes the table between the markers of docs/benchmarks.md.

Each figure is the median of RUNS runs, with the lowest and the highest beside it.
"""

import http.client
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from page import machine, unit_of, write_figures, write_section
from service import Service

RUNS = 3
USERS = 230
READS = 2_000
BUNDLE = "models/demo/1"


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def read_latencies(service, users, batch):
    """Milliseconds of single reads over one kept-alive connection, client and JSON of the answer included."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    latencies = []
    for number in range(READS if batch == 1 else READS // 10):
        asked = [users[(number * batch + place) % len(users)] for place in range(batch)]
        body = json.dumps({"users": asked, "groups": ["intra"]})
        started = time.perf_counter()
        connection.request("POST", "/v1/features", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        latencies.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            sys.exit(f"a read answered {answer.status}")
    connection.close()
    return latencies


def ingest(binaries, work, sample):
    """Events a second into the embedded store, refresh off."""
    store = work / "ingest-store"
    shutil.rmtree(store, ignore_errors=True)
    with Service(binaries, store, BUNDLE, work / "ingest.log", "null", TAIJI__REFRESH__ENABLED="false") as service:
        started = time.perf_counter()
        said = service.feed(sample / "events.jsonl")
        seconds = time.perf_counter() - started
        if f"{EVENTS_IN_FILE} accepted" not in said:
            sys.exit(f"not every event was accepted: {said}")
        return {"events in, /s (feed over HTTP, refresh off)": EVENTS_IN_FILE / seconds}


def refresh(binaries, work, sample, users):
    """The queue of all users emptied by the real models."""
    store = work / "refresh-store"
    shutil.rmtree(store, ignore_errors=True)
    with Service(binaries, store, BUNDLE, work / "fill.log", "null", TAIJI__REFRESH__ENABLED="false") as service:
        service.feed(sample / "events.jsonl")
    with Service(binaries, store, BUNDLE, work / "refresh.log") as service:
        started = time.perf_counter()
        service.until(lambda: service.fresh(users) == len(users), 600, "the queue was not emptied")
        seconds = time.perf_counter() - started
        prompt, generated = token_counts(service)
        single, hundred = read_latencies(service, users, 1), read_latencies(service, users, 100)
        stage = stage_means(service)
        return {
            "refreshed users, /s": len(users) / seconds,
            "LLM prompt tokens, /s": prompt / seconds,
            "LLM generated tokens, /s": generated / seconds,
            **{f"stage {name}, mean ms": value for name, value in stage.items()},
            "read 1 user x intra, p50 ms": percentile(single, 0.50),
            "read 1 user x intra, p99 ms": percentile(single, 0.99),
            "read 100 users x intra, p50 ms": percentile(hundred, 0.50),
            "read 100 users x intra, p99 ms": percentile(hundred, 0.99),
            "resident memory, MiB": service.metric("process_resident_memory_bytes") / 2**20,
            "store on disk, KiB a user": service.metric("taiji_store_disk_bytes") / len(users) / 1024,
        }


def token_counts(service):
    counts = {}
    for line in service.admin("/metrics")[1].splitlines():
        if line.startswith("taiji_llm_tokens_total"):
            counts[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return counts["prompt"], counts["generated"]


def stage_means(service):
    sums, counts = {}, {}
    for line in service.admin("/metrics")[1].splitlines():
        for kind, target in (("sum", sums), ("count", counts)):
            if line.startswith(f"taiji_stage_duration_seconds_{kind}"):
                target[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return {name: 1000 * sums[name] / counts[name] for name in sorted(sums) if counts.get(name)}


def main():
    global EVENTS_IN_FILE
    binaries = os.environ.get("CARGO_TARGET_DIR", "target") + "/release"
    work = pathlib.Path(".cache/bench")
    sample = work / "sample"
    subprocess.run([f"{binaries}/taiji-trainer", "synth", "--out", sample, "--world", "reason", "--users",
                    str(USERS), "--seed", "99"], check=True, stdout=subprocess.DEVNULL)
    lines = (sample / "events.jsonl").read_text().splitlines()
    EVENTS_IN_FILE = len(lines)
    users = sorted({json.loads(line)["user_id"] for line in lines})
    figures = {}
    for number in range(RUNS):
        for name, value in {**ingest(binaries, work, sample), **refresh(binaries, work, sample, users)}.items():
            figures.setdefault(name, []).append(value)
        print(f"run {number + 1} of {RUNS} done", file=sys.stderr)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    table = ["| what | median | lowest | highest |", "|---|---|---|---|"]
    for name, values in figures.items():
        table.append(f"| {name} | {statistics.median(values):,.2f} | {min(values):,.2f} | {max(values):,.2f} |")
    header = f"`make bench` at commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}; {machine()}; {RUNS} runs; "
    header += f"{len(users)} users, {EVENTS_IN_FILE} events, demo bundle, server and client on the same cores."
    write_section("bench", "\n".join([header, ""] + table))
    # A remark in brackets stands behind the unit.
    write_figures("bench", "make bench", [(name, unit_of(name.split(" (")[0]), values) for name, values in figures.items()])
    print("\n".join([header, ""] + table))


main()
