#!/usr/bin/env bash
# For tests: installs the Python packages of a requirements file into a folder of the cache, one for each content of the
# file and each Python; prints the folder, to put on PYTHONPATH.
#   scripts/packages.sh FILE
set -euo pipefail
list=${1:?usage: scripts/packages.sh FILE}
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
name=$(basename "$list" .txt)-$(sha256sum "$list" | cut -c1-12)-$python
folder=${XDG_CACHE_HOME:-$HOME/.cache}/taiji/python/$name
if [ ! -d "$folder" ]; then
  mkdir -p "$(dirname "$folder")"
  fresh=$(mktemp -d "$(dirname "$folder")/fresh.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$fresh/packages" --requirement "$list" >&2 || {
    echo "packages: those of $list could not be fetched; is the Python package index reachable?" >&2
    exit 69
  }
  # Another run may have been quicker.
  [ -d "$folder" ] || mv "$fresh/packages" "$folder"
fi
echo "$folder"
