#!/usr/bin/env bash
# Shows the state of a TPU, how the run stands on each worker, and follows the log of the first.
#   NAME=align ZONE=us-west4-a tpu_setup/watch.sh
source "$(dirname "$0")/settings.sh"

if [[ "$DRY_RUN" != 1 ]]; then
  now=$(state) # apart from echo, which would hide that it failed
  echo "$NAME: $now"
fi
# shellcheck disable=SC2016  # the workers expand
on_workers all 'echo "$(hostname): $(cat run.exit 2>/dev/null || echo running)"'
on_workers 0 'tail -n 20 -F run.log'
