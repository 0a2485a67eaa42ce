#!/usr/bin/env bash
# Runs on each worker, in its home: Python 3.12, the package with its pins, and the bucket.
#   bash jaxalign/tpu_setup/worker_prepare.sh [BUCKET]
set -euo pipefail
bucket=${1:-}

# The images' own Python is too old.
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --clear --python 3.12 venv
python3 -m uv pip install --quiet --python venv/bin/python \
  --constraint jaxalign/constraints.txt --editable './jaxalign[tpu]'

if [[ -n "$bucket" ]]; then
  command -v gcsfuse >/dev/null || {
    echo "worker_prepare: gcsfuse is not on this image; install it, or leave BUCKET out" >&2
    exit 2
  }
  mkdir -p bucket
  mountpoint -q bucket || gcsfuse --implicit-dirs "$bucket" bucket
fi
echo "$(hostname): ready"
