"""Draws the dashboard as an SVG from what its queries answered in a live run. Standard library only."""

import re
from html import escape

from panels import ROWS

WIDTH, MARGIN, GAP = 1200, 16, 10
COLOURS = ["#1f77b4", "#e6862c", "#2f9e44", "#d6336c", "#7048e8", "#0c8599", "#a37015", "#5c636a"]
TILES = {"green": "#d8f0dd", "orange": "#ffe8cc", "red": "#ffd6d6"}
POINTS = 45  # of a line
LEGEND = 56  # characters below a panel
STYLE = ("text{font:11px system-ui,sans-serif;fill:#333}.h{font-size:15px;font-weight:600}.t{font-size:12px;font-weight:600}"
         ".v{font-size:22px;font-weight:600}.s{font-size:10px}polyline{fill:none;stroke-width:1.4}")


def number(value, unit):
    """A value as a person reads it."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return "0 s"
    steps = ((2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB")) if unit == "bytes" else ((1e9, " G"), (1e6, " M"), (1e3, " k"))
    for size, name in steps:
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}" + ("/s" if unit == "reqps" else "")


def text(x, y, words, style="", extra=""):
    return f'<text x="{x:.0f}" y="{y:.0f}"{f" class={chr(34)}{style}{chr(34)}" if style else ""}{extra}>{escape(words)}</text>'


def named(legend, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend).strip()


def lines_of(panel, shown):
    """(name, points) of every line of a panel."""
    return [(named(legend, labels), points) for query, legend in panel["queries"] for labels, points in shown[panel["title"], query]]


def tile(panel, shown, x, y, wide):
    """A number on its colour."""
    lines = lines_of(panel, shown)
    if not lines:
        value, colour = "–", "#eee"
    else:
        last = lines[0][1][-1][1]
        colour = TILES[[name for at, name in panel["steps"] if at is None or last >= at][-1]]
        value = number(last, panel["unit"])
    return (f'<rect x="{x}" y="{y}" width="{wide}" height="56" rx="4" fill="{colour}"/>' + text(x + 8, y + 16, panel["title"], "s")
            + text(x + 8, y + 44, value, "v"))


def bends(points):
    """Without the points in the middle of a level stretch."""
    return [point for nth, point in enumerate(points)
            if nth in (0, len(points) - 1) or not points[nth - 1][1] == point[1] == points[nth + 1][1]]


def chart(panel, shown, span, x, y, wide, high):
    """Lines of a panel over the time of the run; the names of the largest few."""
    lines = sorted(lines_of(panel, shown), key=lambda line: -max(value for _, value in line[1]))
    top = max(value for _, points in lines for _, value in points)
    low = min(0.0, min(value for _, points in lines for _, value in points))
    reach = (top - low) or 1.0
    left, right, ceiling, floor = x + 8, x + wide - 8, y + 38, y + high - 18
    out = [f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="4" fill="#fff" stroke="#ddd"/>', text(x + 8, y + 16, panel["title"], "t"),
           text(right, y + 16, number(top, panel["unit"]), "s", ' text-anchor="end"'),
           f'<path d="M{left} {floor}H{right}M{left} {ceiling}H{right}" stroke="#eee"/>']
    legend, room = [], LEGEND
    for nth, (name, points) in enumerate(lines):
        colour = COLOURS[nth % len(COLOURS)]
        every = -(-len(points) // POINTS)
        at = bends([(round(left + (right - left) * (when - span[0]) / (span[1] - span[0])), round(floor - (floor - ceiling) * (value - low) / reach))
                    for when, value in points[::every]])
        out.append(f'<polyline points="{" ".join(f"{a},{b}" for a, b in at)}" stroke="{colour}"/>')
        room -= len(name) + 3
        if name and room > 0:
            legend.append(f'<tspan fill="{colour}">{escape(name)}</tspan>')
    if legend and len(lines) > len(legend):
        legend.append(f"<tspan>+{len(lines) - len(legend)}</tspan>")
    out.append(f'<text x="{left}" y="{y + high - 5}" class="s">{" · ".join(legend)}</text>')
    return "".join(out)


def draw(shown, span):
    """The dashboard's panels that had something to show; the others are named at the end."""
    out, y, missing = [], MARGIN, []
    for title, row in ROWS:
        tiles = [panel for panel in row if panel["kind"] == "stat"]
        charts = [panel for panel in row if panel["kind"] == "series" and lines_of(panel, shown)]
        missing += [panel["title"] for panel in row if panel["kind"] == "series" and not lines_of(panel, shown)]
        if not tiles and not charts:
            continue
        out.append(text(MARGIN, y + 14, title, "h"))
        y += 24
        wide = (WIDTH - 2 * MARGIN - GAP * 7) / 8
        for nth, panel in enumerate(tiles):
            out.append(tile(panel, shown, round(MARGIN + nth * (wide + GAP)), y, round(wide)))
        y += 66 if tiles else 0
        wide, high = (WIDTH - 2 * MARGIN - GAP * 2) // 3, 120
        for nth, panel in enumerate(charts):
            out.append(chart(panel, shown, span, MARGIN + nth % 3 * (wide + GAP), y + nth // 3 * (high + GAP), wide, high))
        y += -(-len(charts) // 3) * (high + GAP) + 8
    seconds = span[1] - span[0]
    note = f"{seconds:.0f} s of two processes under load (embedded store with the demo bundle; Redis with canned answers). Nothing to show here: "
    words, line = [], note
    for name in missing:
        if len(line) + len(name) > 190:
            words.append(line)
            line = ""
        line += name + ", "
    words.append(line.rstrip(", ") + ".")
    for line in words:
        out.append(text(MARGIN, y + 10, line, "s"))
        y += 14
    height = y + MARGIN
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
            f'<title>taiji on its dashboard</title><style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#f7f8fa"/>\n' + "\n".join(out) + "\n</svg>\n")
