# shellcheck shell=bash
# Read by the scripts here: which TPU, and helpers. Set in the environment:
#   NAME         of the TPU, such as align
#   ZONE         such as us-west4-a
#   ACCELERATOR  such as v5litepod-16, v5p-16 or v6e-8
#   PROJECT      of Google Cloud; by default gcloud's own
#   SPOT         1 for spot capacity, which is cheaper and may be taken away; default 0
#   BUCKET       Cloud Storage bucket to mount on every worker as ~/bucket; default none
#   RESTARTS     how often a run whose worker was lost starts again; default 10
#   POLL         seconds between looks at a state; default 30
#   DRY_RUN      1 prints the commands and runs none

set -euo pipefail
# shellcheck disable=SC2034  # for the scripts that read this
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SPOT=${SPOT:-0}
# shellcheck disable=SC2034
RESTARTS=${RESTARTS:-10}
POLL=${POLL:-30}
DRY_RUN=${DRY_RUN:-0}

fail() {
  echo "tpu_setup: $*" >&2
  exit 2
}

# Ends with one line if a variable is not set: need NAME align
need() {
  [[ -n "${!1:-}" ]] || fail "$1 is not set; set it in the environment, such as $1=$2"
}

need NAME align
need ZONE us-west4-a

PLACE=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || PLACE+=(--project="$PROJECT")

# Shows a command as it could be typed, then runs it.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  [[ "$DRY_RUN" == 1 ]] || "$@"
}

# Runs a command line on workers: on_workers all 'tail run.log'
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker="$1" --command="$2"
}

# State of the request: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED and so on;
# NONE where there is no such request. Ends with gcloud's message where it cannot say.
state() {
  local said
  if said=$(gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" \
    --format='value(state.state)' 2>&1); then
    echo "$said"
  elif [[ "$said" == *NOT_FOUND* ]]; then
    echo NONE
  else
    fail "$said"
  fi
}

# One word that a shell reads back as these arguments.
quoted() {
  printf '%q ' "$@"
}
