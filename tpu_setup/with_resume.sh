#!/usr/bin/env bash
# Runs on each worker: a command, with --resume added where its --run folder holds a run to go on
# with (a checkpoint, ASCL's cold start or CADA's generated completions).
set -euo pipefail

folder=
for ((i = 1; i <= $#; i++)); do
  case "${!i}" in
    --run) next=$((i + 1)) && folder=${!next:-} ;;
    --run=*) folder=${!i#--run=} ;;
  esac
done
if [[ -n "$folder" ]]; then
  # Only digits: a checkpoint that is still being written has a longer name.
  checkpoints=$(find "$folder/checkpoints" -maxdepth 1 -regex '.*/[0-9]+' 2>/dev/null || true)
  if [[ -n "$checkpoints" || -e "$folder/cold_start" || -e "$folder/generated.jsonl" ]]; then
    set -- "$@" --resume
  fi
fi
exec "$@"
