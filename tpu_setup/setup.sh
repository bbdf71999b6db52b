#!/usr/bin/env bash
# Installs the synced code on every worker; again after every sync.
# usage: [DRY_RUN=1] setup.sh
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($# == 0)) || die "takes no arguments"
check_settings

# The startup script does the same; here with the bundle given, and no run.
everywhere sudo bash -c "$(<"$here/startup.sh")" startup.sh "$bundle" "$EXTRAS"
