#!/usr/bin/env bash
# `make int4-check`: how often the demo's LLM in int4 (blocks of 128, products in 8 bits) would write the token that it
# writes in f32, on answers to 500 users that training never saw. Fails below 97 %.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
model=models/demo/1/llm/reason work=.cache/int4-check
rm -rf "$work"
"$trainer" convert bundle models/demo/1 --out "$work/checkpoint" >/dev/null
"$trainer" export --checkpoint "$work/checkpoint" --out "$work/f32" --max-positions 416 >/dev/null
cmp "$work/f32/graph.onnx.data" "$model/graph.onnx.data" || { echo "int4-check: the checkpoint is not the demo's" >&2; exit 70; }
"$trainer" export --checkpoint "$work/checkpoint" --out "$work/int4" --max-positions 416 \
  --precision int4 --block 128 --accuracy-level 4 >/dev/null
"$trainer" compare --bundle models/demo/1 --llm "$work/int4" | tee "$work/compared.json"
python3 - "$work/compared.json" <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))["top1_agreement"]
print(f"top-1 agreement {found:.2%}, wanted 97 %")
sys.exit(found < 0.97)
PY
