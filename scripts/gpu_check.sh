#!/usr/bin/env bash
# `scripts/gpu_check.sh`: does what taiji computes on an NVIDIA GPU agree with the processor, and how fast is it? Five proofs, the cheap
# ones first; needs no compiler and no network, and writes each figure to OUT/figures.jsonl as soon as it is there. Ends with 69 where there
# is no GPU, 1 where a figure is out of its bounds. `--size tiny --provider cpu` runs all of it on the processor, to see that it still works.
#
#   scripts/gpu_check.sh [--size full|tiny] [--provider cuda|cpu] [--only 1,2,3,4,5] [--programs DIR] [--encoder DIR] [--out DIR] [--seconds N]
#
# PYTHON: an interpreter with numpy (and PyTorch, for the bounds and the peer). --programs: folder of taiji, taiji-trainer (built by `make trainer-cuda`), llm_worker and trainer_tests, the trainer's unit tests.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_check/main.py "$@"
