"""`scripts/gpu_check.sh`: the five proofs, in order; what each does is in its module."""

import argparse
import pathlib
import platform
import subprocess
import sys
import time
import traceback

SCRIPTS = pathlib.Path(__file__).parent.parent
sys.path += [str(SCRIPTS / "bench_llm"), str(SCRIPTS)]

import beams
import served
import sessions
import speed
import steps
from figures import Figures
from setting import Setting, log_end

PROOFS = {1: sessions.run, 2: served.run, 3: steps.run, 4: beams.run, 5: speed.run}


def gpu():
    """Name, memory and driver of the first GPU; `None` = there is none."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def main():
    parser = argparse.ArgumentParser(prog="gpu_check.sh")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="1,2,3,4,5")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/gpu"))
    parser.add_argument("--encoder", type=pathlib.Path, help="checkpoint of the demo's encoder; default: the one in the bundle")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(".cache/gpu-check"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".cache/gpu-check/work"))
    parser.add_argument("--seconds", type=float, default=480, help="the check is over by then")
    options = parser.parse_args()
    found = gpu()
    if options.provider == "cuda" and found is None:
        print("no GPU: not measured")
        sys.exit(69)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = Figures(options.out / "figures.jsonl")
    figures.say(0, "machine", f"{found or platform.processor() or platform.machine()}; {options.size}, provider {options.provider}")
    setting = Setting(options.provider, options.size == "full", options.programs.absolute(), options.work.absolute(),
                      options.encoder and options.encoder.absolute(), time.monotonic() + options.seconds)
    for number in map(int, options.only.split(",")):
        try:
            PROOFS[number](setting, figures)
        except (Exception, SystemExit) as error:  # the other proofs go on; this one is told of and fails the check
            traceback.print_exc()
            figures.fail(number, f"{type(error).__name__}: {error} {log_end(setting)}"[:1500])
    (options.out / "table.md").write_text(figures.table() + "\n")
    print("\n" + figures.table())
    sys.exit(0 if figures.passed else 1)


main()
