"""The command line: a user's mistake there is one line and exit status 2."""

import difflib
import itertools
import pathlib
import runpy
import sys

from absl import flags

from dpjax.config.fields import flatten
from dpjax.errors import UserError


def parse_flags(argv):
  """absl's flags_parser: a user's mistake is one line and exit status 2.

  ml_collections alone answers a misspelt field with a traceback.
  """
  try:
    _check_fields_exist(argv)
    return flags.FLAGS(argv)
  except (flags.Error, ValueError, TypeError, AttributeError, OSError) as error:
    line = str(error).strip().splitlines()[0]
    print(f'error: {line}', file=sys.stderr)
    sys.exit(2)


def _check_fields_exist(argv):
  """Raises UserError for an override of a field that the file lacks."""
  arguments = [a.lstrip('-') for a in argv[1:] if a.startswith('-')]
  files = [a.partition('=')[2] for a in arguments if a.startswith('config=')]
  # absl takes `--config FILE` too.
  files += [
    value
    for flag, value in itertools.pairwise(argv[1:])
    if flag in ('--config', '-config')
  ]
  if not files:
    return
  file, _, variant = files[-1].partition(':')
  if not pathlib.Path(file).is_file():
    raise UserError(f'--config={file}: no such file; see configs/')
  # config_flags reads the whole command line at once, so not by it.
  try:
    get_config = runpy.run_path(file)['get_config']
  except (SyntaxError, KeyError) as error:
    raise UserError(
      f'--config={file} is no config: a Python file with get_config(), as'
      f' those of configs/ ({error})'
    ) from error
  config = get_config(variant) if variant else get_config()
  for argument in arguments:
    name = argument.partition('=')[0]
    if name.removeprefix('no').startswith('config.'):
      check_field(config, name[name.index('config.') + len('config.') :])


def check_field(config, name):
  """Raises UserError if `name`, e.g. 'mgacr.eps', is no field of `config`."""
  known = sorted(flatten(config))
  if name in known:
    return
  if any(field.startswith(name + '.') for field in known):
    raise UserError(f'config.{name} is a section, not a field')
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  same_leaf = [f for f in known if f.split('.')[-1] == name.split('.')[-1]]
  hint = (same_leaf or near or ['see configs/base.py'])[0]
  raise UserError(f'config.{name} does not exist; did you mean {hint}?')
