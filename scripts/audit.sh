#!/usr/bin/env bash
# `make audit`: the tests whose names begin with `audit_NN_`, one at a time and with the strict bars, then a table of them: item,
# result, test, and below each the figures that it printed (`audit NN: …`).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .cache
log=.cache/audit.log
code=0
TAIJI_AUDIT=1 cargo test --release --locked --workspace --no-fail-fast -- audit_ --nocapture --test-threads=1 >"$log" || code=$?
# With one thread and without capture a test is `test NAME ... `, what it prints, and its result.
awk '
  /^test .*audit_[0-9][0-9]_.* \.\.\. / {
    close_test("no end")
    name = $2
    match(name, /audit_[0-9][0-9]_/)
    item = substr(name, RSTART + 6, 2)
    figures = ""
    $0 = substr($0, index($0, " ... ") + 5)
  }
  name != "" && /audit [0-9][0-9]: / { figures = figures "\t" substr($0, index($0, "audit ") + 10) }
  name != "" && /(^|[^a-zA-Z])(ok|FAILED|ignored)$/ { close_test($NF) }
  function close_test(result) {
    if (name != "") printf "%s\t%-8s%s%s\n", item, result, name, figures
    name = ""
  }
  END { close_test("no end") }
' "$log" | sort | awk -F '\t' '
  BEGIN { printf "%-6s%-8s%s\n", "item", "result", "test" }
  { printf "%-6s%s\n", $1, $2; for (n = 3; n <= NF; n++) printf "%-14s%s\n", "", $n }
'
[ "$code" = 0 ] || echo "audit: failed; the whole output is in $log" >&2
exit "$code"
