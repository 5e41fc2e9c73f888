#!/usr/bin/env bash
# Makes a virtual environment with what a file of requirements names; again when that file has changed.
#   scripts/venv.sh FOLDER REQUIREMENTS
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 wanted=$2
cmp -s "$wanted" "$venv/installed.txt" && exit 0
echo "venv: installing what $wanted names into $venv" >&2
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
cp "$wanted" "$venv/installed.txt"
