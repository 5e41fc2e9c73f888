#!/usr/bin/env bash
# `make generative`: a decoder of .9 M parameters that writes the published LETTER codes of the next item, on Amazon Instruments; lists
# of all test users by the engine's beam beside tuned counting. The row goes to docs/experiments/instruments/. A killed run goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
from=${TAIJI_DATA_DIR:-../shared/data} data=${TAIJI_WORK:-.cache/generative}/data
interactions=$from/instruments.interactions.tsv.gz
[ -f "$interactions" ] || { echo "generative: $interactions is not there; set TAIJI_DATA_DIR to the folder that holds it" >&2; exit 69; }
"$trainer" import amazon --interactions "$interactions" --items "$from/instruments.items.jsonl.gz" --out "$data"
cp -f "$from/instruments.sids-letter.tsv.gz" "$data/codes.tsv.gz"
"$trainer" run --recipe models/instruments.toml --data "$data" "$@"
