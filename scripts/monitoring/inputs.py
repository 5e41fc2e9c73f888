"""Reads what belongs together: the code's table of metrics, rules, rule tests, runbook, default settings, list of exceptions."""

import json
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s/monitoring"
RULES, TESTS = FOLDER / "prometheus-rules.yaml", FOLDER / "rules_test.yaml"
DASHBOARD = FOLDER / "taiji-dashboard.json"
RUNBOOK = ROOT / "docs/runbook.md"


def code_metrics():
    """Metric -> (kind, labels), from the one table of the code."""
    code = (ROOT / "src/telemetry/metrics.rs").read_text()
    table = code[code.index("\nmetrics_table! {") :]
    table = table[: table.index("\n}\n")]
    line = re.compile(r'^\s*\w+: (\w+) \[([^\]]*)\] "(\w+)" "', re.M)
    found = {name: (kind, re.findall(r'"(\w+)"', labels)) for kind, labels, name in line.findall(table)}
    lines = sum(line.strip().endswith(";") for line in table.splitlines())
    if not found or lines != len(found):
        raise SystemExit(f"monitoring: {lines} lines in metrics_table!, {len(found)} understood: mend scripts/monitoring/inputs.py")
    return found


def alerts():
    """The rules: each a dict with alert, expr, severity, runbook. The file has one form, so that it needs no YAML library."""
    rules = []
    for part in RULES.read_text().split("\n      - alert: ")[1:]:
        name, expr = part.splitlines()[0], re.search(r"^        expr: (.*)$", part, re.M)[1]
        if expr == "|-":
            body = re.search(r"^        expr: \|-\n((?:          .*\n)+)", part, re.M)[1]
            expr = " ".join(line.strip() for line in body.splitlines())
        elif expr.startswith("'"):
            expr = expr[1:-1].replace("''", "'")
        field = lambda key: (re.search(rf"\b{key}: ([^\s}}]+)", part) or [None, ""])[1]
        rules.append({"alert": name, "expr": expr, "severity": field("severity"), "runbook": field("runbook")})
    return rules


def rule_tests():
    """Alert -> which of "firing" and "quiet" its tests assert."""
    expectation = re.compile(r'ALERTS\{alertname="(\w+)",alertstate="firing"\}.*?exp_samples:( \[\])?', re.S)
    asserted = {}
    for alert, nothing in expectation.findall(TESTS.read_text()):
        asserted.setdefault(alert, set()).add("quiet" if nothing else "firing")
    return asserted


def panels():
    """(title, query) of every query of the dashboard as Grafana has it."""
    board = json.loads(DASHBOARD.read_text())
    return [(panel["title"], target["expr"]) for panel in board["panels"] for target in panel.get("targets", [])]


def runbook(part="Alerts"):
    """Heading of each section of a part of the runbook -> its text."""
    text = re.search(rf"^## {part}$(.*?)(?=^## |\Z)", RUNBOOK.read_text(), flags=re.M | re.S)[1]
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    return {section.split("\n", 1)[0].strip(): section for section in sections}


def settings():
    """section.key of every default setting."""
    defaults = tomllib.loads((ROOT / "src/config/default.toml").read_text())
    paths = set()

    def walk(table, path):
        for key, value in table.items():
            paths.add(f"{path}{key}")
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")

    walk(defaults, "")
    return paths


def exceptions():
    return tomllib.loads((FOLDER / "exceptions.toml").read_text())


def base(name, known):
    """The metric of the table that a name of the exposition belongs to."""
    for suffix in ("_bucket", "_sum", "_count"):
        stem = name.removesuffix(suffix)
        if stem != name and known.get(stem, ("",))[0].startswith("Histogram"):
            return stem
    return name
