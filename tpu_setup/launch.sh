#!/usr/bin/env bash
# Starts a command on every worker, as a service that outlives this terminal.
# usage: [DRY_RUN=1] launch.sh RUN -- COMMAND [ARGUMENT ...]
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
check_settings
check_command "$@"
everywhere sudo RESLAB_FRESH=1 /opt/reslab/code/tpu_setup/worker.sh start "$1" \
  "$(quoted "${@:3}")"
note "next: tpu_setup/logs.sh $1"
