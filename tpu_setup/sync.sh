#!/usr/bin/env bash
# Puts the code of this checkout, with changes that are not committed, in the bucket,
# and the file of keys, where there is one.
# usage: [DRY_RUN=1] sync.sh
# shellcheck source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($# == 0)) || die "takes no arguments"
check_settings

archive="$(mktemp -d)"
trap 'rm -rf "$archive"' EXIT
cd "$here/.."
# The workers have no git to ask: runs record this as their commit.
git describe --always --dirty --abbrev=40 --exclude='*' >"$archive/.commit"
# What git knows and what it does not ignore, as it is on disk now.
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' path; do [[ ! -e "$path" ]] || printf '%s\0' "$path"; done |
  tar --null --no-recursion -T - -C "$archive" -czf "$archive/code.tar.gz" .commit
run gcloud storage cp "$archive/code.tar.gz" "$bundle"
[[ -z "$KEYS" ]] || run gcloud storage cp "$KEYS" "$keys"
