#!/usr/bin/env bash
# Gathers what scripts/gpu_check.sh runs in a folder: taiji, taiji-trainer, llm_worker, and trainer_tests, the trainer's unit tests.
#   scripts/gpu_programs.sh FOLDER [cuda]     cuda: the trainer's two with the feature `cuda`
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 cargo=${CARGO:-cargo} target=${CARGO_TARGET_DIR:-target}
mkdir -p "$folder"
executable() { # executable NAME COMMAND…: the path of the one that cargo says it built
  local name=$1
  shift
  "$@" --message-format=json | python3 -c '
import json, sys
messages = [json.loads(line) for line in sys.stdin]
print(*(one["executable"] for one in messages if one.get("executable") and one["target"]["name"] == sys.argv[1]))' "$name"
}
programs=$target/release
ln -sf "$(realpath "$programs/taiji")" "$folder/taiji"
ln -sf "$(executable llm_worker "$cargo" build --release --locked --workspace --bench llm_worker)" "$folder/llm_worker"
tests=("$cargo" test --release --locked --no-run --lib)
if [ "${2:-}" = cuda ]; then
  source scripts/cuda_env.sh
  tests+=(--package taiji-trainer --features cuda --target-dir "$target/cuda")
  programs=$target/cuda/release
else
  tests+=(--workspace) # as `make test` builds them
fi
ln -sf "$(realpath "$programs/taiji-trainer")" "$folder/taiji-trainer"
ln -sf "$(executable taiji_trainer "${tests[@]}")" "$folder/trainer_tests"
