#!/usr/bin/env bash
# Runs on each worker: starts a command in ~/jaxalign, in the background.
# Leaves in ~ run.log, run.pid and, when it has ended, run.exit with its exit code.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -f ../run.pid ]] && kill -0 -- "-$(<../run.pid)" 2>/dev/null; then
  echo "worker_launch: process $(<../run.pid) is still running; tpu_setup/stop.sh ends it" >&2
  exit 2
fi
rm -f ../run.exit
PATH="$(cd .. && pwd)/venv/bin:$PATH"
# stop.sh signals the whole group; the trap lets this shell live until the command has saved.
# shellcheck disable=SC2016  # the inner shell expands
setsid nohup bash -c 'trap : TERM INT; bash tpu_setup/with_resume.sh "$@"; echo $? >../run.exit' \
  launch "$@" >../run.log 2>&1 </dev/null &
echo $! >../run.pid
echo "$(hostname): process $(<../run.pid): $*"
