#!/usr/bin/env bash
# Runs one training run on GPUs of a Slurm cluster, one process a GPU; or a sweep, as a job array.
#
#   launch/slurm.sh --name=NAME [--nodes=1] [--gpus=8] [--cpus=8] [--time=24:00:00]
#       [--partition=P] [--account=A] [--workdir_root=runs] [--python=.venv/bin/python]
#       [--sweep=FILE] [--dry-run] -- --config=FILE …
#
# What follows `--` goes to vimoe_jax.main. --gpus and --cpus count per node and per GPU. With
# --sweep=FILE (see launch/sweep.py) each line of FILE is one job of an array, with a workdir of its
# own. Two minutes before the time is over, and at preemption, all processes save and stop, and the
# job goes back into the queue; it does so too when a process died. --dry-run prints what sbatch
# would get. The folder that this is called from must be one that all nodes share.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

name='' nodes=1 gpus=8 cpus=8 time=24:00:00 partition='' account='' workdir_root=runs
python=.venv/bin/python sweep='' dry_run=false
while (($#)); do
  case $1 in
    --name=* | --nodes=* | --gpus=* | --cpus=* | --time=* | --partition=* | --account=* | \
      --workdir_root=* | --python=* | --sweep=*)
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
[[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_-]*$ ]] || fail "--name: letters, digits, - and _, not '$name'"
for option in nodes gpus cpus; do
  [[ ${!option} =~ ^[1-9][0-9]*$ ]] || fail "--$option: must be a number, not '${!option}'"
done
(($#)) || fail 'which run? (for example … -- --config=configs/moe_small.py)'

options=(
  "--job-name=$name"
  "--nodes=$nodes"
  "--ntasks-per-node=$gpus"
  "--gpus-per-node=$gpus"
  "--cpus-per-task=$cpus"
  "--time=$time"
  --signal=B:TERM@120 # to the script below, which hands it on
  --requeue
  --open-mode=append
)
[[ -z $partition ]] || options+=("--partition=$partition")
[[ -z $account ]] || options+=("--account=$account")

quote() { printf '%q ' "$@"; }

if [[ -n $sweep ]]; then
  names=() added=()
  listed=$("$python" "${0%/*}/sweep.py" "--file=$sweep" --list)
  while IFS=$'\t' read -r run words; do
    names+=("$run")
    added+=("$words")
  done <<<"$listed"
  options+=("--array=0-$((${#names[@]} - 1))" "--output=$workdir_root/%x-%A_%a.log")
else
  names=("$name") added=('')
  options+=("--output=$workdir_root/%x-%j.log")
fi

script() {
  printf '#!/usr/bin/env bash\nset -uo pipefail\n'
  printf 'names=( %s)\n' "$(quote "${names[@]}")"
  printf 'training=( %s)\n' "$(quote "$python" -m vimoe_jax.main "$@" --stopped_code=75)"
  # shellcheck disable=SC2016 # this goes into the script as it stands
  printf 'case ${SLURM_ARRAY_TASK_ID:-0} in\n'
  for i in "${!added[@]}"; do
    printf '  %d) training+=( %s ) ;;\n' "$i" "${added[i]}"
  done
  printf 'esac\n'
  # shellcheck disable=SC2016
  printf 'name=${names[${SLURM_ARRAY_TASK_ID:-0}]}\n'
  printf 'root=%s\n' "$(quote "$workdir_root")"
  cat <<'END'
# One step's failure ends the step: the others would only wait for the process that is gone.
srun --kill-on-bad-exit=1 "${training[@]}" "--workdir=$root/$name" &
step=$!
trap 'kill -TERM "$step"' TERM
while true; do
  wait "$step"
  code=$?
  kill -0 "$step" 2>/dev/null || break
done
case $code in
  0 | 2) exit "$code" ;; # done; or a mistake in the configuration, which no restart mends
esac
restarts=${SLURM_RESTART_COUNT:-0}
if ((restarts < 20)); then
  scontrol requeue "${SLURM_JOB_ID:-}" # of an array, each job has an id of its own
fi
exit "$code"
END
}

if $dry_run; then
  printf 'sbatch %s<<'"'EOF'"'\n' "$(quote "${options[@]}")"
  script "$@"
  printf 'EOF\n'
else
  mkdir -p "$workdir_root"
  script "$@" | sbatch "${options[@]}"
fi
