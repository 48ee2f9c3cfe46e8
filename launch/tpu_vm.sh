#!/usr/bin/env bash
# Runs one training run on a Cloud TPU slice that a queued resource asks for.
#
#   launch/tpu_vm.sh ACTION --name=NAME --project=PROJECT --zone=ZONE [--dry-run] …
#
#   create   --type=v5litepod-16 --runtime=v2-alpha-tpuv5-lite [--spot]: asks for the slice
#   state    says whether it is there yet
#   setup    [--share=HOST:/PATH]: copies this checkout to all machines, installs it there, and
#            mounts an NFS share (Filestore) at /mnt/shared
#   run      -- --config=FILE …: starts, or resumes, the run in /mnt/shared/runs/NAME on all machines
#   logs     shows what the first machine says, until Ctrl-C, which does not stop the run
#   stop     SIGTERM to one process: all save and stop
#   delete   gives the slice back; what is on the machines is lost, /mnt/shared is not
#
# --dry-run prints the commands and runs nothing.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

case ${1:-} in
  create | state | setup | run | logs | stop | delete) action=$1 ;;
  -h | --help)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
  *) fail "which action? create, state, setup, run, logs, stop or delete, not '${1:-}'" ;;
esac
shift
name='' project='' zone='' type='' runtime='' share='' spot=false dry_run=false
while (($#)); do
  case $1 in
    --name=* | --project=* | --zone=* | --type=* | --runtime=* | --share=*)
      option=${1%%=*}
      printf -v "${option#--}" '%s' "${1#*=}"
      ;;
    --spot) spot=true ;;
    --dry-run) dry_run=true ;;
    --)
      shift
      break
      ;;
    *) fail "$1: no such option; --help lists them" ;;
  esac
  shift
done
[[ $name =~ ^[a-z][-a-z0-9]{0,38}$ ]] || fail "--name: a-z, 0-9 and -, not '$name'"
for option in project zone; do
  [[ -n ${!option} ]] || fail "--$option: needed; --help says what it is"
done
where=("--project=$project" "--zone=$zone")

do_it() {
  if $dry_run; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# on WHICH SCRIPT: runs a script on machines of the slice, "all" or one by its number.
on() {
  do_it gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

case $action in
  create)
    [[ -n $type && -n $runtime ]] || fail '--type and --runtime: needed (docs/launch.md lists them)'
    options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
    if $spot; then options+=(--spot); fi
    do_it gcloud compute tpus queued-resources create "$name" "${where[@]}" "${options[@]}"
    ;;
  state)
    do_it gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      '--format=value(state.state)'
    ;;
  setup)
    archive=${TMPDIR:-/tmp}/vimoe-$name.tar.gz
    do_it git archive --format=tar.gz "--output=$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$name:vimoe.tar.gz" "${where[@]}" --worker=all
    on all 'set -e
      mkdir -p vimoe && tar -xzf vimoe.tar.gz -C vimoe && cd vimoe
      sudo apt-get update && sudo apt-get install -y python3.11 python3.11-venv nfs-common
      python3.11 -m venv .venv
      .venv/bin/python -m pip install -r requirements.txt
      .venv/bin/python -m pip install "jax[tpu]==0.10.2"
      .venv/bin/python -m pip install --no-deps --editable .'
    if [[ -n $share ]]; then
      on all "set -e
        sudo mkdir -p /mnt/shared
        mountpoint -q /mnt/shared || sudo mount $(printf '%q' "$share") /mnt/shared
        sudo chmod 1777 /mnt/shared"
    fi
    ;;
  run)
    (($#)) || fail 'which run? (for example … -- --config=configs/moe_small.py)'
    training=$(printf '%q ' .venv/bin/python -m vimoe_jax.main "$@" \
      "--workdir=/mnt/shared/runs/$name" --stopped_code=75)
    # A process that failed is started again on its machine; all meet at the coordinator.
    loop="for i in 1 2 3 4 5 6 7 8 9 10; do $training; code=\$?;
      case \$code in 0|2) break;; esac; [ -e ../stop ] && break; sleep 10; done"
    on all "mountpoint -q /mnt/shared || { echo 'error: /mnt/shared is not mounted' >&2; exit 2; }
      rm -f stop; cd vimoe
      nohup bash -c $(printf '%q' "$loop") >>../vimoe.log 2>&1 </dev/null & "
    ;;
  logs)
    on 0 'tail -n 50 -F vimoe.log'
    ;;
  stop)
    on all 'touch stop'
    on 0 "pkill -TERM -o -f '^[^ ]*python[^ ]* -m vimoe_jax[.]main' || echo 'nothing runs'"
    ;;
  delete)
    do_it gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
esac
