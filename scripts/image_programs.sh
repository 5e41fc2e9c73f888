#!/usr/bin/env bash
# Lays what an image has of ours into FOLDER: both programs without their symbols, and ONNX Runtime, which `taiji` looks for beside itself.
#   scripts/image_programs.sh FOLDER [BIN]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: scripts/image_programs.sh FOLDER [BIN]}
bin=${2:-target/release}
library=$(ls "${XDG_CACHE_HOME:-$HOME/.cache}"/taiji/onnxruntime-*/libonnxruntime.so.* | sort -V | tail -n 1) || {
  echo "image: no ONNX Runtime in the cache folder: $bin/taiji runtime fetch" >&2
  exit 69
}
rm -rf "$folder"
mkdir -p "$folder"
for program in taiji taiji-trainer; do strip -o "$folder/$program" "$bin/$program"; done
cp "$library" "$folder/"
chmod 755 "$folder"/*
