#!/usr/bin/env bash
# Keeps a run going on spot capacity: when the TPU is taken away it asks for another, prepares it and
# starts the same command again, until that ends by itself; when a worker is lost it starts all of
# them again, RESTARTS times. The run folder has to be in the bucket, ../bucket/….
#   NAME=align ZONE=us-west4-a ACCELERATOR=v5litepod-16 SPOT=1 BUCKET=my-runs tpu_setup/keep.sh \
#     python experiments/alphaalign.py qwen2.5-7b --processes auto --run ../bucket/first
source "$(dirname "$0")/settings.sh"
need ACCELERATOR v5litepod-16
need BUCKET my-runs
(($#)) || fail "no command; give one such as python experiments/alphaalign.py qwen2.5-7b --processes auto"

[[ " $*" == *" --run"[\ =]"../bucket/"* ]] ||
  fail "the run folder has to outlive the TPU; add --run ../bucket/FOLDER to the command"

if [[ "$DRY_RUN" == 1 ]]; then
  "$HERE/delete.sh" && "$HERE/create.sh" && "$HERE/prepare.sh" && "$HERE/launch.sh" "$@"
  exit
fi
prepare_and_launch() {
  "$HERE/prepare.sh" && "$HERE/launch.sh" "$@" && return
  echo "$(date +%H:%M:%S) that did not work; trying again in $POLL seconds"
}

# What worker 0 says of the run: its exit code, running, or gone; nothing if it can't be reached.
# shellcheck disable=SC2016  # the worker expands
ASK='cat run.exit 2>/dev/null || { kill -0 -- "-$(cat run.pid)" && echo running || echo gone; } 2>/dev/null'

# Lines of the workers that have ended, with their exit codes.
# shellcheck disable=SC2016
CODES='echo "code $(cat run.exit 2>/dev/null)"'
restarts=$RESTARTS

while true; do
  now=$(state)
  case "$now" in
    ACTIVE)
      said=$(gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 --command="$ASK" \
        2>/dev/null || true)
      case "$said" in
        running) ;;
        '') echo "$(date +%H:%M:%S) the first worker can't be reached; trying again in $POLL seconds" ;;
        gone | 75 | 134 | 137) # 75: a script's own code for it, 134: JAX's, 137: killed
          codes=$(on_workers all "$CODES" 2>/dev/null || true)
          if [[ $codes =~ code\ ([12])($|[^0-9]) ]]; then
            echo "$(date +%H:%M:%S) a worker has ended with exit code ${BASH_REMATCH[1]}; see its" \
              "run.log. tpu_setup/delete.sh frees the TPU"
            exit "${BASH_REMATCH[1]}"
          fi
          ((restarts-- > 0)) || fail "a worker was lost once more; see run.log on all of them"
          echo "$(date +%H:%M:%S) a worker was lost ($said): all of them start again"
          # shellcheck disable=SC2016  # the workers expand
          on_workers all 'kill -KILL -- "-$(cat run.pid)" 2>/dev/null; true' || true
          prepare_and_launch "$@"
          ;;
        *[!0-9]*) fail "the first worker says '$said', which is no exit code" ;;
        *)
          echo "$(date +%H:%M:%S) the run has ended with exit code $said; tpu_setup/delete.sh" \
            "frees the TPU"
          exit "$said"
          ;;
      esac
      ;;
    FAILED | SUSPENDED | NONE)
      echo "$(date +%H:%M:%S) $NAME is $now: another one"
      [[ "$now" == NONE ]] || "$HERE/delete.sh"
      # Where it does not come the next turn sees its state and begins again.
      "$HERE/create.sh" && prepare_and_launch "$@" || true
      ;;
  esac
  sleep "$POLL"
done
