#!/usr/bin/env bash
# Asks for the slice. With a run and its command, every worker sets itself up and
# starts it at every boot, so that a slice that was taken away comes back training.
# usage: [DRY_RUN=1] create.sh [RUN -- COMMAND [ARGUMENT ...]]
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# From files, since commas and equals signs mean something in --metadata.
printf '%s' "$bundle" >"$scratch/bundle"
printf '%s' "$EXTRAS" >"$scratch/extras"
files="startup-script=$here/startup.sh,reslab-bundle=$scratch/bundle"
files+=",reslab-extras=$scratch/extras"
if (($# > 0)); then
  check_command "$@"
  printf '%s' "$1" >"$scratch/run"
  quoted "${@:3}" >"$scratch/command"
  files+=",reslab-run=$scratch/run,reslab-command=$scratch/command"
  [[ "$DRY_RUN" == 0 ]] || note "reslab-command: $(<"$scratch/command")"
fi
request=(gcloud compute tpus queued-resources create "$NAME" "${place[@]}"
  --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME"
  --metadata-from-file="$files")
if ((SLICES > 1)); then
  request+=(--node-count="$SLICES" --node-prefix="$NAME")
else
  request+=(--node-id="$NAME")
fi
[[ "$SPOT" == 0 ]] || request+=(--spot)
run "${request[@]}"
