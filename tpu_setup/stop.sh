#!/usr/bin/env bash
# Asks a run to save and stop, on every worker at once; the machines stay, and cost.
# usage: [DRY_RUN=1] stop.sh RUN
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
check_run "${1:-}"
# Without waiting: the processes save together, of all slices.
everywhere sudo systemctl stop --no-block "reslab@$1.service"
note "next: tpu_setup/status.sh $1, then tpu_setup/delete.sh"
