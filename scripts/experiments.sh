#!/usr/bin/env bash
# Experiments NAME…: models/NAME.toml, arms × seeds, two at once; then their tables in docs/results.md and a page each in .cache/experiments.
# Rows that are there are not made again; a killed run goes on; a run that fails does not keep the others from their turn. Public sets
# come from TAIJI_DATA_DIR: an experiment on one that is not there is left out, and said.
set -euo pipefail
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/taiji-trainer
from=${TAIJI_DATA_DIR:-../shared/data}

left_out=0 failed=()
for name in "$@"; do
  public=() data=() needs=
  case $name in
  lift-beauty)
    needs=$from/beauty.interactions.tsv.gz
    public=(amazon --interactions "$needs" --items "$from/beauty.items.jsonl.gz")
    ;;
  lift-kuairand)
    needs=$from/kuairand.impressions.tsv.gz
    public=(kuairand --impressions "$needs" --histories "$from/kuairand.histories.tsv.gz"
      --users "$from/kuairand.users.tsv.gz" --videos "$from/kuairand.videos.tsv.gz" --points 30000)
    ;;
  lift-smol) needs=$from/beauty.interactions.tsv.gz ;;
  esac
  if [ -n "$needs" ] && [ ! -f "$needs" ]; then
    echo "$name: left out, $needs is not there; set TAIJI_DATA_DIR to the folder that holds it" >&2
    left_out=$((left_out + 1))
    continue
  fi
  if [ "$name" = lift-smol ]; then
    python3 scripts/smol.py prepared # checkpoint and data
    data=(--data .cache/smol/data)
  elif [ ${#public[@]} -gt 0 ]; then
    data=(--data ".cache/$name/data")
    "$trainer" import "${public[@]}" --out "${data[1]}"
  fi
  # Rows of what ran are told of, whatever became of the rest.
  "$trainer" run --recipe "models/$name.toml" "${data[@]}" --jobs 2 --wait || failed+=("$name")
  [ -d "docs/experiments/$name" ] || continue
  "$trainer" contrasts "docs/experiments/$name.toml" --into docs/results.md --page ".cache/experiments/$name.html"
done
[ "$left_out" = 0 ] || echo "$left_out of $# sets left out"
[ ${#failed[@]} = 0 ] || { echo "failed, why stands above: ${failed[*]}" >&2; exit 1; }
