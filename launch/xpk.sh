#!/usr/bin/env bash
# Runs one training run on TPU slices through xpk (Accelerated Processing Kit).
#
#   launch/xpk.sh --name=NAME --cluster=CLUSTER --project=PROJECT --zone=ZONE --tpu_type=v5litepod-16
#       --image=IMAGE --storage=STORAGE --mount=DIR [--slices=1] [--max_restarts=10]
#       [--priority=medium] [--dry-run] -- --config=FILE …
#
# STORAGE is one that `xpk storage` attached to the cluster at DIR; the run lies in DIR/runs/NAME.
# What follows `--` goes to vimoe_jax.main. --dry-run prints the xpk command and runs nothing.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

name='' cluster='' project='' zone='' tpu_type='' image='' storage='' mount=''
slices=1 max_restarts=10 priority=medium dry_run=false
while (($#)); do
  case $1 in
    --name=* | --cluster=* | --project=* | --zone=* | --tpu_type=* | --image=* | --storage=* | \
      --mount=* | --slices=* | --max_restarts=* | --priority=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --dry-run) dry_run=true ;;
    -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "$1: no such option; --help lists them" ;;
  esac
  shift
done
for option in name cluster project zone tpu_type image storage mount; do
  [[ -n ${!option} ]] || fail "--$option: needed; --help says what it is"
done
for option in slices max_restarts; do
  [[ ${!option} =~ ^[0-9]+$ ]] || fail "--$option: must be a number, not '${!option}'"
done
(($#)) || fail 'which run? (for example … -- --config=configs/moe_small.py)'

training=(
  python -m vimoe_jax.main "$@" "--workdir=$mount/runs/$name" --stopped_code=75
)
# By itself xpk restarts after codes 42 and 127 to 255: not after ours (75: peers gone, or stopped)
# nor after an error (1). Code 2 is a mistake in the configuration, and ends the workload.
command=(
  xpk workload create
  "--workload=$name"
  "--cluster=$cluster"
  "--project=$project"
  "--zone=$zone"
  "--tpu-type=$tpu_type"
  "--num-slices=$slices"
  "--docker-image=$image"
  "--storage=$storage"
  "--priority=$priority"
  "--max-restarts=$max_restarts"
  "--restart-on-exit-codes=1,75"
  "--command=$(printf '%q ' "${training[@]}")"
)
if $dry_run; then
  printf '%q ' "${command[@]}"
  printf '\n'
else
  exec "${command[@]}"
fi
