#!/usr/bin/env bash
# `make deny`: licences, banned crates and sources of all crates, by cargo-deny. It is built once, without optimisation (a minute on two
# cores), into the cache folder; without it this fails.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
folder=${XDG_CACHE_HOME:-$HOME/.cache}/taiji/tools/cargo-deny-$version
if [ ! -x "$folder/bin/cargo-deny" ]; then
  echo "deny: building cargo-deny $version" >&2
  mkdir -p "$(dirname "$folder")"
  fresh=$(mktemp -d "$(dirname "$folder")/fresh.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  cargo install --quiet --locked "cargo-deny@$version" --root "$fresh/root" --target-dir "$fresh/target" --no-track \
    --config profile.release.lto=false --config profile.release.opt-level=0 --config profile.release.codegen-units=16 || {
    echo "deny: cargo-deny $version could not be built; is the registry of crates reachable?" >&2
    exit 69
  }
  # Another run may have been quicker.
  [ -d "$folder" ] || mv "$fresh/root" "$folder"
fi
"$folder/bin/cargo-deny" --locked --workspace check --hide-inclusion-graph bans licenses sources
