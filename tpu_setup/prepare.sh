#!/usr/bin/env bash
# Copies the committed code to all workers of a TPU and installs it there.
#   NAME=align ZONE=us-west4-a BUCKET=my-runs tpu_setup/prepare.sh
source "$(dirname "$0")/settings.sh"

archive=$(mktemp -d)/jaxalign.tar.gz
trap 'rm -rf "$(dirname "$archive")"' EXIT
run git -C "$HERE/.." archive --prefix=jaxalign/ --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$NAME:jaxalign.tar.gz" "${PLACE[@]}" --worker=all
on_workers all "rm -rf jaxalign && tar -xzf jaxalign.tar.gz && bash jaxalign/tpu_setup/worker_prepare.sh $(quoted "${BUCKET:-}")"
