#!/usr/bin/env bash
# The same on Google Kubernetes Engine, with xpk (pip install xpk): a cluster, and runs on it.
#   CLUSTER=align ZONE=us-west4-a ACCELERATOR=v5litepod-16 SPOT=1 NAME=pool tpu_setup/xpk.sh create
#   CLUSTER=align ZONE=us-west4-a ACCELERATOR=v5litepod-16 NAME=first tpu_setup/xpk.sh run \
#     python experiments/alphaalign.py qwen2.5-7b --processes auto --run /storage/first
#   CLUSTER=align ZONE=us-west4-a NAME=first tpu_setup/xpk.sh delete      # the run first
#   CLUSTER=align ZONE=us-west4-a NAME=pool tpu_setup/xpk.sh delete-cluster
source "$(dirname "$0")/settings.sh"
need CLUSTER align

on=(--cluster="$CLUSTER" "${PLACE[@]}")
what=${1:-}
shift || true
case "$what" in
  create)
    need ACCELERATOR v5litepod-16
    spot=--on-demand
    [[ "$SPOT" != 1 ]] || spot=--spot
    run xpk cluster create "${on[@]}" --tpu-type="$ACCELERATOR" --num-slices=1 "$spot"
    ;;
  run)
    need ACCELERATOR v5litepod-16
    (($#)) || fail "no command; give one such as python experiments/alphaalign.py qwen2.5-7b --processes auto"
    run xpk workload create "${on[@]}" --workload="$NAME" --tpu-type="$ACCELERATOR" \
      --num-slices=1 --base-docker-image=python:3.12 --script-dir="$HERE/.." \
      --max-restarts="$RESTARTS" --restart-on-exit-codes=75 \
      --command="pip install --quiet --constraint constraints.txt '.[tpu]' && bash tpu_setup/with_resume.sh $(quoted "$@")"
    ;;
  delete) run xpk workload delete "${on[@]}" --workload="$NAME" ;;
  delete-cluster) run xpk cluster delete "${on[@]}" ;;
  *) fail "first word '$what'; use create, run, delete or delete-cluster" ;;
esac
