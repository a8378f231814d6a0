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
# All of them: each file to one of the workers, the longest first. One worker more
# than cores, for some tests wait for processes of their own; at most 4.
if [[ $# == 0 ]]; then
  cores=$(getconf _NPROCESSORS_ONLN)
  set -- -n "$((cores < 4 ? cores + 1 : 4))" --dist=loadfile --no-loadscope-reorder
fi
exec "$VENV/bin/python" -m pytest "$@"
