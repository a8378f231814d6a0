#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, from a machine where gcloud is logged
# in: copies this checkout, as committed, to all workers (the machines of the
# slice), makes the environment on each and runs the same command on all.
#
#   launch/tpu_pod.sh --config=configs/recipe.py --workdir=runs/mine
#   launch/tpu_pod.sh stop      saves and ends the run on all workers
#
# Edit the next four lines, or set them in the environment. Run it in tmux or
# the like: the run prints here, and ends when it cannot print.
#
# Stopped, or ended by a fault: the same command goes on. What still runs is
# stopped first, and saves. If the slice itself is gone, make one and do the same.
set -euo pipefail
TPU_NAME=${TPU_NAME:-dpjax}
ZONE=${ZONE:-us-central2-b}
SHARE=${SHARE:-/mnt/dpjax} # a folder on storage that all workers have mounted
PYTHON=${PYTHON:-python3.11} # on the workers, 3.11 or newer, with venv

# The part that runs on a worker. The process there is known by this file.
pid_file=run.pid
if [[ ${1:-} == on-worker ]]; then
  # shellcheck source-path=SCRIPTDIR
  source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
  if [[ $2 == stop ]]; then
    pid=$(cat "$pid_file" 2>/dev/null) || exit 0
    # The number may be another process's by now.
    runs() { grep -qs dpjax.main "/proc/$pid/cmdline"; }
    if runs; then
      kill -TERM "$pid" || true # it may end just now
    fi
    for ((i = 0; i < 120; i++)); do
      runs || exit 0
      sleep 1
    done
    kill -KILL "$pid" || true
    exit 0
  fi
  make_env tpu
  # So data/ and runs/, where everything goes by default, are common to all.
  for name in data runs; do
    mkdir -p "$SHARE/$name"
    ln -sfn "$SHARE/$name" "$name"
  done
  echo "$$" >"$pid_file"
  exec "$VENV/bin/python" -m dpjax.main --coordinator=auto "${@:3}"
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
on_all() { # on_all COMMAND: in the home folder of every worker
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all \
    --command="$1"
}
script=dpjax/launch/tpu_pod.sh
stop="if [ -f $script ]; then bash $script on-worker stop; fi"
if [[ ${1:-} == stop ]]; then
  on_all "$stop"
  exit
fi

git diff --quiet HEAD ||
  echo "Note: changes that are not committed are not copied" >&2
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
git archive --output="$folder/dpjax.tar.gz" HEAD
gcloud compute tpus tpu-vm scp "$folder/dpjax.tar.gz" "$TPU_NAME:" \
  --zone="$ZONE" --worker=all
# %q: the workers' shell reads each argument as this one was given it.
on_all "$stop && mkdir -p dpjax && tar -xzf dpjax.tar.gz -C dpjax && \
$(printf '%q ' env "SHARE=$SHARE" "PYTHON=$PYTHON" \
  bash "$script" on-worker train "$@")"
