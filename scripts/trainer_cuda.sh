#!/usr/bin/env bash
# `make trainer-cuda`: taiji-trainer with `--device cuda` as target/cuda/release/taiji-trainer.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cuda_env.sh
"${CARGO:-cargo}" build --release --locked --package taiji-trainer --bin taiji-trainer --features cuda \
  --target-dir "${CARGO_TARGET_DIR:-target}/cuda"
