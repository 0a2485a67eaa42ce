#!/usr/bin/env bash
# Ends the run on all workers: it saves a checkpoint first.
#   NAME=align ZONE=us-west4-a tpu_setup/stop.sh
source "$(dirname "$0")/settings.sh"

# The whole session of processes that launch.sh began.
# shellcheck disable=SC2016  # the workers expand
on_workers all 'kill -TERM -- "-$(cat run.pid)"'
