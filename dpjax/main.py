"""The one door of dpjax: flags, command, config. No logic.

python -m dpjax.main
    [train|prepare|evaluate|report|ablate|compare|benchmark]
    --config=configs/NAME.py [--workdir=DIR] [--config.section.field=value ...]
train also takes [--coordinator=auto|HOST:PORT] [--num_processes=N]
    [--process_id=I]; evaluate [--against=OTHER_WORKDIR]; benchmark
    [--peer=torch]; report several workdirs, with commas between them; prepare
    [--on_error=skip] [--preview=N] [--verify] [--beam_runner=NAME]
    [--beam_options=--a=b,--c]
"""

import functools
import os
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dpjax.config import flags as flags_lib
from dpjax.config import resolve as resolve_lib
from dpjax.distributed import processes
from dpjax.errors import UserError

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
_PEER = flags.DEFINE_enum(
  'peer', None, ['torch'], 'benchmark: run the same in it, in turns with ours.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'train: HOST:PORT of process 0 of a job of several'
  ' processes; auto where JAX finds out by itself.'
)  # fmt: skip
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'train: processes of the job, with HOST:PORT.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'train: the number of this one, from 0.'
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
    return processes.end(2) if _COORDINATOR.value else 2
  except RuntimeError as error:  # JAX's own are of it
    line = processes.too_little_memory(error)
    if _TRACEBACK.value or line is None:
      raise
    print(f'error: {line}', file=sys.stderr)
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
    'benchmark': _benchmark,
  }
  if command not in commands or len(words) > 1:
    raise UserError(
      f'command {" ".join(words)!r} is unknown; it must be one of'
      f' {", ".join(commands)}'
    )
  own = (_ON_ERROR, _PREVIEW, _VERIFY, _BEAM_RUNNER, _BEAM_OPTIONS)
  given = [f'--{flag.name}' for flag in own if flag.present]
  if given and command != 'prepare':
    raise UserError(f'{given[0]} is for prepare, not for {command}')
  if _AGAINST.present and command != 'evaluate':
    raise UserError(f'--against is for evaluate, not for {command}')
  if _PEER.present and command != 'benchmark':
    raise UserError(f'--peer is for benchmark, not for {command}')
  if _VERIFY.value and set(given) - {'--verify', '--preview'}:
    raise UserError('--verify looks at the set that is there; it goes with'
                     ' --preview only')  # fmt: skip
  if _BEAM_OPTIONS.value and not _BEAM_RUNNER.value:
    raise UserError('--beam_options is for --beam_runner, which is missing')
  if _COORDINATOR.present and command != 'train':
    raise UserError(f'--coordinator is for train, not for {command}: that runs'
                     ' in one process')  # fmt: skip
  if _CONFIG.value is None:
    raise UserError('--config is missing; e.g. --config=configs/retrain.py')
  if _PEER.value:  # By itself JAX takes three quarters of a GPU's memory.
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '.5')
  processes.start(
    deterministic=_CONFIG.value.train.deterministic,
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
  )
  import jax

  resolve = functools.partial(
    resolve_lib.resolve,
    num_devices=jax.device_count(),
    platform=jax.default_backend(),
    num_processes=jax.process_count(),
  )
  config = resolve(_CONFIG.value)
  if command in ('ablate', 'compare'):  # They change what is not resolved yet.
    config = resolve
  return commands[command](config, pathlib.Path(_workdir(command)))


def _workdir(command):
  if _WORKDIR.value:
    return _WORKDIR.value
  if command in ('ablate', 'compare', 'benchmark'):  # Not of one run.
    return f'runs/{command}'
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, variant = file.partition(':')
  return f'runs/{pathlib.Path(file).stem}' + (f'-{variant}' if variant else '')


def _train(config, workdir):
  from dpjax import recipe
  from dpjax.training import loop

  try:
    with processes.job():
      recipe.run(config, workdir)
  except loop.Stopped as stopped:
    print(stopped, flush=True)
    return 143  # 128 + SIGTERM: a scheduler starts the job again
  except loop.NonFinite as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  return 0


def _prepare(config, workdir):
  from dpjax import prepare
  from dpjax.data import store
  from dpjax.data.prepare import preview, summary

  del workdir
  path = pathlib.Path(config.data.path)
  if _PREVIEW.present and _PREVIEW.value < 1:
    raise UserError(f'--preview={_PREVIEW.value}; wanted 1 or more')
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
    found = against.compare_runs(
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

  return _study(ablate.run_ablation, resolve, workdir)


def _compare(resolve, workdir):
  from dpjax.studies import compare

  return _study(compare.run_comparison, resolve, workdir)


def _benchmark(config, workdir):
  from dpjax.benchmark import benchmark
  from dpjax.training import loop

  try:
    print(benchmark.run_benchmark(config, workdir, _PEER.value))
  except (loop.Stopped, KeyboardInterrupt):
    print('stopped; the same command measures all anew', file=sys.stderr)
    return 130  # 128 + SIGINT
  print(f'written: {workdir / "benchmark.json"}, {workdir / "benchmark.md"}')
  return 0


def _study(study, resolve, workdir):
  from dpjax.training import loop

  try:
    print(study(_CONFIG.value, workdir, resolve))
  except loop.Stopped as stopped:
    print(stopped, flush=True)
    return 143  # 128 + SIGTERM: a scheduler starts the job again
  return 0


if __name__ == '__main__':
  app.run(main, flags_parser=flags_lib.parse_flags)
