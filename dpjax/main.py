"""The one door of dpjax: flags, command, config. No logic.

python -m dpjax.main [train|prepare|evaluate|report|ablate|compare]
    --config=configs/NAME.py [--workdir=DIR] [--config.section.field=value ...]
evaluate also takes [--against=OTHER_WORKDIR]; report several workdirs, with
commas between them; prepare [--on_error=skip] [--preview=N] [--verify]
    [--beam_runner=NAME] [--beam_options=--a=b,--c]
"""

import functools
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dpjax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, e.g. configs/retrain.py or :quick.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run is kept; by default runs/<config>[-variant].'
)
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where in the code an error was raised.'
)
_ON_ERROR = flags.DEFINE_enum(
  'on_error', 'fail', ['fail', 'skip'],
  'prepare: stop at what is wrong in the source, or leave it out and list it.',
)  # fmt: skip
_PREVIEW = flags.DEFINE_integer(
  'preview', None, 'prepare: draw so many radiographs with their boxes.'
)
_VERIFY = flags.DEFINE_bool(
  'verify', False, 'prepare: check the set that is there against its manifest.'
)
_BEAM_RUNNER = flags.DEFINE_string(
  'beam_runner', None, 'prepare: let Apache Beam do the work, by this runner.'
)
_AGAINST = flags.DEFINE_string(
  'against', None, 'evaluate: compare with the evaluated run in this workdir.'
)
_BEAM_OPTIONS = flags.DEFINE_list(
  'beam_options', [], "prepare: the runner's options, separated by commas."
)


def main(argv: list[str]) -> int:
  """Runs one command; returns its exit status."""
  try:
    return _run(argv[1:])
  except KeyboardInterrupt:
    print('stopped; the same command goes on from there', file=sys.stderr)
    return 130  # 128 + SIGINT
  except (ValueError, OSError, ImportError) as error:
    if _TRACEBACK.value or '\n' in str(error).strip():
      raise
    print(f'error: {error}', file=sys.stderr)
    return 2


def _run(words):
  logging.set_verbosity(logging.WARNING)
  command = words[0] if words else 'train'
  commands = {
    'train': _train,
    'prepare': _prepare,
    'evaluate': _evaluate,
    'report': _report,
    'ablate': _ablate,
    'compare': _compare,
  }
  if command not in commands or len(words) > 1:
    raise ValueError(
      f'command {" ".join(words)!r} is unknown; it must be one of'
      f' {", ".join(commands)}'
    )
  own = (_ON_ERROR, _PREVIEW, _VERIFY, _BEAM_RUNNER, _BEAM_OPTIONS)
  given = [f'--{flag.name}' for flag in own if flag.present]
  if given and command != 'prepare':
    raise ValueError(f'{given[0]} is for prepare, not for {command}')
  if _AGAINST.present and command != 'evaluate':
    raise ValueError(f'--against is for evaluate, not for {command}')
  if _VERIFY.value and set(given) - {'--verify', '--preview'}:
    raise ValueError('--verify looks at the set that is there; it goes with'
                     ' --preview only')  # fmt: skip
  if _BEAM_OPTIONS.value and not _BEAM_RUNNER.value:
    raise ValueError('--beam_options is for --beam_runner, which is missing')
  if _CONFIG.value is None:
    raise ValueError('--config is missing; e.g. --config=configs/retrain.py')
  if _CONFIG.value.train.deterministic:
    os.environ['XLA_FLAGS'] = (
      os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
    )
  import jax

  try:
    num_devices = jax.device_count()
  except (RuntimeError, AssertionError) as error:  # both, by the platform
    wanted = os.environ.get('JAX_PLATFORMS')
    raise ValueError(f'JAX finds no device; JAX_PLATFORMS={wanted}') from error
  resolve = functools.partial(
    config_lib.resolve, num_devices=num_devices, platform=jax.default_backend()
  )
  config = resolve(_CONFIG.value)
  if command in ('ablate', 'compare'):  # They change what is not resolved yet.
    return commands[command](resolve, pathlib.Path(_workdir(command)))
  return commands[command](config, pathlib.Path(_workdir()))


def _workdir(command=''):
  if _WORKDIR.value:
    return _WORKDIR.value
  if command:
    return f'runs/{command}'
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, variant = file.partition(':')
  return f'runs/{pathlib.Path(file).stem}' + (f'-{variant}' if variant else '')


def _train(config, workdir):
  from dpjax import recipe, train

  try:
    recipe.run(config, workdir)
  except train.Stopped as stopped:
    print(stopped, flush=True)
    return 143  # 128 + SIGTERM: a scheduler starts the job again
  except train.NonFinite as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


def _prepare(config, workdir):
  from dpjax.data import prepare, preview, store, summary

  del workdir
  path = pathlib.Path(config.data.path)
  if _PREVIEW.present and _PREVIEW.value < 1:
    raise ValueError(f'--preview={_PREVIEW.value}; wanted 1 or more')
  if _VERIFY.value:
    count = store.verify(path)
    print(f'{path}: all {count:,} images are as its manifest has them')
  else:
    beam = (_BEAM_RUNNER.value, _BEAM_OPTIONS.value)
    made = prepare.prepare(
      config,
      on_error=_ON_ERROR.value,
      beam=beam if _BEAM_RUNNER.value else None,
    )
    print(summary.format_summary(made))
  if _PREVIEW.present:
    file = path.with_name(f'{path.name}-preview.png')
    preview.write(store.load(path), file, _PREVIEW.value)
    print(f'written: {file}')
  return 0


def _evaluate(config, workdir):
  from dpjax.evaluation import against, evaluate, text

  if _AGAINST.value:
    against.read_evaluation(_AGAINST.value)  # Before anything is computed.
  result = evaluate.evaluate(config, workdir)
  print(text.format_table(result))
  written = pathlib.Path(result['workdir'])
  files = ['evaluation.json', 'predictions.csv']
  if _AGAINST.value:
    found = against.compare(
      written, _AGAINST.value, resamples=config.evaluate.resamples,
      seed=config.evaluate.seed,
    )  # fmt: skip
    print(text.format_comparison(found))
    files.append(against.write(found).name)
  print(f'written: {", ".join(str(written / file) for file in files)}')
  return 0


def _report(config, workdir):
  from dpjax.report import report

  workdirs = [part.strip() for part in str(workdir).split(',') if part.strip()]
  print(f'written: {report.write(workdirs, config)}')
  return 0


def _ablate(resolve, workdir):
  from dpjax.studies import ablate

  return _study(ablate.ablate, resolve, workdir)


def _compare(resolve, workdir):
  from dpjax.studies import compare

  return _study(compare.compare, resolve, workdir)


def _study(study, resolve, workdir):
  from dpjax import train

  try:
    print(study(_CONFIG.value, workdir, resolve))
  except train.Stopped as stopped:
    print(stopped, flush=True)
    return 143  # 128 + SIGTERM: a scheduler starts the job again
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=config_lib.parse_flags)
