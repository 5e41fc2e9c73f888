"""docs/benchmarks.md: the section of a benchmark between its markers, and where it was measured."""

import os
import pathlib
import platform
import subprocess

PAGE = pathlib.Path("docs/benchmarks.md")


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
