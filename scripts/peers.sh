#!/usr/bin/env bash
# `make peers`: the tests whose names begin with `peers_`, which judge us by other projects' own programs. What those need is
# pinned and kept in the cache folder: the first run installs it.
set -euo pipefail
cd "$(dirname "$0")/.."
TAIJI_OPENAI_CLIENT=$(bash scripts/packages.sh tests/e2e/openai_client.txt)
TAIJI_FEAST=$(bash scripts/packages.sh tests/e2e/feast_client.txt)
export TAIJI_OPENAI_CLIENT TAIJI_FEAST
cargo test --release --locked --workspace -- peers_
