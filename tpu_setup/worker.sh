#!/usr/bin/env bash
# The worker's side; as root, on a worker. The other scripts call it through ssh.
# usage: worker.sh install BUCKET EXTRAS | mount | start RUN LINE | stop RUN | state RUN
set -euo pipefail

root="${RESLAB_ROOT:-/opt/reslab}"
units="${RESLAB_UNITS:-/etc/systemd/system}"
mount="${RESLAB_MOUNT:-/mnt/reslab}"

retry() {
  local attempt
  for attempt in 1 2 3 4 5; do
    if "$@"; then return 0; fi
    sleep $((${RESLAB_RETRY_SECONDS:-5} * attempt)) # Another process has apt's lock.
  done
  return 1
}

install_all() {
  mkdir -p "$root/runs"
  printf '%s\n' "${1#gs://}" >"$root/bucket"
  # Upgrades behind our back hold apt's lock and may restart the machine.
  systemctl disable --now unattended-upgrades || true
  if ! command -v gcsfuse >/dev/null; then
    local release
    release="gcsfuse-$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")"
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg \
      -o /usr/share/keyrings/cloud.google.asc
    printf 'deb [signed-by=%s] https://packages.cloud.google.com/apt %s main\n' \
      /usr/share/keyrings/cloud.google.asc "$release" \
      >/etc/apt/sources.list.d/gcsfuse.list
    retry apt-get update -qq
    retry apt-get install -qq -y gcsfuse
  fi
  # Images come with Python 3.10; uv brings the one that reslab needs.
  retry python3 -m pip install --quiet --upgrade uv
  [[ -x "$root/venv/bin/python" ]] || python3 -m uv venv --python 3.12 "$root/venv"
  retry python3 -m uv pip install --quiet --python "$root/venv/bin/python" \
    -e "$root/code[$2]"
  # A read from the bucket that has stalled for a minute is tried again.
  cat >"$root/environment" <<END
PATH=$root/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
JAX_COMPILATION_CACHE_DIR=$root/jax_cache
TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS=60
TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES=256
END
  cp "$root/code/tpu_setup/reslab@.service" "$units/"
  systemctl daemon-reload
}

mount_bucket() {
  mkdir -p "$mount"
  mountpoint -q "$mount" || gcsfuse --implicit-dirs "$(<"$root/bucket")" "$mount"
}

start() {
  local run="$1" line="$2" script="$root/runs/$1.sh"
  # A run that has ended, well or by a mistake, is not begun again at the next boot.
  if [[ -f "$root/runs/$run.exit" && "$(<"$root/runs/$run.exit")" =~ ^(0|2|75)$ &&
    "${RESLAB_FRESH:-0}" == 0 ]]; then
    return 0
  fi
  rm -f "$root/runs/$run.exit"
  # The line comes quoted for a shell. SIGTERM goes to the command as well; this
  # shell stays to note how it ended.
  cat >"$script.new" <<END
#!/usr/bin/env bash
trap : TERM
cd $(printf %q "$root/code") || exit 2
$line
code=\$?
printf '%s\n' "\$code" >$(printf %q "$root/runs/$run.exit")
exit "\$code"
END
  mv "$script.new" "$script"
  systemctl restart "reslab@$run.service"
}

state() {
  if systemctl is-active --quiet "reslab@$1.service" ||
    [[ "$(systemctl is-active "reslab@$1.service")" == activating ]]; then
    printf 'running\n'
  elif [[ -f "$root/runs/$1.exit" ]]; then
    printf 'exited %s\n' "$(<"$root/runs/$1.exit")"
  else
    printf 'absent\n'
  fi
}

verb="${1:-}"
case "$verb" in
  install) install_all "$2" "${3:-tpu,hf}" ;;
  mount) mount_bucket ;;
  start) start "$2" "$3" ;;
  stop) systemctl stop "reslab@$2.service" ;;
  state) state "$2" ;;
  *)
    printf 'worker: expected install, mount, start, stop or state; got %s\n' \
      "${verb:-nothing}" >&2
    exit 2
    ;;
esac
