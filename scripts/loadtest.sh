#!/usr/bin/env bash
# `make loadtest`: every scenario on the built service, on a Redis of its own; pages and pictures into .cache/loadtest.
#   scripts/loadtest.sh [quick]
# Where there are two cores the generator has one for itself. A full run keeps its figures in docs/measured; a short one tries that all of it works.
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=${CARGO_TARGET_DIR:-target}/release
program=${TAIJI_PROGRAM:-$binaries/taiji}
out=.cache/loadtest
common=(--program "$program" --out "$out")
[ "$(nproc)" -lt 2 ] || common+=(--split-cores)

if [ "${1:-}" = quick ]; then
  seconds=4 rate=200 users=200 soak=12
else
  seconds=60 rate=2000 users=10000 soak=1800
fi

rm -rf "$out"
play() { # play SCENARIO FLAGS…
  echo "loadtest: $1" >&2
  "$binaries/taiji-loadtest" scenario "$@" "${common[@]}" --users "$users" >"$out.log" || { cat "$out.log"; exit 1; }
  sed -n '/^| what/,/^$/p' "$out.log"
}
mkdir -p .cache
play read --seconds "$seconds" --rate "$rate"
play mixed --seconds "$seconds" --rate "$rate"
play overload --seconds "$((seconds / 2))"
play brownout --seconds "$seconds" --rate "$rate" --fault pause
play soak --seconds "$soak" --rate "$((rate / 2))"
echo "loadtest: pages in $out" >&2

[ "${1:-}" != quick ] || exit 0
for scenario in read mixed overload brownout soak; do
  [ -f "$out/loadtest-$scenario.json" ] || { echo "loadtest: no figures of $scenario: commit what is measured first" >&2; exit 1; }
  "$binaries/taiji-loadtest" figures write "docs/measured/loadtest-$scenario.json" <"$out/loadtest-$scenario.json"
done
