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
    said = lambda *arguments: subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()
    head, changes = said("rev-parse", "HEAD"), said("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs")
    # A tree without git is nobody's commit.
    return (head or "unknown") + ("-dirty" if changes or not head else "")


def write_figures(name, command, measured):
    """Keeps `measured`, a list of (what, unit, values of the runs), as docs/measured/NAME.json. Medians and spread are formed here; the form is
    checked by the one program that knows it. Of a tree with changes nothing is kept, for nobody could measure it again."""
    measured_at = whole_commit()
    if measured_at.endswith("-dirty"):
        print(f"{name}: no figures are kept in {MEASURED}: commit what is measured first", file=sys.stderr)
        return
    figures = [{"name": what, "value": statistics.median(values), "unit": unit, "low": min(values), "high": max(values), "n": len(values)}
               for what, unit, values in measured]
    found = {"name": name, "commit": measured_at, "machine": machine(), "date": time.strftime("%Y-%m-%d", time.gmtime()),
             "command": command, "figures": figures}
    program = os.environ.get("CARGO_TARGET_DIR", "target") + "/release/taiji-loadtest"
    done = subprocess.run([program, "figures", "write", str(MEASURED / f"{name}.json")], input=json.dumps(found), text=True)
    if done.returncode != 0:
        sys.exit(f"{name}: its figures are not kept, see above")


# Ends of what the tables call a row, and the unit they mean.
UNITS = [("/s", "1/s"), ("µs", "µs"), ("ms", "ms"), ("bytes a user", "bytes a user"), ("KiB a user", "KiB a user"), ("MiB", "MiB"),
         (", events", "events")]


def unit_of(what):
    """The unit that a row's name ends with; a row without one is a ratio."""
    return next((unit for end, unit in UNITS if what.endswith(end)), "ratio")
