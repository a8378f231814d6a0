"""The one door of dpjax: flags, command, config. No logic.

python -m dpjax.main
    [train|prepare|ablate|compare|benchmark]
    --config=configs/NAME.py [--workdir=DIR] [--config.section.field=value ...]
python -m dpjax.main [evaluate|report] --workdir=RUN    by the run's own config
python -m dpjax.main predict --workdir=RUN[,RUN2,...] --input=PATH --output=DIR
    [--overlays=N|all] [--embeddings] [--resume] [--on_error=skip]
python -m dpjax.main export --workdir=RUN[,RUN2,...] --output=DIR
    [--format=onnx,stablehlo,torch] [--maps]
python -m dpjax.main inspect --source=PATH    what is in a folder of images
python -m dpjax.main audit SET_A SET_B ... [--output=FILE]    what they share

train also takes [--extend] [--coordinator=auto|HOST:PORT] [--num_processes=N]
    [--process_id=I]; evaluate [--against=OTHER_WORKDIR], and several workdirs
    with --output=DIR; ablate and compare [--jobs=N] [--jobs_per_device=M]
    [--only=RUN]; benchmark [--peer=torch] [--target=NAME [--dump] [--fit]];
    report several workdirs, with commas between them; prepare
    [--on_error=skip] [--strict] [--preview=N] [--verify] [--beam_runner=NAME]
    [--beam_options=--a=b,--c]
"""

import sys

from dpjax import signals

if __name__ == '__main__':  # Before the imports, which take their time.
  signals.note()

import errno
import functools
import os
import pathlib
import threading
from collections.abc import Callable
from types import TracebackType

from absl import app, flags
from ml_collections import config_flags

from dpjax import library_noise
from dpjax.config import flags as flags_lib
from dpjax.config import resolve as resolve_lib
from dpjax.distributed import processes
from dpjax.errors import NonFinite, Stopped, UserError, one_line, printable

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file, or a name of configs/: e.g. retrain, retrain:quick.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run is kept; by default runs/<config>[-variant].'
)
_TRACEBACK = flags.DEFINE_bool(
  'traceback', False, 'Show where in the code an error was raised.'
)
_SOURCE = flags.DEFINE_string(
  'source', None, 'inspect: the folder to look at, as downloaded.'
)
_ON_ERROR = flags.DEFINE_enum(
  'on_error', 'fail', ['fail', 'skip'],
  'prepare, predict: stop at what cannot be used, or leave it out and list it.',
)  # fmt: skip
_STRICT = flags.DEFINE_bool(
  'strict', False, 'prepare: stop at what the summary would warn of.'
)
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
_OUTPUT = flags.DEFINE_string(
  'output', None, 'evaluate: where the mean of several runs, --workdir=A,B, is'
  ' kept; predict, export: the folder to write; audit: the csv.'
)  # fmt: skip
_JOBS = flags.DEFINE_integer(
  'jobs', None, 'ablate, compare: so many runs at once, each on a GPU or cores'
  ' of its own.'
)  # fmt: skip
_JOBS_PER_DEVICE = flags.DEFINE_integer(
  'jobs_per_device', None, 'ablate, compare: so many of them may share a GPU.'
)
_ONLY = flags.DEFINE_string(
  'only', None, 'ablate, compare: one run, such as seed0/resnet18, and no'
  ' table.'
)  # fmt: skip
_PEER = flags.DEFINE_enum(
  'peer', None, ['torch'], 'benchmark: run the same in it, in turns with ours.'
)
_TARGET = flags.DEFINE_string(
  'target', None, 'benchmark: compile for devices that are not here, and read'
  ' the programs: h100, h100x8, v5e:2x2.'
)  # fmt: skip
_DUMP = flags.DEFINE_bool(
  'dump', False, 'benchmark --target: keep the programs as text.'
)
_FIT = flags.DEFINE_bool(
  'fit', False, 'benchmark --target: find the largest batch that fits.'
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
_INPUT = flags.DEFINE_string(
  'input', None, 'predict: an image, a folder of them, or a csv of files.'
)
_OVERLAYS = flags.DEFINE_string(
  'overlays', '0', 'predict: draw so many images with their maps; or all.'
)
_EMBEDDINGS = flags.DEFINE_bool(
  'embeddings', False, 'predict: keep the pooled features.'
)
_RESUME = flags.DEFINE_bool(
  'resume', False, 'predict: go on with what is in --output already.'
)
_FORMAT = flags.DEFINE_list(
  'format', None, 'export: onnx, stablehlo, torch; by default all.'
)
_MAPS = flags.DEFINE_bool(
  'maps', False, 'export: also where the network looks.'
)
_EXTEND = flags.DEFINE_bool(
  'extend', False, 'train: go on from the end of a finished run, with more'
  ' epochs than it had.'
)  # fmt: skip
_BEAM_OPTIONS = flags.DEFINE_list(
  'beam_options', [], "prepare: the runner's options, separated by commas."
)


# What the operating system refuses a user: a full disk, no permission, a path
# or a mount that is not there. Anything else that it says is about us.
_REFUSALS = {
  errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM,
  errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
  errno.ENAMETOOLONG, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV,
}  # fmt: skip

_STUDY = (_JOBS, _JOBS_PER_DEVICE, _ONLY)
# What is for some commands only.
_FLAGS_OF = {
  'inspect': (_SOURCE,),
  'audit': (_OUTPUT,),
  'train': (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID, _EXTEND),
  'prepare': (
    _ON_ERROR,
    _STRICT,
    _PREVIEW,
    _VERIFY,
    _BEAM_RUNNER,
    _BEAM_OPTIONS,
  ),
  'evaluate': (_AGAINST, _OUTPUT),
  'export': (_OUTPUT, _FORMAT, _MAPS),
  'predict': (_INPUT, _OUTPUT, _ON_ERROR, _OVERLAYS, _EMBEDDINGS, _RESUME),
  'benchmark': (_PEER, _TARGET, _DUMP, _FIT),
  'ablate or compare': _STUDY,
}

# These read the config of the run that they look at, where none is given.
_OWN_CONFIG = ('evaluate', 'report', 'predict', 'export')
_RUN_CONFIG = pathlib.Path(__file__).with_name('evaluation') / 'run_config.py'


def main(argv: list[str]) -> int:
  """Runs one command; returns its exit status."""
  with signals.noted():
    return _end(_main(argv))


def _main(argv):
  try:
    return _run(argv[1:])
  except KeyboardInterrupt:
    print('stopped; the same command goes on from there', file=sys.stderr)
    return 130  # 128 + SIGINT
  except Stopped as stopped:
    print(stopped, flush=True)
    return 143  # 128 + SIGTERM: a scheduler starts the job again
  except (UserError, OSError, RuntimeError) as error:
    line = _users_line(error)
    if line is None or _TRACEBACK.value:
      raise
    print(f'error: {one_line(line)}', file=sys.stderr)
    return 2


def _end(status):
  """The exit status; after an error or a stop ends at once, without waiting.

  On its way out Python would wait for every thread: a compiler, a fit, a save
  of Orbax that waits for a disk which is gone. What they leave undone has been
  told, and is nothing of ours.
  """
  if _COORDINATOR.value:
    # Who was stopped and has saved ends together with all others.
    return processes.end(status) if status in (2, 130) else status
  if status and threading.active_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def _users_line(error):
  """What the user can mend, in a line; None if it is our own bug."""
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, OSError):
    own = str(error.filename).startswith(str(pathlib.Path(__file__).parent))
    return None if own or error.errno not in _REFUSALS else str(error)
  return processes.too_little_memory(error)


def report_bug(
  kind: type, error: BaseException, trace: TracebackType | None
) -> None:
  """A sys.excepthook: the traceback, and for a bug of ours whom to tell."""
  sys.__excepthook__(kind, error, trace)
  mended = isinstance(error, flags.Error) or _users_line(error) is not None
  if isinstance(error, Exception) and not mended:
    print(processes.REPORT, file=sys.stderr)
    if _COORDINATOR.present:
      processes.end(1)


def _run(words):
  if not _TRACEBACK.value:
    library_noise.silence()
  command = words[0] if words else 'train'
  if command == 'inspect' and len(words) == 2:
    raise UserError(f'{words[1]}: did you mean --source={words[1]}?')
  if command not in _COMMANDS or (len(words) > 1 and command != 'audit'):
    raise UserError(
      f'command {" ".join(words)!r} is unknown; it must be one of'
      f' {", ".join(_COMMANDS)}'
    )
  _check_flags(command)
  if command == 'inspect':  # before there is a config
    return _inspect(None, None)
  if command == 'audit':
    return _audit(words[1:])
  if _CONFIG.value is None:
    raise UserError(
      '--workdir is missing; name the run, e.g. --workdir=runs/retrain'
      if command in _OWN_CONFIG
      else '--config is missing; e.g. --config=configs/retrain.py'
    )
  if command in ('prepare', 'report'):
    # No JAX: on a GPU it would take the memory of those who need it.
    resolve = functools.partial(
      resolve_lib.resolve, num_devices=None, platform='cpu'
    )
  elif _JOBS.present:  # Each run starts a JAX of its own.
    resolve = None
  else:
    resolve = _start()
  if not _COORDINATOR.value:  # Several stop together, at a step.
    signals.check()
  return _COMMANDS[command](resolve, pathlib.Path(_workdir(command)))


def _check_flags(command):
  allowed = {
    flag.name
    for owner, own in _FLAGS_OF.items()
    if command in owner.split(' or ')
    for flag in own
  }
  for owner, own in _FLAGS_OF.items():
    given = [f.name for f in own if f.present and f.name not in allowed]
    if given:
      more = {
        'train': ': that runs in one process',
        'inspect': '; the others take --config.data.source',
      }.get(owner, '')
      raise UserError(f'--{given[0]} is for {owner}, not for {command}{more}')
  others = (_ON_ERROR, _STRICT, _BEAM_RUNNER, _BEAM_OPTIONS)
  if _VERIFY.value and any(flag.present for flag in others):
    raise UserError('--verify looks at the set that is there; it goes with'
                     ' --preview only')  # fmt: skip
  if _JOBS_PER_DEVICE.present and not _JOBS.present:
    raise UserError('--jobs_per_device is for --jobs, which is missing')
  if _ONLY.present and _JOBS.present:
    raise UserError('--only is for one run, --jobs for all of them')
  if _BEAM_OPTIONS.value and not _BEAM_RUNNER.value:
    raise UserError('--beam_options is for --beam_runner, which is missing')
  if _TARGET.value is None and (_DUMP.value or _FIT.value):
    raise UserError('--dump and --fit are for --target, which is missing')
  if _TARGET.value is not None and _PEER.value:
    raise UserError('--peer runs on this machine, --target on none; give one')


def _start():
  """Starts JAX; returns what resolves a config on the devices it finds."""
  if _PEER.value:  # By itself JAX takes three quarters of a GPU's memory.
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '.5')
  if _TARGET.value is not None:  # Devices that are here stay free.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  config = resolve_lib.checked(_CONFIG.value)
  processes.start(
    deterministic=config.train.deterministic,
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
  )
  import jax

  if _TARGET.value is not None:
    from dpjax.benchmark import ahead, targets

    target = targets.find(_TARGET.value)
    return functools.partial(ahead.resolve, target=target)
  return functools.partial(
    resolve_lib.resolve,
    num_devices=jax.device_count(),
    platform=jax.default_backend(),
    num_processes=jax.process_count(),
  )


def _workdir(command):
  if _WORKDIR.value:  # No shell expands the ~ of --workdir=~/run.
    return ','.join(map(os.path.expanduser, _WORKDIR.value.split(',')))
  if command in ('ablate', 'compare', 'benchmark'):  # Not of one run.
    return f'runs/{command}'
  file = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, variant = file.partition(':')
  return f'runs/{pathlib.Path(file).stem}' + (f'-{variant}' if variant else '')


def _train(resolve, workdir):
  from dpjax import recipe

  config = resolve(_CONFIG.value)
  try:
    with processes.job():
      processes.on_process_0('asked', lambda: _check_asked(config))
      recipe.run(config, workdir, _EXTEND.value)
  except NonFinite as error:
    print(f'error: {one_line(error)}', file=sys.stderr)
    return 1
  return 0


def _check_asked(config):
  """Refuses flags, and warns of fields, that the prepared set overrules."""
  from dpjax import prepare

  prepare.check_asked(config, _overrides())
  prepare.warn_overruled(config)


def _inspect(resolve, workdir):
  from dpjax.data.sources import inspect

  del resolve, workdir
  if not _SOURCE.value:
    raise UserError(
      '--source is missing; the folder to look at, e.g. --source=PATH'
    )
  print(inspect.inspect(_SOURCE.value))
  return 0


def _audit(paths):
  from dpjax import machine
  from dpjax.serving import audit

  output = os.path.expanduser(_OUTPUT.value or 'audit.csv')
  workers = machine.cores()
  print('\n'.join(audit.audit(paths, output, workers=workers)))
  print(f'written: {printable(output)}')
  return 0


def _prepare(resolve, workdir):
  from dpjax import prepare
  from dpjax.data import store
  from dpjax.data.prepare import preview, summary

  del workdir
  config = resolve(_CONFIG.value)
  path = pathlib.Path(config.data.path)
  shown = _PREVIEW.value
  if shown is not None and shown < 1:
    raise UserError(f'--preview={shown}; wanted 1 or more')
  if _VERIFY.value:
    count = store.verify(path)
    print(f'{path}: all {count:,} images are as its manifest has them')
  else:
    runner = _BEAM_RUNNER.value
    made = prepare.prepare(
      config,
      on_error=_ON_ERROR.value,
      strict=_STRICT.value,
      beam=(runner, _BEAM_OPTIONS.value or []) if runner else None,
    )
    print(summary.format_summary(made))
  if shown is not None:
    file = path.with_name(f'{path.name}-preview.png')
    preview.write(store.load(path), file, shown)
    print(f'written: {file}')
  return 0


def _evaluate(resolve, workdir):
  from dpjax.evaluation import against, beside, ensemble, evaluate, text
  from dpjax.evaluation import files as files_lib

  config = resolve(_CONFIG.value)
  other = os.path.expanduser(_AGAINST.value or '')
  if other:  # Before anything is computed.
    theirs = against.read_evaluation(other, beside.NEEDED)
  members = _several(workdir)
  if bool(_OUTPUT.value) != (len(members) > 1):
    raise UserError(
      f'--workdir names {len(members)} run{"s" * (len(members) > 1)}; --output'
      ' is for the mean of several, --workdir=A,B, and needed there'
    )
  if _OUTPUT.value:
    written = pathlib.Path(os.path.expanduser(_OUTPUT.value))
    result = ensemble.evaluate_ensemble(config, members, written)
    print(f'mean of {len(members)} runs')
  else:
    written = files_lib.workdir_of(workdir)
    result = evaluate.evaluate(config, workdir)
  print(text.format_table(result))
  files = ['evaluation.json', 'predictions.csv']
  if other:
    found = against.compare_runs(
      written, other, resamples=config.evaluate.resamples,
      seed=config.evaluate.seed, results=(result, theirs),
    )  # fmt: skip
    print(text.format_comparison(found))
    print(f'\n{beside.format_beside({"a": result, "b": theirs})}')
    files.append(against.write(found).name)
  paths = ', '.join(str(written / file) for file in files)
  print(f'written: {printable(paths)}')
  return 0


def _predict(resolve, workdir):
  from dpjax import machine
  from dpjax.serving import exported, model, predict

  del resolve
  given = _needed(_INPUT, 'an image, a folder of them, or a csv of files')
  output = _needed(_OUTPUT, 'the folder to write')
  overlays = {'all': -1}.get(_OVERLAYS.value)
  if overlays is None and not _OVERLAYS.value.isdecimal():
    raise UserError(f'--overlays={_OVERLAYS.value}; wanted a number, or all')
  config = resolve_lib.checked(_CONFIG.value)
  members = _several(workdir)
  for field in ('evaluate.cam_target', 'evaluate.cam_stage'):
    # The first one draws the maps.
    asked = _asked(field) is not None
    if asked and members and exported.is_export(members[0]):
      raise UserError(
        f'config.{field}: {members[0]} is an export, whose maps are as it was'
        ' exported; ask its run'
      )
  loaded = model.load(
    *members,
    checkpoint=_asked('evaluate.checkpoint'),
    batch_size=config.evaluate.batch_size,
    prevalence=_asked('evaluate.prevalence'),
    config=config,
  )
  settings = predict.Settings(
    on_error=_ON_ERROR.value,
    resume=_RESUME.value,
    embeddings=_EMBEDDINGS.value,
    overlays=int(_OVERLAYS.value) if overlays is None else overlays,
    workers=config.data.workers or machine.cores(),
    progress=config.train.progress,
  )
  for network in loaded.networks:
    print(f'predict: {model.called(network)}', flush=True)
  try:
    record = predict.predict(loaded, given, output, settings)
  except (Stopped, KeyboardInterrupt) as stopped:
    print('stopped; with --resume the same command goes on from there',
          file=sys.stderr)  # fmt: skip
    return 143 if isinstance(stopped, Stopped) else 130
  print(predict.text(record, output))
  return 0


def _needed(flag: flags.FlagHolder[str | None], what: str) -> str:
  """The path that a flag gives; a UserError without it."""
  if not flag.value:
    raise UserError(f'--{flag.name} is missing: {what}')
  return os.path.expanduser(flag.value)


def _asked(field):
  """What a field was given on the command line; None: nothing."""
  return _overrides().get(field)


def _overrides():
  """{field: value} of those that the command line gives."""
  return config_flags.get_override_values(flags.FLAGS['config'])


def _export(resolve, workdir):
  from dpjax.serving import export, model

  del resolve
  output = _needed(_OUTPUT, 'the folder to write')
  if (_asked('evaluate.prevalence') or 'none') != 'none':
    raise UserError(
      'config.evaluate.prevalence is for evaluate and predict; an export'
      ' answers for the shares of the classes in training'
    )
  config = resolve_lib.checked(_CONFIG.value)
  config.model.dtype = 'float32'  # An export answers alike everywhere.
  loaded = model.load(
    *_several(workdir),
    checkpoint=_asked('evaluate.checkpoint'),
    config=config,
  )
  record = export.export(loaded, output, _FORMAT.value, maps=_MAPS.value)
  for line in export.lines(record, output):
    print(printable(line))
  return 0


def _report(resolve, workdir):
  from dpjax.report import report

  config = resolve(_CONFIG.value)
  found = report.write(_several(workdir), config)
  print(f'written: {printable(str(found))}')
  return 0


def _several(workdir):
  found = [part.strip() for part in str(workdir).split(',') if part.strip()]
  if not found:
    raise UserError(f'--workdir={workdir} names no run')
  return found


def _ablate(resolve, workdir):
  from dpjax.studies import ablate

  return _study(ablate.run_ablation, resolve, workdir)


def _compare(resolve, workdir):
  from dpjax.studies import compare

  return _study(compare.run_comparison, resolve, workdir)


def _benchmark(resolve, workdir):
  from dpjax.benchmark import ahead, benchmark, targets

  config = resolve(_CONFIG.value)
  try:
    if _TARGET.value is None:
      print(benchmark.run_benchmark(config, workdir, _PEER.value))
    else:
      target = targets.find(_TARGET.value)
      print(
        ahead.run_ahead(
          config, workdir, target, dump=_DUMP.value, fit=_FIT.value
        )
      )
  except (Stopped, KeyboardInterrupt):
    print('stopped; the same command measures all anew', file=sys.stderr)
    return 130  # 128 + SIGINT
  print(f'written: {workdir / "benchmark.json"}, {workdir / "benchmark.md"}')
  return 0


def _study(study, resolve, workdir):
  jobs = None
  if _JOBS.value is not None:
    jobs, resolve = _side_by_side(_JOBS.value)
  _check_asked(resolve(_CONFIG.value))
  print(study(_CONFIG.value, workdir, resolve, jobs=jobs, only=_ONLY.value))
  if jobs and jobs.failed:
    raise UserError(
      f'{len(jobs.failed)} of the runs died: {", ".join(jobs.failed)}; the same'
      ' command does them again'
    )
  return 0


def _side_by_side(count):
  """How the runs of a study are started, and what resolves their configs."""
  from dpjax.studies import jobs, places

  environment = dict(os.environ)
  os.environ['JAX_PLATFORMS'] = 'cpu'  # The devices are for the runs.
  platform, num_devices = places.devices(environment)
  found = places.make_places(
    count, _JOBS_PER_DEVICE.value, platform, num_devices, environment
  )
  command = [sys.executable, '-m', 'dpjax.main', *jobs.without(
    sys.argv[1:], [flag.name for flag in _STUDY]
  ), '--config.train.progress=False']  # fmt: skip
  resolve = functools.partial(
    resolve_lib.resolve, num_devices=1, platform=platform
  )
  progress = resolve_lib.checked(_CONFIG.value).train.progress
  return jobs.Jobs(found, command, environment, progress), resolve


_COMMANDS: dict[str, Callable[..., int]] = {
  'train': _train,
  'inspect': _inspect,
  'audit': _audit,
  'prepare': _prepare,
  'evaluate': _evaluate,
  'report': _report,
  'predict': _predict,
  'export': _export,
  'ablate': _ablate,
  'compare': _compare,
  'benchmark': _benchmark,
}


if __name__ == '__main__':
  sys.excepthook = report_bug
  own = (_OWN_CONFIG, _RUN_CONFIG)
  app.run(main, flags_parser=functools.partial(flags_lib.parse_flags, own=own))
