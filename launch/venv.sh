# shellcheck shell=bash
# Sourced by the scripts beside it: makes the environment that they run in.
#   PYTHON  the interpreter to make it from (default: python3)
#   VENV    its folder, from the root of the checkout (default: .venv)

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV=${VENV:-.venv}

die() { # die LINE [STATUS]
  echo "error: $1" >&2
  exit "${2:-1}"
}

# Python's version as 3.12; fails if it does not run or is older than 3.11.
supported() {
  "$1" -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# make_env EXTRA [PIP OPTION...]: makes $VENV if it is not there and installs
# dpjax[EXTRA] into it, editable, unless that stands there already.
make_env() {
  local extra=$1 python=$VENV/bin/python version stamp key
  shift
  # Without PYTHON an environment that is there is taken as it is.
  if [[ -n ${PYTHON:-} || ! -x $python ]]; then
    python=${PYTHON:-python3}
  fi
  version=$(supported "$python") ||
    die "dpjax needs Python 3.11 or newer, $python is ${version:-missing \
or broken}: set PYTHON to another" 2

  if [[ ! -x $VENV/bin/python ]]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$python lacks the venv module: install it (Debian and Ubuntu: \
apt install python$version-venv)" 2
    echo "Making $VENV with Python $version"
    "$python" -m venv --without-pip "$VENV" || die "cannot make $VENV"
  elif [[ $(supported "$VENV/bin/python") != "$version" ]]; then
    die "$VENV is not of Python $version: remove it, or set VENV to another \
folder" 2
  fi
  python=$VENV/bin/python

  # The folder is in the key because an editable install points to it.
  stamp=$VENV/.installed-${extra:-core}
  key="$version $(cksum <pyproject.toml) $PWD"
  if [[ ! -f $stamp || $(<"$stamp") != "$key" ]]; then
    echo "Installing dpjax${extra:+[$extra]} and what it needs into $VENV" \
      "(some minutes the first time)"
    "$python" -m pip --version >/dev/null 2>&1 ||
      "$python" -m ensurepip >/dev/null || die "cannot put pip into $VENV"
    "$python" -m pip install --disable-pip-version-check "$@" \
      -e ".${extra:+[$extra]}" ||
      die "pip could not install dpjax: its reason is above"
    echo "$key" >"$stamp"
  fi
  "$python" -c 'from importlib.metadata import version; import platform
print("Python", platform.python_version() + ", jax", version("jax"))'
}
