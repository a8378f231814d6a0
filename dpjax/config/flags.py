"""The command line: a user's mistake there is one line and exit status 2."""

import ast
import itertools
import pathlib
import runpy
import sys
import traceback
from collections.abc import Collection, Sequence

import ml_collections
from absl import flags

from dpjax.config import fields
from dpjax.errors import UserError, one_line


def parse_flags(
  argv: Sequence[str], own: tuple[Collection[str], pathlib.Path] | None = None
) -> list[str]:
  """absl's flags_parser: ends the process at a mistake of the user's.

  ml_collections alone answers a misspelt field with a traceback.

  Args:
    argv: of the process.
    own: commands that take the config of the run in --workdir where none is
      given, and the config file that reads it.
  """
  try:
    # config_flags looks for the fields that are changed in sys.argv.
    words = _with_named_config(argv)
    if own:
      words = _with_own_config(words, *own)
    sys.argv = words
    _check_words(words)
    return flags.FLAGS(words)
  except (flags.Error, UserError) as error:
    if '--traceback' in argv:
      raise
    line = str(error).strip().splitlines()[0]
    print(f'error: {one_line(line)}', file=sys.stderr)
    sys.exit(2)


def _with_named_config(argv):
  """The words, with the file of configs/ where --config has a mere name.

  retrain and retrain:quick are names; a file that is there is meant by itself.
  """

  def found(value):
    name, colon, variant = value.partition(':')
    file = fields.CONFIGS / f'{name}.py'
    known = '/' not in name and file.is_file()
    if not known or pathlib.Path(name).is_file():
      return value
    return f'{file}{colon}{variant}'

  words = [*argv]
  for i, word in enumerate(argv):
    if word in ('--config', '-config') and i + 1 < len(argv):
      words[i + 1] = found(argv[i + 1])
    elif word.startswith(('--config=', '-config=')):
      flag, _, value = word.partition('=')
      words[i] = f'{flag}={found(value)}'
  return words


def _with_own_config(argv, commands, file):
  """The words, with --config of the run that they name and give none for."""
  words = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
  pairs = _pairs(words)
  given = {name for name, _ in pairs}
  workdirs = [value for name, value in pairs if name == 'workdir' and value]
  looks = any(word in commands for word in words)
  if not looks or not workdirs or 'config' in given:
    return [*argv]
  first = workdirs[-1].split(',')[0].strip()
  return [argv[0], f'--config={file}:{first}', *argv[1:]]


def _pairs(words):
  """(name, value) of the flags; absl takes `--config FILE` as --config=FILE."""
  return [
    word.lstrip('-').partition('=')[::2]
    if '=' in word or not after.strip() or after.startswith('-')
    else (word.lstrip('-'), after)
    for word, after in itertools.pairwise([*words, ''])
    if word.startswith('-')
  ]


def _check_words(argv):
  """Raises UserError for what absl and ml_collections take amiss.

  That is a field that the file lacks, one without its config. before it, and a
  tuple that is written as no tuple.
  """
  words = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
  pairs = _pairs(words)
  files = [value for name, value in pairs if name == 'config' and value]
  if files:
    # config_flags reads the whole command line at once, so not by it.
    known = fields.flatten(_read(*files[-1].split(':', 1)))
  else:
    known = {name: f.default for name, f in fields.table().items()}
  for name, value in pairs:
    if name.removeprefix('no').startswith('config.'):
      field = name.partition('config.')[2]
      if files:
        fields.check_field(known, field)
      if isinstance(known.get(field), tuple):
        _check_tuple(field, value)
    elif name not in flags.FLAGS:
      _check_is_no_field(known, f'--{name}', name, value)
  for word in words:
    name, equals, value = word.partition('=')
    if equals and not word.startswith('-'):
      _check_is_no_field(known, word, name.removeprefix('config.'), value)


def _check_tuple(field, value):
  """Refuses `a,b`, which would be one text, and `(a,b)`, which is no Python."""
  try:
    ast.literal_eval(value)
    return
  except (ValueError, SyntaxError):
    parts = [part.strip(' \'"') for part in value.strip(' ()[]').split(',')]
  if ',' in value or value.startswith(('(', '[')):
    several = ','.join(repr(part) for part in parts if part)
    comma = ',' if several.count("','") == 0 else ''
    one = ''
    if not value.startswith(('(', '[')):
      one = f', or "({value!r},)" if that is one name'
    raise UserError(
      f'config.{field} is {value}; write a tuple as "({several}{comma})"{one}'
    )


def _check_is_no_field(known, given, name, value):
  """Refuses a field without its prefix, with what would be right."""
  same = [field for field in known if f'.{field}'.endswith(f'.{name}')]
  if name and same:
    raise UserError(
      f'{given}: no such flag; did you mean --config.{min(same, key=len)}'
      + (f'={value}?' if value else '?')
    )


def _read(file, *variant):
  """The config of a file of configs/, or of the user's own."""
  if not pathlib.Path(file).is_file():
    names = sorted(path.stem for path in fields.CONFIGS.glob('*.py'))
    raise UserError(
      f'--config={file}: no such file, nor one of {", ".join(names)}'
    )
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
