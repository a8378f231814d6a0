#!/usr/bin/env bash
# From a fresh checkout to an evaluated model: the recipe, small, on the built-in
# phantom data, and beside it a plain network of the same size. Run again, it
# goes on where it was stopped.
#
#   launch/quickstart.sh
#   launch/quickstart.sh --config.seed=1                flags of dpjax.main
#   PYTHON=python3.12 VENV=.venv-3.12 launch/quickstart.sh
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

extra=
if nvidia-smi >/dev/null 2>&1; then
  extra=cuda
fi
make_env "$extra"

workdir=runs/quickstart
"$VENV/bin/python" -m dpjax.main --config=configs/recipe.py:quick \
  --workdir="$workdir" "$@"

# The same network from scratch, under cross-entropy, and nothing else.
plain=$workdir/plain
"$VENV/bin/python" -m dpjax.main --config=configs/retrain.py:quick \
  --workdir="$plain" "$@" --config.init.backbone=None \
  --config.loss.classification=ce --config.loss.begin=0 \
  --config.mgacr.attention=False --config.mgacr.features=False
"$VENV/bin/python" -m dpjax.main evaluate --workdir="$plain" >/dev/null
echo
echo "The recipe (a) against a plain network of the same size (b):"
"$VENV/bin/python" -m dpjax.main evaluate \
  --workdir="$workdir" --against="$plain" | sed -n '/^a: /,/^written: /p'

results=$workdir/retrain
if [[ -d $workdir/finetune ]]; then
  results=$workdir/finetune
fi
"$VENV/bin/python" -m dpjax.main report \
  --workdir="$results,$plain" >/dev/null
[[ -f $results/evaluation.json ]] ||
  die "the recipe ended without $results/evaluation.json"
echo
echo "Done. Files to look at:"
show() { # show FILE WHAT
  if [[ -f $results/$1 ]]; then
    printf '  %-40s %s\n' "$results/$1" "$2"
  fi
}
show report.html "all of it on one page: open it in a browser"
show evaluation.json "scores on the test split"
show predictions.csv "one line a radiograph"
show metrics.jsonl "losses and scores over training"
show config.json "every setting, as resolved"
