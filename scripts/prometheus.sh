#!/usr/bin/env bash
# Prints the folder with `prometheus` and `promtool`: those on the PATH, or Debian's package unpacked into the cache folder. It is
# unpacked, not installed, because an installed one starts a server on port 9090, where `taiji serve` has its operators' port.
set -euo pipefail
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
  dirname "$(command -v promtool)"
  exit 0
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/taiji/prometheus
if [ ! -x "$cache/usr/bin/promtool" ]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
    echo "prometheus: neither on the PATH, nor is this a Debian to fetch it from" >&2
    exit 69
  }
  mkdir -p "$(dirname "$cache")"
  fresh=$(mktemp -d "$(dirname "$cache")/fresh.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  download() { (cd "$fresh" && apt-get download -qq prometheus >/dev/null 2>&1); }
  # Lists of packages may be missing or old; only root may renew them.
  download || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && download; } || {
    echo "prometheus: Debian's package could not be fetched" >&2
    exit 69
  }
  dpkg-deb -x "$fresh"/prometheus_*.deb "$fresh/unpacked"
  # Another run may have been quicker.
  [ -d "$cache" ] || mv "$fresh/unpacked" "$cache"
fi
echo "$cache/usr/bin"
