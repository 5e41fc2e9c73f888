#!/usr/bin/env bash
# Do alerts, dashboard, runbook and the code's metrics agree, and does a live Prometheus answer every query? 69 where Prometheus
# cannot be had.
#   scripts/monitoring.sh BINARIES [what live.py takes]
set -euo pipefail
cd "$(dirname "$0")/.."
binaries=${1:?usage: scripts/monitoring.sh BINARIES}
shift
prometheus=$(bash scripts/prometheus.sh)
# The services are on this machine: a proxy for the package registries has no part in it.
export no_proxy="127.0.0.1,localhost${no_proxy:+,$no_proxy}"
python3 scripts/monitoring/tests.py --quiet
python3 scripts/monitoring/check.py "$prometheus/promtool"
python3 scripts/monitoring/live.py "$prometheus" "$binaries" "$@"
