#!/usr/bin/env bash
# One run with XPK (github.com/AI-Hypercomputer/xpk) on a GKE cluster that it has made.
# usage: [DRY_RUN=1] CLUSTER=.. IMAGE=.. TPU_TYPE=v5litepod-16 xpk.sh RUN -- COMMAND ...
# shellcheck source-path=SCRIPTDIR/.. source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
check_settings
check_command "$@"
TPU_TYPE="${TPU_TYPE:-$ACCELERATOR}"
TPU_TYPE="$(accelerator_type "$TPU_TYPE")"
matches CLUSTER '[a-z][-a-z0-9]{0,38}[a-z0-9]' "the name of a cluster"
matches IMAGE '[-a-zA-Z0-9._/:@]+' "an image that has reslab"
matches TPU_TYPE 'v[0-9][a-z0-9]*-[1-9][0-9]*' "a type such as v5litepod-16"
# A restart goes on from the last checkpoint. Saved and stopped (42), internal (70) and
# ended by a signal (128 and its number) are worth one; 2 and 75 are the end of a run.
run xpk workload create --cluster="$CLUSTER" --workload="$1" "${place[@]}" \
  --tpu-type="$TPU_TYPE" --num-slices="$SLICES" --docker-image="$IMAGE" \
  --max-restarts=10 --restart-on-exit-codes=42,70,134,137,139,143 --command="$(quoted "${@:3}")"
