#!/usr/bin/env bash
# One container by hand, where no engine is: the files of an image as an engine would run them. As root.
#   scripts/image_run.sh ROOT [-v SOURCE:TARGET[:ro]]… [-e NAME=VALUE]… [PROGRAM [ARGUMENT…]]
# ROOT: what `scripts/image.sh root` wrote. `/` is read-only, /tmp a tmpfs; user and environment are the image's, no capability is left and
# none can be gained; mounts and processes are its own, the network is this machine's. PROGRAM defaults to the image's.
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: scripts/image_run.sh ROOT [-v SOURCE:TARGET[:ro]]… [-e NAME=VALUE]… [PROGRAM [ARGUMENT…]]" >&2; exit 64; }
root=$(realpath "$1")
shift

if [ "${TAIJI_INSIDE:-}" != 1 ]; then
  # Process 1 of its own: a signal without a handler does nothing to it, as in a container.
  TAIJI_INSIDE=1 exec unshare --mount --pid --fork --kill-child "$0" "$root" "$@"
fi

mapfile -t environment < <(python3 -c 'import json, sys; print(*json.load(open(sys.argv[1]))["Env"], sep="\n")' "$root.json")
mapfile -t program < <(python3 -c 'import json, sys; image = json.load(open(sys.argv[1])); print(*image["Entrypoint"], *image["Cmd"], sep="\n")' "$root.json")
user=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["User"])' "$root.json")

mount --bind "$root" "$root"
mount -t tmpfs -o mode=1777,nosuid,nodev,size=64m tmpfs "$root/tmp"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o mode=755,nosuid,size=1m tmpfs "$root/dev"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
for file in resolv.conf hosts; do [ ! -f "$root/etc/$file" ] || mount --bind "/etc/$file" "$root/etc/$file"; done
while :; do
  case ${1:-} in
  -v)
    IFS=: read -r source target mode <<<"$2"
    # As an engine does it.
    [ -e "$root$target" ] || mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
    [ "$mode" != ro ] || mount -o remount,bind,ro "$root$target"
    ;;
  -e) environment+=("$2") ;;
  *) break ;;
  esac
  shift 2
done
mount -o remount,bind,ro "$root"
[ $# = 0 ] || program=("$@")
# Leaving root for the user drops all capabilities; without new privileges no file gives one back.
exec env --ignore-environment --chdir "$root" "${environment[@]}" setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" "${program[@]}"
