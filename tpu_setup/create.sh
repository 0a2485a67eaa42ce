#!/usr/bin/env bash
# Asks for a TPU by a queued resource and waits until it is there.
#   NAME=align ZONE=us-west4-a ACCELERATOR=v5litepod-16 SPOT=1 tpu_setup/create.sh
source "$(dirname "$0")/settings.sh"
need ACCELERATOR v5litepod-16

case "$ACCELERATOR" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) fail "ACCELERATOR=$ACCELERATOR is not known here; use v5litepod-N, v5p-N or v6e-N" ;;
esac

spot=()
[[ "$SPOT" != 1 ]] || spot=(--spot)
run gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" --node-id="$NAME" \
  --accelerator-type="$ACCELERATOR" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
[[ "$DRY_RUN" != 1 ]] || exit 0

before=
while true; do
  now=$(state)
  [[ "$now" == "$before" ]] || echo "$(date +%H:%M:%S) $NAME: $now"
  before=$now
  case "$now" in
    ACTIVE) break ;;
    FAILED | SUSPENDING | SUSPENDED | NONE)
      fail "$NAME is $now and will not come; tpu_setup/delete.sh, then try again or elsewhere"
      ;;
  esac
  sleep "$POLL"
done
