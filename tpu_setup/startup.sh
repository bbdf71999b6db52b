#!/usr/bin/env bash
# Runs as root on every worker at every boot, and by setup.sh: fetches the code,
# installs it and, where create.sh was given a run, starts that unless it has ended.
# usage: startup.sh [BUNDLE EXTRAS]
set -euo pipefail

metadata() {
  curl -fsS -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" ||
    true
}

root="${RESLAB_ROOT:-/opt/reslab}"
bundle="${1:-$(metadata reslab-bundle)}"
[[ -n "$bundle" ]] || exit 0
extras="${2:-$(metadata reslab-extras)}"
bucket="${bundle#gs://}"
# Of before a reboot: only a run that ended by itself has ended.
for ended in "$root"/runs/*.exit; do
  [[ ! -f "$ended" || "$(<"$ended")" =~ ^(0|2|75)$ ]] || rm -f "$ended"
done
mkdir -p "$root"
rm -rf "$root/code.new"
mkdir "$root/code.new"
gcloud storage cat "$bundle" | tar -xzf - -C "$root/code.new"
rm -rf "$root/code"
mv "$root/code.new" "$root/code"
# Keys of other services, for root alone; systemd gives them to the run.
rm -f "$root/keys"
(umask 077 && gcloud storage cat "${bundle%/*}/keys" >"$root/keys" 2>/dev/null) ||
  rm -f "$root/keys"
"$root/code/tpu_setup/worker.sh" install "gs://${bucket%%/*}" "${extras:-tpu,hf}"

[[ $# == 0 ]] || exit 0
run="$(metadata reslab-run)"
[[ -n "$run" ]] || exit 0
"$root/code/tpu_setup/worker.sh" start "$run" "$(metadata reslab-command)"
