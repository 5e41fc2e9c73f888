"""Keeps the sections' figures in a JSON file and writes them as tables into docs/benchmarks.md.

A section that is measured again replaces its own figures only, so a section says at which commit it was measured.
"""

import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import time

PAGE = pathlib.Path("docs/benchmarks.md")
KEPT = pathlib.Path(".cache/bench-llm.json")
ORDER = ["engines", "trace", "gap", "beam", "rss", "smol", "roll-outs"]


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "").split()
    wide = next((name for name in ("avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags), "no avx2")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {model} ({wide}), {memory:.0f} GiB, {platform.system()} {platform.release()}"


def commit():
    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benches", "scripts", "Cargo.lock")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")


def keep(name, rows, note, command, seconds):
    """Adds a section to the file."""
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    kept[name] = {
        "command": command, "commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": machine(), "note": note,
        "seconds": round(seconds), "rows": [row.to_json() for row in rows],
    }
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(kept, indent=1))
    return kept[name]


def figure(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}" if abs(value) >= 10 else f"{value:.2f}"


def table(rows):
    lines = ["| what | wanted | median | lowest | highest |", "|---|---|---|---|---|"]
    for row in rows:
        what = f"{row['what']}, {row['unit']}" if row["unit"] else row["what"]
        cells = [statistics.median(row["values"]), min(row["values"]), max(row["values"])]
        lines.append(f"| {what} | {row['wanted']} | " + " | ".join(figure(value) for value in cells) + " |")
    return lines


def section(name, entry):
    count = len(entry["rows"][0]["values"])
    head = f"**{name}**: `{entry['command']}` at commit {entry['commit']}, {entry['date']}; {entry['machine']}; "
    head += f"{count} rounds." if count > 1 else "1 run."
    if entry["note"]:
        head += f" {entry['note'][0].upper()}{entry['note'][1:]}."
    return [head, "", *table(entry["rows"]), ""]


def write_page(name, entry, begin="<!-- bench-llm:begin -->", end="<!-- bench-llm:end -->"):
    """Puts a section in its place on the page; the others stay as they are, wherever they were measured."""
    before, rest = PAGE.read_text().split(begin)
    kept, after = rest.split(end)
    sections, current = {}, None
    for line in kept.strip("\n").splitlines():
        head = re.match(r"\*\*([a-z-]+)\*\*: ", line)
        current = head[1] if head else current
        if current not in ORDER:
            raise SystemExit(f"bench-llm: {PAGE}: {line!r} is of no section of {', '.join(ORDER)}; put it outside of the markers")
        sections.setdefault(current, []).append(line)
    sections[name] = section(name, entry)
    lines = [line for known in ORDER if known in sections for line in ["\n".join(sections[known]).strip("\n"), ""]]
    PAGE.write_text(before + begin + "\n" + "\n".join(lines).rstrip() + "\n" + end + after)
