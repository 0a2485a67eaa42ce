#!/usr/bin/env bash
# Starts a command on all workers, in ~/jaxalign; it goes on when you log out. Its output is
# ~/run.log on each.
#   NAME=align ZONE=us-west4-a tpu_setup/launch.sh \
#     python experiments/alphaalign.py qwen2.5-7b --processes auto --run ../bucket/first
# Where the run folder holds a run --resume is added, so the same line goes on with it.
source "$(dirname "$0")/settings.sh"
(($#)) || fail "no command; give one such as python experiments/alphaalign.py qwen2.5-7b --processes auto"

on_workers all "bash jaxalign/tpu_setup/worker_launch.sh $(quoted "$@")"
