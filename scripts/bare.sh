#!/usr/bin/env bash
# `make bare`: the README's commands in a fresh clone on a bare Debian root with empty caches, as root: minimal Debian
# plus Python 3, a C++ compiler, make and git, and this machine's Rust toolchain copied in. Needs root and debootstrap.
#   scripts/bare.sh DIR [COMMAND]     COMMAND defaults to: make test, then make run until it has printed its curl lines
set -euo pipefail
cd "$(dirname "$0")/.."
root=${1:?usage: scripts/bare.sh DIR [COMMAND]}
command=${2:-}
[ "$(id -u)" = 0 ] || { echo "bare: needs root" >&2; exit 69; }
command -v debootstrap >/dev/null || { echo "bare: debootstrap is missing" >&2; exit 69; }

suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
if [ ! -f "$root/etc/debian_version" ]; then
  mirror=$(grep -rhoE 'https?://[^ ]+/debian/?$' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | head -1 || true)
  debootstrap --variant=minbase --include=ca-certificates,git,make,python3,g++ "$suite" "$root" "$mirror"
fi
# How this machine reaches its package registries, and its Rust toolchain.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
if [ ! -x "$root/opt/rust/bin/cargo" ]; then
  mkdir -p "$root/opt"
  cp -r "$(rustc --print sysroot)" "$root/opt/rust"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"
umount_all() { umount "$root/proc" "$root/dev" 2>/dev/null || true; }
trap umount_all EXIT
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"

rm -rf "$root/taiji" "$root/root"
mkdir -p "$root/root"
git clone --quiet . "$root/taiji"
# shared/ stands beside the clone where it stands beside this checkout
if [ -d ../shared ] && [ ! -e "$root/shared" ]; then cp -r ../shared "$root/shared"; fi

inside() {
  chroot "$root" /usr/bin/env -i HOME=/root TERM=dumb LANG=C.UTF-8 CI="${CI:-}" \
    PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    bash -c "cd /taiji && $1"
}

if [ -n "$command" ]; then
  inside "$command"
  exit
fi
time inside 'make test'
# `make run` serves until Ctrl-C: wait for its closing line, run what it printed, then interrupt it.
inside 'python3 scripts/try_run.py'
