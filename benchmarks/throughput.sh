#!/usr/bin/env bash
# Takes every figure that docs/throughput.md wants from one GPU.
#
#   benchmarks/throughput.sh            into runs/throughput
#   benchmarks/throughput.sh OUT        into another folder; what is there stays
#   benchmarks/throughput.sh --dry OUT  every command, tiny: minutes on a CPU, and
#                                 figures that mean nothing
#
# From the root of a checkout, with the environment activated
# (pip install -e '.[cuda,peer]'). Of several GPUs it takes the first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=
if [[ ${1:-} == --dry ]]; then
  dry=yes
  shift
fi
out=${1:-runs/throughput}
mkdir -p "$out"
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}

platform=$(python -c 'import jax; print(jax.default_backend())')
if [[ ! $dry && $platform == cpu ]]; then
  echo "error: JAX finds no accelerator here, and on a CPU this takes days;" \
    "--dry is for those" >&2
  exit 2
fi

count=20012 variant='' paper=:paper sizes=(16 256) few='(1024,)' every='(16,64,256,1024)'
benchmark=() steps=() trace=64
if [[ $dry ]]; then
  count=120 variant=:quick paper=:quick sizes=(16 32) few='(8,)' every='(8,16)'
  trace=4
  benchmark=(--config.benchmark.seconds=0.1 --config.benchmark.repeats=2)
  steps=(--image_size=96 --repeats=1 --steps=1 --stages=retrain
    --variants='base,space-to-depth stem')
fi
# One set for all, so that preparing it is in no figure.
data=(--config.data.phantom.count="$count" --config.data.path="$out/phantom-$count"
  --config.train.progress=False)

# part NAME COMMAND...: runs it once; its output is $out/NAME.txt.
part() {
  local file=$out/$1.txt
  if [[ -f $file ]]; then
    echo "$file is there"
    return
  fi
  echo "=== $1: ${*:2}"
  "${@:2}" 2>&1 | tee "$file.part"
  mv "$file.part" "$file"
}

part device python -c 'import jax; print(jax.devices(), jax.__version__)'
part prepare python -m dpjax.main prepare --config="configs/recipe.py$variant" \
  "${data[@]}"

# The paper's whole recipe in one process, from nothing: its last line is the
# wall time. No program that was compiled before may help.
if [[ ! -f $out/recipe.txt ]]; then
  rm -rf "$out/recipe"
fi
part recipe env JAX_ENABLE_COMPILATION_CACHE=false \
  python -m dpjax.main --config="configs/recipe.py$paper" "${data[@]}" \
  --workdir="$out/recipe"

# Input, step and end to end at the paper's batch size and at a large one, with
# every K; and one size more. Beside them what benchmark --target predicts of the
# same programs, where the figures of the device are known.
for size in "${sizes[@]}"; do
  own=(--config.pretrain.batch_size="$size" --config.retrain.batch_size="$size")
  part "benchmark-$size" python -m dpjax.main benchmark \
    --config="configs/retrain.py$variant" "${data[@]}" "${benchmark[@]}" \
    "${own[@]}" --config.benchmark.batch_sizes="$few" \
    --workdir="$out/benchmark-$size"
  # What the step is made of: each choice, and each of XLA's flags, apart.
  part "variants-$size" python benchmarks/step_variants.py --batch_size="$size" \
    "${steps[@]}"
done

# The same against PyTorch, in turns, at every size: the best one is among them.
if python -c 'import torch' 2>/dev/null; then
  part peer python -m dpjax.main benchmark --peer=torch \
    --config="configs/retrain.py$variant" "${data[@]}" "${benchmark[@]}" \
    --config.pretrain.batch_size="${sizes[0]}" \
    --config.retrain.batch_size="${sizes[0]}" \
    --config.benchmark.batch_sizes="$every" \
    --config.benchmark.parts="('pretrain','retrain','inference')" \
    --workdir="$out/peer"
else
  echo "no torch here: no figures beside it"
fi

# Where the time goes: a trace of some steps, for TensorBoard or Perfetto.
part trace python benchmarks/step_variants.py --batch_size="${sizes[-1]}" \
  "${steps[@]}" --variants=base --steps="$trace" --repeats=1 \
  --trace="$out/trace"

echo
echo "All of it is in $out: copy the tables into docs/throughput.md."
tail -n 1 "$out/recipe.txt"
