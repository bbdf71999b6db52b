#!/usr/bin/env bash
# Brings a run to its end: asks for the slice and, when it is taken away, again. It
# runs outside of the slice, on any machine that stays up.
#
# usage: [DRY_RUN=1] [POLL=60] [ATTEMPTS=3] supervise.sh RUN -- COMMAND [ARGUMENT ...]
#
# The run's directory is /mnt/reslab/runs/RUN: its checkpoints tell whether slices get
# anywhere. Exit codes: that of the run when it has ended, or was stopped (42); 70 after
# ATTEMPTS slices in a row that left no new checkpoint. The slice is deleted at the end.
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
check_command "$@"
POLL="${POLL:-60}" ATTEMPTS="${ATTEMPTS:-3}"
matches POLL '0|[1-9][0-9]{0,5}' "seconds"
matches ATTEMPTS '[1-9][0-9]{0,5}' "a number of slices"
name="$1"

# What the run has come to: its newest checkpoint, and the finished runs of a sweep.
progress() {
  ask gcloud storage ls "$BUCKET/runs/$name/checkpoints/" \
    "$BUCKET/runs/$name/*/result.json" 2>/dev/null |
    sed -n -e 's|.*/checkpoints/\([0-9]*\)/$|\1|p' -e 's|.*/result.json|finished|p' |
    sort -n | uniq -c | tail -n 2
}

finish() {
  note "run $name: exit code $1"
  run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
  exit "$1"
}

attempts=0 before="" last="" wait="$POLL"
while true; do
  state="$(request_state)" || state=UNKNOWN
  case "${state:-NOT_FOUND}" in
    NOT_FOUND)
      before=""
      found="$(progress)" || true
      if [[ "$found" != "$last" ]]; then attempts=0 last="$found" wait="$POLL"; fi
      if ((attempts == ATTEMPTS)); then
        note "run $name: $attempts slices in a row without a new checkpoint"
        exit 70
      fi
      attempts=$((attempts + 1))
      note "slice $attempts since the last new checkpoint"
      # One that cannot be asked for (quota, network) counts as one that was lost.
      "$here/create.sh" "$@" || note "create failed"
      ;;
    FAILED | SUSPENDED)
      run gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" \
        --force --quiet || note "delete failed"
      # A second loss in a row waits longer: capacity is not there.
      ((attempts < 2)) || wait=$((wait * 2))
      ;;
    ACTIVE)
      # A worker that does not answer yet, or any more, is asked again.
      answer="$(state_of "$name")" || answer=""
      if [[ "$answer" =~ ^exited\ ([0-9]+)$ ]]; then
        code="${BASH_REMATCH[1]}"
        # A node that is being taken away also stops its run, and is gone by the
        # next time.
        if [[ "$code" =~ ^(0|2|75)$ || "$answer" == "$before" ]]; then
          finish "$code"
        fi
      fi
      before="$answer"
      ;;
    *) ;; # It waits for capacity, comes or goes.
  esac
  [[ "$DRY_RUN" == 0 ]] || break
  sleep "$wait"
done
