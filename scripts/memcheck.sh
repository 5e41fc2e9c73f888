#!/usr/bin/env bash
# `make memcheck`: the tests of the unsafe code under valgrind. Reports that lie wholly inside ONNX Runtime or the loader are
# not ours; whatever passes through our own code fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "memcheck: valgrind is missing" >&2; exit 69; }
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends valgrind >/dev/null
}
binary=$(cargo test --release --locked --workspace --lib --no-run --message-format=json 2>/dev/null |
  python3 -c 'import json,sys
for line in sys.stdin:
    entry = json.loads(line)
    if entry.get("executable") and entry["target"]["name"] == "taiji" and entry["profile"]["test"]:
        print(entry["executable"])')
# No leak check: the process-wide environment of ONNX Runtime is never freed, on purpose.
valgrind --quiet --error-exitcode=9 --leak-check=no --suppressions=scripts/memcheck.supp \
  "$binary" --test-threads=1 llm::binding
