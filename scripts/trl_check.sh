#!/usr/bin/env bash
# `make trl-check`: the tests of clients/python with TRL, then TRL's GRPOTrainer on our reward service, end to end.
# TAIJI_TRL_PYTHON names a Python that has TRL; else one is made (6 GB of packages).
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${TAIJI_TRL_PYTHON:-}" ]; then
  bash scripts/venv.sh .cache/trl-venv scripts/fixtures/trl-requirements.txt
  TAIJI_TRL_PYTHON=$PWD/.cache/trl-venv/bin/python
fi
export TAIJI_TRL_PYTHON
"$TAIJI_TRL_PYTHON" -W ignore -m unittest discover clients/python/tests
cargo test --release --locked --workspace --test e2e -- --ignored --nocapture trl_trains_on_our_rewards
