#!/usr/bin/env bash
# Experiments NAME…: models/NAME.toml, arms × seeds, two at once; then their tables in docs/results.md and a page each in .cache/experiments.
# Rows that are there are not made again; a killed run goes on. Real purchases come from TAIJI_DATA_DIR: without it that set is left out,
# and said.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
from=${TAIJI_DATA_DIR:-../shared/data}
left_out=0
for name in "$@"; do
  data=()
  if [ "$name" = lift-beauty ]; then
    interactions=$from/beauty.interactions.tsv.gz folder=.cache/$name/data
    if [ ! -f "$interactions" ]; then
      echo "$name: left out, $interactions is not there; set TAIJI_DATA_DIR to the folder that holds it" >&2
      left_out=$((left_out + 1))
      continue
    fi
    "$trainer" import amazon --interactions "$interactions" --items "$from/beauty.items.jsonl.gz" --out "$folder"
    data=(--data "$folder")
  fi
  "$trainer" run --recipe "models/$name.toml" "${data[@]}" --jobs 2 --wait
  "$trainer" contrasts "docs/experiments/$name.toml" --into docs/results.md --page ".cache/experiments/$name.html"
done
[ "$left_out" = 0 ] || echo "$left_out of $# sets left out"
