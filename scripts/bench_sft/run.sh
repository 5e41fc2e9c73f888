#!/usr/bin/env bash
# `make bench-sft`: builds our worker, brings PyTorch, runs both (scripts/bench_sft/run.py).
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.cache/bench-sft-venv
bash scripts/venv.sh "$venv" scripts/bench_sft/requirements.txt
worker=$(cargo bench --locked -p taiji-trainer --bench sft_worker --no-run --message-format json |
  python3 -c 'import json, sys; print([found["executable"] for found in map(json.loads, sys.stdin) if found.get("executable") and found["target"]["name"] == "sft_worker"][-1])')
checkpoint=
if [ -f "${TAIJI_SMOLLM2_GGUF:-}" ]; then
  checkpoint=.cache/gradient-check
  [ -f "$checkpoint/config.json" ] ||
    "${CARGO_TARGET_DIR:-target}/release/taiji-trainer" convert gguf "$TAIJI_SMOLLM2_GGUF" --out "$checkpoint"
fi
exec "$venv/bin/python" scripts/bench_sft/run.py --worker "$worker" ${checkpoint:+--smollm2 "$checkpoint"} "$@"
