"""The command line: a user's mistake there is one line and exit status 2."""

import itertools
import pathlib
import runpy
import sys
import traceback
from collections.abc import Sequence

import ml_collections
from absl import flags

from dpjax.config import fields
from dpjax.errors import UserError


def parse_flags(argv: Sequence[str]) -> list[str]:
  """absl's flags_parser: ends the process at a mistake of the user's.

  ml_collections alone answers a misspelt field with a traceback.
  """
  try:
    _check_fields_exist(argv)
    return flags.FLAGS(argv)
  except (flags.Error, UserError) as error:
    if '--traceback' in argv:
      raise
    line = str(error).strip().splitlines()[0]
    print(f'error: {line}', file=sys.stderr)
    sys.exit(2)


def _check_fields_exist(argv):
  """Raises UserError for a field on the command line that the file lacks."""
  words = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
  arguments = [word.lstrip('-') for word in words if word.startswith('-')]
  files = [a.partition('=')[2] for a in arguments if a.startswith('config=')]
  # absl takes `--config FILE` too.
  files += [
    value
    for flag, value in itertools.pairwise(words)
    if flag in ('--config', '-config')
  ]
  if not files:
    return
  # config_flags reads the whole command line at once, so not by it.
  config = _read(*files[-1].split(':', 1))
  known = fields.flatten(config)
  for argument in arguments:
    name = argument.partition('=')[0]
    if name.removeprefix('no').startswith('config.'):
      fields.check_field(known, name.partition('config.')[2])


def _read(file, *variant):
  """The config of a file of configs/, or of the user's own."""
  if not pathlib.Path(file).is_file():
    raise UserError(f'--config={file}: no such file; see configs/')
  try:
    config = runpy.run_path(file)['get_config'](*variant)
  except UserError:
    raise
  except Exception as error:  # whatever a file may do
    raise UserError(
      f'--config={file} is no config, a Python file with get_config() as those'
      f' of configs/ are: {_where(error, file)}{type(error).__name__}: {error}'
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f'--config={file}: its get_config() returns no ConfigDict')
  return config


def _where(error, file):
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if frame.filename == file
  ]
  return f'line {lines[-1]}: ' if lines else ''
