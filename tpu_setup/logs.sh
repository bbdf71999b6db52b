#!/usr/bin/env bash
# Follows what a run prints on one worker (WORKER, default 0) of one slice (SLICE).
# usage: [DRY_RUN=1] [WORKER=0] [SLICE=0] [LINES=200] logs.sh RUN
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
check_run "${1:-}"
WORKER="${WORKER:-0}" SLICE="${SLICE:-0}" LINES="${LINES:-200}"
matches WORKER '0|[1-9][0-9]{0,5}' "a number"
matches SLICE '0|[1-9][0-9]{0,5}' "a number"
matches LINES '0|[1-9][0-9]{0,5}' "a number"
((SLICE < SLICES)) || die "SLICE: expected 0 to $((SLICES - 1)); got $SLICE"
node="$(nodes | sed -n "$((SLICE + 1))p")"
on "$WORKER" "$node" sudo journalctl --unit="reslab@$1" --lines="$LINES" \
  --output=cat --follow
run "${ssh_command[@]}"
