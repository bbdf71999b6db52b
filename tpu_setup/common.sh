#!/usr/bin/env bash
# What the scripts share; sourced by each. DRY_RUN=1 prints the commands, quoted so
# that they can be pasted, and runs none.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
DRY_RUN="${DRY_RUN:-0}"

die() {
  printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2
  exit 2
}

note() { printf '%s\n' "$*" >&2; }

quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# The accelerator type of a slice, by the names that people have for it.
accelerator_type() {
  case "$1" in
    v5e-*) printf 'v5litepod-%s' "${1#v5e-}" ;;
    tpu7x*) die "ACCELERATOR: $1 is to be had on GKE; try: jobs/gke_jobset.yaml" ;;
    *) printf '%s' "$1" ;;
  esac
}

# Runs a command, or prints it.
run() {
  if [[ "$DRY_RUN" == 1 ]]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Runs a command for its output; a dry run shows it beside the output and has none.
ask() {
  if [[ "$DRY_RUN" == 1 ]]; then
    quoted "$@" >&2
    printf '\n' >&2
  else
    "$@"
  fi
}

# Reads KEY=VALUE lines as data; what the caller has set stays.
read_env() {
  local line key
  while IFS= read -r line || [[ -n "$line" ]]; do
    [[ "$line" =~ ^[[:space:]]*(#.*)?$ ]] && continue
    [[ "$line" =~ ^([A-Z_]+)=(.*)$ ]] || die "$1: expected KEY=VALUE; got $line"
    key="${BASH_REMATCH[1]}"
    [[ -v "$key" ]] || printf -v "$key" '%s' "${BASH_REMATCH[2]}"
  done <"$1"
}

matches() {
  local key="$1" pattern="$2" example="$3"
  [[ -n "${!key:-}" ]] || die "$key is not set; try: copy env.example to env"
  [[ "${!key}" =~ ^($pattern)$ ]] || die "$key: expected $example; got ${!key}"
}

check_settings() {
  local file="${RESLAB_TPU_ENV:-$here/env}"
  [[ -z "${RESLAB_TPU_ENV:-}" || -f "$file" ]] || die "no file $file"
  [[ ! -f "$file" ]] || read_env "$file"
  SPOT="${SPOT:-0}" SLICES="${SLICES:-1}" IAP="${IAP:-0}"
  EXTRAS="${EXTRAS:-tpu,hf}" KEYS="${KEYS:-}"
  matches NAME '[a-z][-a-z0-9]{0,38}[a-z0-9]' "lower case, digits and dashes"
  matches PROJECT '[a-z][-a-z0-9.:]{4,60}[a-z0-9]' "a project id"
  matches ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone such as us-west4-a"
  ACCELERATOR="$(accelerator_type "${ACCELERATOR:-}")" || exit 2
  matches ACCELERATOR 'v[0-9][a-z0-9]*-[1-9][0-9]*' "a type such as v5litepod-16"
  matches RUNTIME '[a-z0-9][-a-z0-9._]*' "a version such as v2-alpha-tpuv5-lite"
  matches BUCKET 'gs://[a-z0-9][-a-z0-9._]{1,61}[a-z0-9]' "gs://BUCKET, without a path"
  matches SPOT '[01]' "0 or 1"
  matches IAP '[01]' "0 or 1"
  matches SLICES '[1-9][0-9]{0,3}' "a number of slices"
  matches EXTRAS 'tpu(,[a-z]+)*' "extras of pyproject.toml, tpu first"
  check_keys
  place=(--project="$PROJECT" --zone="$ZONE")
  # shellcheck disable=SC2034 # by those that source this file
  bundle="$BUCKET/reslab/$NAME/code.tar.gz" keys="$BUCKET/reslab/$NAME/keys"
  [[ "$DRY_RUN" == 1 ]] || command -v gcloud >/dev/null ||
    die "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
}

# The file with keys of other services; what it holds is never printed.
check_keys() {
  local line number=0
  [[ -n "$KEYS" ]] || return 0
  [[ -f "$KEYS" ]] || die "KEYS: no file $KEYS"
  while IFS= read -r line || [[ -n "$line" ]]; do
    number=$((number + 1))
    [[ "$line" =~ ^(#.*|[A-Z][A-Z0-9_]*=.*)?$ ]] ||
      die "$KEYS: expected KEY=VALUE in line $number"
  done <"$KEYS"
}

check_run() {
  [[ "$1" =~ ^[a-z0-9][-a-z0-9_]{0,60}$ ]] ||
    die "name of the run: expected lower case, digits, dashes; got ${1:-nothing}"
}

# The arguments RUN -- COMMAND [ARGUMENT ...].
check_command() {
  check_run "${1:-}"
  if [[ "${2:-}" != -- || $# -lt 3 ]]; then
    die "expected RUN -- COMMAND [ARGUMENT ...]; got $*"
  fi
}

nodes() {
  local i
  if ((SLICES == 1)); then
    printf '%s\n' "$NAME"
  else
    for ((i = 0; i < SLICES; i++)); do printf '%s-%d\n' "$NAME" "$i"; done
  fi
}

# on WORKER NODE COMMAND...: gcloud's command line of a command on workers of a node.
on() {
  ssh_command=(gcloud compute tpus tpu-vm ssh "$2" "${place[@]}" --worker="$1")
  [[ "$IAP" == 0 ]] || ssh_command+=(--tunnel-through-iap)
  ssh_command+=(--command="$(quoted "${@:3}")")
}

# Runs a command on every worker of every slice.
everywhere() {
  local node
  while IFS= read -r node; do
    on all "$node" "$@"
    # Or else ssh would take the rest of the list for its input.
    run "${ssh_command[@]}" </dev/null
  done < <(nodes)
}

# What the service on a worker says of a run: absent, running, or exited CODE.
state_of() {
  local first
  first="$(nodes | head -n 1)"
  on 0 "$first" sudo /opt/reslab/code/tpu_setup/worker.sh state "$1"
  ask "${ssh_command[@]}" </dev/null
}

# ACTIVE, WAITING_FOR_RESOURCES, ...; NOT_FOUND where there is none.
request_state() {
  local errors answer
  errors="$(mktemp)"
  if answer="$(ask gcloud compute tpus queued-resources describe "$NAME" \
    "${place[@]}" --format='value(state.state)' 2> >(tee "$errors" >&2))"; then
    printf '%s\n' "$answer"
  elif grep -q 'NOT_FOUND' "$errors"; then
    printf 'NOT_FOUND\n'
  else
    rm -f "$errors"
    return 1 # No network, no rights: that is no reason to create or delete.
  fi
  rm -f "$errors"
}
