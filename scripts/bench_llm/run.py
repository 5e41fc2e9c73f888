"""`make bench-llm`: our LLM engine beside onnxruntime-genai and Hugging Face torch, and our own scheduling.

    run.py [--only engines,trace,gap,beam,rss,smol,roll-outs] [--quick] [--dry] [--pairs N] [--binaries DIR]

Runs in the environment of `venv.sh`. Writes .cache/bench-llm.json and the tables between the markers of
docs/benchmarks.md; `--quick` tries the whole rig with a small model and writes nothing there.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.append(str(pathlib.Path(__file__).parent.parent))
import engines
import make_model
import page
import prepare
import report
import roll_outs
import scheduling
import smol

SECTIONS = {
    "engines": engines.run, "trace": scheduling.trace, "gap": scheduling.gap, "beam": scheduling.beam,
    "rss": scheduling.rss, "smol": smol.run, "roll-outs": roll_outs.run,
}


class Context:
    """What a section gets: models, programs, how many rounds. A section may set `note`."""

    def __init__(self, options):
        quick = options.quick
        shape = "quick" if quick else "mid"
        self.shape = make_model.SHAPES[shape]
        self.pairs = options.pairs or (2 if quick else 7)
        self.programs = {"trainer": f"{options.binaries}/taiji-trainer", "worker": prepare.build_worker()}
        work = pathlib.Path(".cache/bench")
        work.mkdir(parents=True, exist_ok=True)
        self.models = prepare.Models(work, shape, self.programs)
        self.log = work / "workers.log"
        self.log.write_text("")
        self.trace_requests, self.trace_rate = (24, 100.0) if quick else (48, 8.0)
        self.long_prompt = 3000 if quick else 13000
        self.rss_requests = 2000 if quick else 10000
        self.beam_export = ["--flavour", "gqa,std,tree"]
        self.note = ""

    def say(self, text):
        print(f"bench-llm: {text}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="bench-llm", description="our LLM engine beside its peers")
    parser.add_argument("--only", default="engines,trace,gap,beam,rss",
                        help="sections, with commas; smol needs what `make int4-check` leaves, roll-outs SmolLM2's package")
    parser.add_argument("--quick", action="store_true", help="small model, few rounds, nothing written")
    parser.add_argument("--dry", action="store_true", help="print the figures, write nothing")
    parser.add_argument("--pairs", type=int, default=int(os.environ.get("BENCH_PAIRS", "0")), help="rounds (7)")
    parser.add_argument("--binaries", default=os.environ.get("CARGO_TARGET_DIR", "target") + "/release")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    return options


def main():
    options = arguments()
    context = Context(options)
    command = "make bench-llm" + (f" BENCH_PAIRS={options.pairs}" if options.pairs else "")
    figures = {}
    for name in options.only:
        started, context.note = time.monotonic(), ""
        rows = SECTIONS[name](context)
        seconds = time.monotonic() - started
        context.say(f"section {name}: {seconds:.0f} s")
        print("\n".join(report.table([row.to_json() for row in rows])), flush=True)
        print(context.note, flush=True)
        if not (options.quick or options.dry):
            report.write_page(name, report.keep(name, rows, context.note, command, seconds))
            figures[name] = [(row.what, row.unit or "ratio", row.values) for row in rows]
    # Last: what is refused here ends the bench.
    for name, measured in figures.items():
        page.write_figures(f"bench-llm-{name}", command, measured)


main()
