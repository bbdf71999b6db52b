#!/usr/bin/env bash
# Deletes the slice and its request, then shows what is left in the zone. Runs, in the
# bucket, stay.
# usage: [DRY_RUN=1] delete.sh [--yes]
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
[[ $# == 0 || ($# == 1 && "$1" == --yes) ]] || die "expected --yes or nothing; got $*"
if [[ $# == 0 && "$DRY_RUN" == 0 ]]; then
  read -r -p "Delete every node of $NAME in $ZONE? Type its name again: " again || true
  [[ "${again:-}" == "$NAME" ]] || die "not deleted"
fi
run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
note "left in $ZONE (what is ACTIVE or READY costs):"
run gcloud compute tpus queued-resources list "${place[@]}"
run gcloud compute tpus tpu-vm list "${place[@]}"
