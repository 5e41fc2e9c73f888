#!/usr/bin/env bash
# `make test`: every test but those that need other projects' programs (scripts/peers.sh), then how many were skipped, which, and
# why. `check` instead: ends with 1 where the last run skipped one that this machine could have run.
set -euo pipefail
cd "$(dirname "$0")/.."
list=.cache/skipped.txt

# Reasons that hold here: no data sets, no model that a package holds or gradients that PyTorch makes of it, a GPU where its absence was to be
# seen, or no right to mount what an image is tried with.
allowed() {
  case "$1" in
  *"TAIJI_DATA_DIR names the folder"*) [ ! -d "${TAIJI_DATA_DIR:-../shared/data}" ] ;;
  *"TAIJI_SMOLLM2_GGUF names the file"*) [ ! -f "${TAIJI_SMOLLM2_GGUF:-}" ] ;;
  *"make gradient-check makes them"*) true ;;
  *"make trl-check runs it"*) true ;;
  *"there is a GPU"*) [ -e /dev/nvidiactl ] ;;
  *"it needs Prometheus"*) ! command -v apt-get >/dev/null ;;
  *"image: needs root"*) [ "$(id -u)" != 0 ] ;;
  *"image: mounts are not allowed here"*) ! unshare --mount true 2>/dev/null ;;
  *) false ;;
  esac
}

if [ "${1:-}" = check ]; then
  [ -f "$list" ] || { echo "tests: no run has left $list: make test" >&2; exit 1; }
  failed=0
  while IFS= read -r line; do
    allowed "$line" || { echo "tests: may not be skipped here: ${line#skipped: }" >&2; failed=1; }
  done <"$list"
  exit "$failed"
fi

mkdir -p .cache
: >"$list"
code=0
TAIJI_SKIPS="$PWD/$list" cargo test --release --locked --workspace -- --skip peers_ || code=$?

# Alerts, dashboard and runbook, beside the code's metrics and on a live Prometheus.
monitored=0
bash scripts/monitoring.sh "${CARGO_TARGET_DIR:-target}/release" 2>.cache/monitoring.err || monitored=$?
case $monitored in
0) ;;
69) echo "skipped: monitoring: it needs Prometheus. $(tr '\n' ' ' <.cache/monitoring.err)" | tee -a "$list" >&2 ;;
*) code=1; cat .cache/monitoring.err; echo "tests: scripts/monitoring.sh failed" >&2 ;;
esac

# The image, out of the programs that were built: what `make image-check` does. 69: it cannot be had here, and says why.
image=0
BIN=${CARGO_TARGET_DIR:-target}/release bash scripts/image.sh check >.cache/image-check.log 2>&1 || image=$?
case $image in
0) cat .cache/image-check.log ;;
69) echo "skipped: image-check: $(tail -n 1 .cache/image-check.log)" | tee -a "$list" ;;
*) code=1; cat .cache/image-check.log; echo "tests: scripts/image.sh check failed" >&2 ;;
esac

# The runbook's procedures on a live set-up, the short form of `make gameday`.
played=0
python3 scripts/gameday.py "${CARGO_TARGET_DIR:-target}/release" --short >.cache/gameday.log 2>&1 || played=$?
case $played in
0) tail -n 1 .cache/gameday.log ;;
69) echo "skipped: gameday: $(tail -n 1 .cache/gameday.log)" | tee -a "$list" ;;
*) code=1; cat .cache/gameday.log; echo "tests: scripts/gameday.py failed" >&2 ;;
esac

# The client for trainers elsewhere; what needs TRL is in `make trl-check`.
if python3 -m unittest discover clients/python/tests >.cache/clients-python.log 2>&1; then
  tail -n 1 .cache/clients-python.log
  echo "skipped: clients/python: what needs TRL; make trl-check runs it" | tee -a "$list"
else
  code=1
  cat .cache/clients-python.log
  echo "tests: clients/python failed" >&2
fi

sort -u -o "$list" "$list"
echo "tests: $(wc -l <"$list") skipped"
sed 's/^skipped: /  /' "$list"

# What `make gpu-check` does on a GPU, in small on the processor, so that it does not rot.
packages=$(bash scripts/packages.sh scripts/gpu_check/requirements.txt)
bash scripts/gpu_programs.sh .cache/gpu-check-programs
PYTHONPATH=$packages scripts/gpu_check.sh --size tiny --provider cpu --programs .cache/gpu-check-programs >.cache/gpu-check.log 2>&1 ||
  { code=1; cat .cache/gpu-check.log; echo "tests: scripts/gpu_check.sh failed on the processor" >&2; }
exit "$code"
