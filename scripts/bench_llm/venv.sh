#!/usr/bin/env bash
# Makes the virtual environment of `make bench-llm` in .cache/bench-venv; again when requirements.txt has changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.cache/bench-venv
wanted=scripts/bench_llm/requirements.txt
cmp -s "$wanted" "$venv/installed.txt" && exit 0
echo "bench-llm: installing torch, transformers and onnxruntime-genai into $venv (about 6 GB)" >&2
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
cp "$wanted" "$venv/installed.txt"
