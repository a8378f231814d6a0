#!/usr/bin/env bash
# Runs the tests on the CPU in an environment of their own, made on first use.
#
#   launch/test.sh                                      all of them
#   launch/test.sh tests/losses_test.py -k focal        pytest's own arguments
#   PYTHON=python3.12 VENV=.venv-3.12 launch/test.sh    another Python
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

make_env test --quiet
# All of them: each file to one of so many workers, the longest first.
if [[ $# == 0 ]]; then
  set -- -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
fi
exec "$VENV/bin/python" -m pytest "$@"
