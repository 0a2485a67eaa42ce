#!/usr/bin/env bash
# Gives a TPU back, with all that is on its disks. Costs end here.
#   NAME=align ZONE=us-west4-a tpu_setup/delete.sh
source "$(dirname "$0")/settings.sh"

run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
