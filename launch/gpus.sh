#!/usr/bin/env bash
# Trains on all NVIDIA GPUs of this machine: one process, pmap. The flags are
# those of dpjax.main; a batch size counts all GPUs together and must be a
# multiple of their number. Nothing needs editing.
#
#   launch/gpus.sh --config=configs/recipe.py --workdir=runs/mine
#   CUDA_VISIBLE_DEVICES=0,1 launch/gpus.sh ...    on these two only
#
# Stopped, or ended by a fault: the same command goes on.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

# JAX would train on the CPU, with no more than a warning.
nvidia-smi >/dev/null || die "nvidia-smi finds no NVIDIA GPU here"
make_env cuda
# exec: a SIGTERM for this script then reaches dpjax, which saves.
exec "$VENV/bin/python" -m dpjax.main "$@" --config.parallel.mode=pmap
