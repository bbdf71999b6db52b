#!/usr/bin/env bash
# Says how the request, the nodes and, where one is named, the run are.
# usage: [DRY_RUN=1] status.sh [RUN]
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
[[ $# == 0 ]] || check_run "$1"
state="$(request_state)"
printf 'request %s  %s\n' "$NAME" "${state:-unknown}"
run gcloud compute tpus tpu-vm list "${place[@]}" --filter="name~^$NAME(-[0-9]+)?\$" \
  --format='table(name,state,health,acceleratorType)'
if (($# == 1)) && [[ "$state" == ACTIVE || "$DRY_RUN" == 1 ]]; then
  everywhere sudo /opt/reslab/code/tpu_setup/worker.sh state "$1"
fi
