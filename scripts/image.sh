#!/usr/bin/env bash
# Images by buildah, as root, where there is no engine. Images and base are kept in the cache folder.
#   scripts/image.sh build [TAG]      `make image`: builds FILE (docker/Dockerfile); prints the image's id, size and what it adds to its base
#   scripts/image.sh root IMAGE DIR   the image's files in DIR, its configuration in DIR.json
#   scripts/image.sh install DIR FOLDER   the base's files in DIR, after FOLDER/install.sh ran there with FOLDER as its /archive
#   scripts/image.sh check            `make image-check`: builds it out of the tree's programs and tries it (scripts/image_check.py)
# BASE: an image that buildah can reach; else a Debian that debootstrap makes once. SOURCE: tree (the programs in BIN, target/release) or
# compile (in BUILD_BASE; else in the base with this machine's Rust). Ends with 69 and the reason where this machine cannot do it.
set -euo pipefail
cd "$(dirname "$0")/.."
images=${XDG_CACHE_HOME:-$HOME/.cache}/taiji/images
file=${FILE:-docker/Dockerfile}
source=${SOURCE:-tree}

cannot() { echo "image: $*" >&2; exit 69; }
[ "$(id -u)" = 0 ] || cannot "needs root"
for tool in buildah debootstrap; do command -v "$tool" >/dev/null || cannot "$tool is missing (make setup-tests)"; done
unshare --mount true 2>/dev/null || cannot "mounts are not allowed here"

b() { buildah --root "$images/storage" --runroot "$images/run" --storage-driver vfs "$@"; }
bytes() { find "$1" -xdev -type f -printf '%D:%i %s\n' | sort -u | awk '{ sum += $2 } END { print sum + 0 }'; }
with_files() { # with_files IMAGE COMMAND…: the command with the folder of the image's files behind it
  local container code=0
  container=$(b from "$1")
  shift
  "$@" "$(b mount "$container")" || code=$?
  b rm "$container" >/dev/null
  return "$code"
}

# A Debian of this machine's release without what nothing needs at run time; made once.
debian() {
  local suite mirror container files
  suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
  name=localhost/taiji-base:$suite
  ! b inspect --type image "$name" >/dev/null 2>&1 || return 0
  echo "image: making the base (debootstrap $suite)" >&2
  mirror=$(grep -rhoE 'https?://[^ ]+/debian/?$' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | head -1 || true)
  container=$(b from scratch)
  files=$(b mount "$container")
  debootstrap --variant=minbase "$suite" "$files" "$mirror" >"$images/debootstrap.log" 2>&1 || {
    tail -n 3 "$images/debootstrap.log" >&2
    b rm "$container" >/dev/null
    cannot "debootstrap could not make the base, see $images/debootstrap.log"
  }
  rm -rf "$files"/var/cache/apt/* "$files"/var/lib/apt/lists/* "$files"/var/log/* "$files"/usr/share/{locale,man,info}/*
  find "$files/usr/share/doc" ! -name copyright ! -type d -delete
  : >"$files/etc/resolv.conf"
  : >"$files/etc/hosts"
  echo localhost >"$files/etc/hostname"
  b config --cmd /bin/bash "$container"
  b commit --quiet --rm "$container" "$name" >/dev/null
}

# The base with this machine's Rust, for SOURCE=compile.
with_rust() {
  local container files
  container=$(b from "$base")
  files=$(b mount "$container")
  mkdir -p "$files/opt"
  cp -r "$(rustc --print sysroot)" "$files/opt/rust"
  b config --env PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  b commit --quiet --rm "$container" localhost/taiji-build-base >/dev/null
  build_base=localhost/taiji-build-base
}

build() { # build TAG…: sets id
  base=${BASE:-}
  [ -n "$base" ] || { debian && base=$name; }
  build_base=${BUILD_BASE:-}
  if [ "$source" = tree ]; then
    bash scripts/image_programs.sh .cache/image/programs "${BIN:-target/release}"
    build_base=$base
  elif [ -z "$build_base" ]; then
    with_rust
  fi
  # How this machine reaches package registries.
  local tags=() certificates=/etc/ssl/certs/ca-certificates.crt index=${TAIJI_INDEX_URL:-${PIP_INDEX_URL:-}}
  local reach=(${index:+--build-arg PIP_INDEX_URL="$index"})
  [ ! -f "$certificates" ] || reach+=(--volume "$(realpath "$certificates"):/run/certificates.crt:ro"
    --build-arg PIP_CERT=/run/certificates.crt --build-arg SSL_CERT_FILE=/run/certificates.crt)
  for tag in "$@"; do tags+=(--tag "$tag"); done
  b build --quiet --format docker --isolation chroot --layers=false --iidfile .cache/image/id --file "$file" "${tags[@]}" \
    --build-arg BASE="$base" --build-arg BUILD_BASE="$build_base" --build-arg SOURCE="$source" \
    "${reach[@]}" \
    --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)" \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || true)" . >.cache/image/build.log 2>&1 || {
    tail -n 20 .cache/image/build.log >&2
    echo "image: $file could not be built, see .cache/image/build.log" >&2
    exit 1
  }
  id=$(sed 's/^sha256://' .cache/image/id)
}

root() { # root IMAGE DIR
  # Links to the container's own copy, where they can be.
  with_files "$1" bash -c 'rm -rf "$1" && mkdir -p "$(dirname "$1")" && { cp -al "$2" "$1" 2>/dev/null || { rm -rf "$1" && cp -a "$2" "$1"; }; }' _ "$2"
  b inspect --type image "$1" | python3 -c 'import json, sys; json.dump(json.load(sys.stdin)["Docker"]["config"], sys.stdout, indent=1)' >"$2.json"
}

mkdir -p "$images" .cache/image
# One at a time; then what stages left behind is nobody's.
exec 9>"$images/lock"
flock 9
trap 'b rm --all >/dev/null; b rmi --prune >/dev/null' EXIT
case ${1:-} in
build)
  build "${2:-localhost/taiji:latest}"
  base_bytes=$(with_files "$base" bytes)
  all=$(with_files "$id" bytes)
  echo "image: ${2:-localhost/taiji:latest} $id: base $base $((base_bytes / 1000000)) MB, ours $(((all - base_bytes) / 1000000)) MB"
  ;;
root) root "$2" "$3" ;;
install)
  debian
  container=$(b from "$name")
  b run --isolation chroot --volume "$(realpath "$3"):/archive:ro" --workingdir /archive "$container" -- bash -eu install.sh >&2
  rm -rf "$2"
  mkdir -p "$(dirname "$2")"
  cp -a "$(b mount "$container")" "$2"
  ;;
check)
  source=tree
  build # without a tag: pruned at the end
  root "$id" .cache/image/root
  base_bytes=$(with_files "$base" bytes)
  python3 scripts/image_check.py .cache/image/root "$base" "$base_bytes" "$(bytes .cache/image/root)"
  PYTHONPATH=$(bash scripts/packages.sh docker/compose-check.txt) python3 scripts/compose_check.py .cache/image/root
  # The base with CUDA is an engine's to fetch: read to its end by the same builder, built up to where the base is needed.
  b build --quiet --isolation chroot --layers=false --file docker/Dockerfile.cuda --target tree --build-arg BASE="$base" --build-arg BUILD_BASE="$base" \
    --build-arg SOURCE=tree --iidfile .cache/image/cuda-id . >.cache/image/cuda.log 2>&1 || { tail -n 5 .cache/image/cuda.log >&2; exit 1; }
  echo "image: docker/Dockerfile.cuda parses; it is not built here"
  ;;
*) echo "usage: scripts/image.sh build [TAG] | root IMAGE DIR | install DIR FOLDER | check" >&2; exit 64 ;;
esac
