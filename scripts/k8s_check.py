#!/usr/bin/env python3
"""Our own assertions on k8s/, with the standard library alone: what Kubernetes cannot know (settings, flags, metrics, the drain).

  k8s_check.py rules               writes k8s/monitoring/prometheusrule.yaml: prometheus-rules.yaml as a PrometheusRule
  k8s_check.py generated           1 where that file, or the copy of the demo's recipe, is not what it is made of
  k8s_check.py unchanged           0 where k8s/ and tools/k8s are what the last green `make k8s-check` saw
  k8s_check.py rendered DIR        writes k8s/rendered.json out of DIR/<overlay>.json, as kubectl prints what kustomize makes
  k8s_check.py commands            prints the commands of k8s/README.md that stand in its text
  k8s_check.py assert --programs D the assertions, on k8s/rendered.json and the built programs in D
  k8s_check.py checked             writes k8s/checked

The assertions themselves are in k8s_assertions.py.
"""

import hashlib
import json
import pathlib
import re
import sys

import k8s_assertions

ROOT = pathlib.Path(__file__).resolve().parent.parent
K8S = ROOT / "k8s"
CHECKED, RENDERED = K8S / "checked", K8S / "rendered.json"
RULES, WRAPPED = K8S / "monitoring/prometheus-rules.yaml", K8S / "monitoring/prometheusrule.yaml"
# The folder a rendered file is named by, and where it lies.
OVERLAYS = ("base", "dev", "cpu", "gpu", "image-volume")


def wrapped():
    """The rules file as a PrometheusRule: each line two to the right, below `spec:`."""
    head = ["# Made by `make k8s-rules` out of prometheus-rules.yaml.", "apiVersion: monitoring.coreos.com/v1", "kind: PrometheusRule"]
    head += ["metadata:", "  name: taiji", "spec:"]
    lines = [f"  {line}" if line else "" for line in RULES.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(head + lines) + "\n"


def generated():
    """What must equal another file of the tree."""
    wrong = []
    if RULES.exists() and (not WRAPPED.exists() or WRAPPED.read_text() != wrapped()):
        wrong.append(f"{WRAPPED.relative_to(ROOT)} is not of these rules: make k8s-rules")
    copy, recipe = K8S / "components/trainer/recipe.toml", ROOT / "models/demo.toml"
    if copy.read_bytes() != recipe.read_bytes():
        wrong.append(f"{copy.relative_to(ROOT)} differs from {recipe.relative_to(ROOT)}: copy it")
    return wrong


def tree_hash():
    """Of every file below k8s/ and tools/k8s but what a check writes."""
    total = hashlib.sha256()
    for path in sorted(path for folder in (K8S, ROOT / "tools/k8s") for path in folder.rglob("*") if path.is_file()):
        if path not in (CHECKED, RENDERED):
            total.update(f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def checked_text():
    rendered = hashlib.sha256(RENDERED.read_bytes()).hexdigest()
    return f"# Written by a green `make k8s-check`: hashes of k8s/ with tools/k8s, and of k8s/rendered.json.\n{tree_hash()}\n{rendered}\n"


def objects(folder, overlay):
    """The objects of one overlay, without what is checked elsewhere (rules, dashboard) or filled in by kubectl."""
    text = (folder / f"{overlay}.json").read_text()
    found, decoder, at = [], json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found += value["items"] if value["kind"] == "List" else [value]
    for one in found:
        one["metadata"].pop("creationTimestamp", None)
        one.pop("status", None)
        if one["kind"] == "PrometheusRule":
            one.pop("spec")
        if one["kind"] == "ConfigMap":
            one["data"] = {name: text for name, text in one["data"].items() if not name.endswith(".json")}
    return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"]))


def write_rendered(folder):
    lines = []
    for overlay in OVERLAYS:
        each = [json.dumps(one, sort_keys=True) for one in objects(folder, overlay)]
        lines.append(json.dumps(overlay) + ": [\n" + ",\n".join(each) + "\n]")
    RENDERED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def fail(wrong):
    for line in wrong:
        print(f"k8s-check: {line}", file=sys.stderr)
    return 1 if wrong else 0


def main():
    match sys.argv[1:]:
        case ["rules"]:
            WRAPPED.write_text(wrapped())
        case ["generated"]:
            return fail(generated())
        case ["unchanged"]:
            return 0 if CHECKED.exists() and RENDERED.exists() and CHECKED.read_text() == checked_text() else 1
        case ["rendered", folder]:
            write_rendered(pathlib.Path(folder))
        case ["commands"]:
            print(*re.findall("`(kubectl [^`]+)`", (K8S / "README.md").read_text()), sep="\n")
        case ["assert", "--programs", programs]:
            return fail(k8s_assertions.run(ROOT, json.loads(RENDERED.read_text()), pathlib.Path(programs)))
        case ["checked"]:
            CHECKED.write_text(checked_text())
        case _:
            print(__doc__, file=sys.stderr)
            return 64
    return 0


sys.exit(main())
