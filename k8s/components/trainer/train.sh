#!/bin/sh
# One run of the trainer: the recipe with the number after the newest epoch there is, so that no folder that is served changes.
# A run that was broken off has published nothing: the next try takes the same number and goes on with the stages that are done.
#   train.sh RECIPE MODELS WORK
set -eu
recipe=$1 models=$2 work=$3
name=$(sed -n 's/^name *= *"\([^"]*\)".*/\1/p;/^\[/q' "$recipe")
[ -n "$name" ] || { echo "train: $recipe has no line: name = \"…\"" >&2; exit 64; }
newest=0
for folder in "$models/$name"/*/; do
  number=$(basename "$folder")
  case $number in *[!0-9]* | 0*) continue ;; esac
  [ "$number" -le "$newest" ] || newest=$number
done
mkdir -p "$work/data"
sed "1,/^\[/s/^epoch *=.*/epoch = $((newest + 1))/" "$recipe" >"$work/recipe.toml"
grep -q "^epoch = $((newest + 1))\$" "$work/recipe.toml" || { echo "train: $recipe has no line: epoch = …" >&2; exit 64; }
taiji-trainer fetch --recipe "$work/recipe.toml"
# In place of this shell, so that it gets the signal, keeps its checkpoint and ends.
exec taiji-trainer run --recipe "$work/recipe.toml" --data "$work/data" --work "$work/stages" --out "$models"
