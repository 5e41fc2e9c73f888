"""docs/benchmarks.md: the section of a benchmark between its markers, and where it was measured; docs/measured: its figures for programs."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

PAGE = pathlib.Path("docs/benchmarks.md")
MEASURED = pathlib.Path("docs/measured")


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def commit():
    said = subprocess.run(["git", "describe", "--always", "--dirty= with changes"], capture_output=True, text=True).stdout
    return said.strip() or "unknown"


def write_section(name, text):
    """Puts `text` between `<!-- name:begin -->` and `<!-- name:end -->`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(before + begin + "\n" + text + "\n" + end + rest.split(end)[1])


def whole_commit():
    """All digits of the commit, with `-dirty` behind them where more than pages has changed since: such figures are not kept."""
    said = lambda *arguments: subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    changes = said("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs")
    return said("rev-parse", "HEAD") + ("-dirty" if changes else "")


def write_figures(name, command, measured):
    """Keeps `measured`, a list of (what, unit, values of the runs), as docs/measured/NAME.json. Medians and spread are formed here; the form is
    checked by the one program that knows it, and what it refuses ends the bench."""
    figures = [{"name": what, "value": statistics.median(values), "unit": unit, "low": min(values), "high": max(values), "n": len(values)}
               for what, unit, values in measured]
    found = {"name": name, "commit": whole_commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d", time.gmtime()),
             "command": command, "figures": figures}
    program = os.environ.get("CARGO_TARGET_DIR", "target") + "/release/taiji-loadtest"
    done = subprocess.run([program, "figures", "write", str(MEASURED / f"{name}.json")], input=json.dumps(found), text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: its figures are not kept, see above")
