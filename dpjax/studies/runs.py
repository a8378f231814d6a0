"""The runs of a study: what is trained, what is there already, and its record.

What is finished is not done again, so the same command goes on from wherever
it was stopped, and processes that run different seeds may share a workdir.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dpjax import atomic, signals
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.errors import NonFinite, UserError
from dpjax.evaluation import evaluate, files
from dpjax.studies import tasks as tasks_lib
from dpjax.studies.tasks import Task
from dpjax.training import checkpoint, loop, metrics_log

_FINISHED = 'finished'  # the mark of a stage that others may start from
_TAIL = 8192  # bytes at the end of a log that hold its last lines


@dataclasses.dataclass(frozen=True)
class Run:
  """What there is of a task.

  Attributes:
    seed: of its training.
    workdir: where it is kept.
    result: its evaluation.json; empty if it is not finished.
    error: the line with which it diverged; None if it did not.
    pretraining: workdir of the stage I that it shares, or None.
    retraining: workdir of the stage II that it is fine-tuned from, or None.
  """

  seed: int
  workdir: pathlib.Path
  result: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  error: str | None = None
  pretraining: pathlib.Path | None = None
  retraining: pathlib.Path | None = None

  @property
  def state(self) -> str:
    """'finished', 'diverged' or 'missing'."""
    if self.error is not None:
      return 'diverged'
    return 'finished' if self.result else 'missing'

  @functools.cached_property
  def seconds(self) -> dict[str, float]:
    """How long a finished run took, read from its logs once.

    'pretraining': seconds of its stage I, 0 without one (or from weights);
    'training': seconds of all training, stage I in it;
    'ms_per_image': milliseconds of inference.
    """
    own = self.result['seconds']
    rate = self.result['images_per_second']
    if rate is None:  # of a single batch, the compilation in it
      rate = self.result['num_images'] / own['inference']
    if 'training' in own:  # not a network
      pretraining, training = own['pretraining'], own['training']
    else:
      pretraining, training = _seconds_trained(
        self.workdir, self.pretraining, self.retraining
      )
    return {
      'pretraining': pretraining,
      'training': training,
      'ms_per_image': 1000 / rate,
    }


def pretrain(task: Task) -> None:
  """Runs the stage I that a task needs, unless it is there.

  Raises:
    What loop.train raises. A divergence is recorded, and raised again without
    training.
  """
  folder = task.pretraining
  if folder is None or is_pretrained(task):
    return
  if (error := failure(folder)) is not None:
    raise NonFinite(error)
  try:
    loop.train(task.config, 'pretrain', folder)
  except NonFinite as error:
    atomic.write_json(folder / 'failed.json', {'error': str(error)})
    raise
  (folder / _FINISHED).touch()


def is_pretrained(task: Task) -> bool:
  """Whether the stage I that a task needs is there, or it needs none."""
  return task.pretraining is None or is_whole(task.pretraining, task)


def is_whole(folder: pathlib.Path, task: Task) -> bool:
  """Whether a stage of a task was trained to its end, on the task's set."""
  if not (folder / _FINISHED).exists():
    return False
  if not tasks_lib.has_begun(folder):
    return True
  # On a set elsewhere loop.train tells whether it is the same one.
  record = record_lib.load(folder / 'config.json')
  return _same_path(record.data.path, task.config.data.path)


def failure(folder: pathlib.Path) -> str | None:
  """The line with which the run in `folder` diverged, or None."""
  file = folder / 'failed.json'
  try:
    error = atomic.read_json(file).get('error')
  except (FileNotFoundError, NotADirectoryError):  # the latter: torch weights
    return None
  if not isinstance(error, str):
    raise UserError(f'{file} is damaged (it has no error); remove it')
  return error


def check(task: Task) -> None:
  """Raises UserError where the task was done with another config."""
  if task.retraining is not None:
    _check_config(task.retraining)
  elif (other := files.workdir_of(task.workdir)) != task.workdir:
    raise UserError(
      f'{task.name!r}: finetune.epochs is 0, and {other} holds a run of the'
      ' same row with fine-tuning; name another --workdir, or remove'
      f' {task.workdir}'
    )
  _check_config(task)


def _check_config(task):
  # A run that has left nothing may be begun anew (loop.train).
  kept = (task.workdir / 'evaluation.json').exists() or (
    checkpoint.has_checkpoint(task.workdir)
  )
  if kept and (changed := _changed(task)):
    raise UserError(
      f'{task.name!r}: {task.workdir} holds a run of another config'
      f' ({"; ".join(changed[:4])}); repeat its flags or name another --workdir'
    )


def _changed(task):
  record = record_lib.load(task.workdir / 'config.json')
  return record_lib.differences(record, task.config)


def look(task: Task) -> Run:
  """What there is of a task; trains nothing."""
  run = Run(
    task.config.seed, task.workdir, pretraining=task.pretraining,
    retraining=task.retraining.workdir if task.retraining else None,
  )  # fmt: skip
  if task.pretraining and (error := failure(task.pretraining)) is not None:
    error = f'stage I, {task.pretraining.name}: {error}'
    return dataclasses.replace(run, error=error)
  if task.retraining and (error := look(task.retraining).error) is not None:
    return dataclasses.replace(run, error=f'stage II: {error}')
  if task.stage_two_elsewhere and not tasks_lib.has_begun(
    task.stage_two_elsewhere
  ):
    return run  # It was removed, to be trained again.
  if not tasks_lib.has_begun(task.workdir) or _changed(task):
    return run
  if (error := failure(task.workdir)) is not None:
    return dataclasses.replace(run, error=error)
  return dataclasses.replace(run, result=_result(task))


def _result(task):
  """Its evaluation.json; {} if it is not of config.evaluate as it is now."""
  try:
    result = files.read_evaluation(
      task.workdir,
      ('checkpoint', 'split', 'data', 'scores', 'num_images', 'class_names',
       'images_per_second', 'seconds'),
    )  # fmt: skip
  except FileNotFoundError:
    return {}
  if not _is_at_its_end(task):
    return {}  # Evaluated by hand, half trained.
  wanted = task.config.evaluate
  record = record_lib.load(task.workdir / 'config.json', whole=True)
  # The evaluate command may have been there since, with other flags.
  given = {
    **_settings_before(),
    **result.get('settings', record.evaluate.to_dict()),
  }
  same = (
    record.evaluate.to_dict() == given == wanted.to_dict()
    and result['split'] == wanted.split
    and result['checkpoint'] in (wanted.checkpoint, None)
    # data.path may change in a run, the set may not: loop.train tells.
    and _same_path(record.data.path, task.config.data.path)
    and _same_path(result['data'], wanted.path or task.config.data.path)
  )
  return result if same else {}


def _is_at_its_end(task):
  """Whether it was trained to its end, which earlier versions did not mark."""
  if task.config.stage == 'classical' or (task.workdir / _FINISHED).exists():
    return True
  stage = 'finetune' if task.config.stage == 'finetune' else 'retrain'
  *_, last = [{'step': 0, 'epoch': 1}, *lines(task.workdir, 'validation')]
  end = task.config[stage].epochs * last['step'] / last['epoch']
  return last['step'] >= max(1, round(end))


def _settings_before():
  """What evaluations did that were made before there were these fields."""
  return {
    name.removeprefix('evaluate.'): field.before
    for name, field in fields_lib.table().items()
    if name.startswith('evaluate.') and field.before is not fields_lib.ALWAYS
  }


def _same_path(a, b):
  return os.path.realpath(a) == os.path.realpath(b)


def run(task: Task, work: Callable[[Task], None] | None = None) -> Run:
  """Does a task as far as it is not done.

  A run that diverges is recorded and not tried again.

  Args:
    task: of a network, or of what `work` trains.
    work: trains and evaluates after stage I; by default stage II.

  Raises:
    UserError: one line: the task was done with another config; and what
      loop.train and evaluate.evaluate raise.
    Stopped: after a signal, with everything saved.
  """
  check(task)
  if report_done(task):
    return look(task)
  print(f'{task}: in {task.workdir}', flush=True)
  # What is there of it was made by another config, or for another evaluation.
  for file in ('evaluation.json', 'failed.json'):
    (task.workdir / file).unlink(missing_ok=True)
  try:
    pretrain(task.retraining or task)
    # What is whole is not opened: others may start from it at the same time.
    elsewhere = task.stage_two_elsewhere
    if task.retraining and not (elsewhere and is_whole(elsewhere, task)):
      _train_recorded(task.retraining)
    (work or _train)(task)
  except NonFinite as error:
    # The stages before it have put theirs on record.
    if look(task).state != 'diverged':
      atomic.write_json(task.workdir / 'failed.json', {'error': str(error)})
    found = look(task)
    print(f'{task}: diverged ({found.error}); the study goes on', flush=True)
    return found
  return look(task)


def report_done(task: Task) -> bool:
  """Whether a task has come to an end, which is said in a line."""
  found = look(task)
  if found.state == 'diverged':
    print(
      f'{task}: diverged before ({found.error}); to try again, remove its'
      ' failed.json',
      flush=True,
    )
  if found.state == 'finished':
    print(f'{task}: finished before, in {task.workdir}', flush=True)
  return found.state != 'missing'


def run_all(
  tasks: Sequence[tuple[Task, Callable[[Task], None] | None]],
  save: Callable[[], Any],
) -> Any:
  """Does the tasks of a study in their order, as far as they are not done.

  Args:
    tasks: each with what trains it (see `run`); all are checked before the
      first is begun.
    save: called after every task that came to an end here, and at the end.

  Returns:
    What `save` returned at the end.

  Raises:
    What `run` raises.
  """
  for task, _ in tasks:
    check(task)
  for task, work in tasks:
    signals.check()
    before = look(task).state
    if run(task, work).state != before:
      save()
  return save()


def _train(task):
  loop.train(task.config, task.config.stage, task.workdir)
  (task.workdir / _FINISHED).touch()
  evaluate.evaluate(task.config, task.workdir)


def _train_recorded(task):
  """Trains a stage that another follows; its divergence is put on record."""
  (task.workdir / 'failed.json').unlink(missing_ok=True)
  try:
    loop.train(task.config, task.config.stage, task.workdir)
  except NonFinite as error:
    atomic.write_json(task.workdir / 'failed.json', {'error': str(error)})
    raise
  (task.workdir / _FINISHED).touch()


def lines(workdir: str | pathlib.Path, *splits: str) -> list[dict[str, Any]]:
  """The lines of a metrics.jsonl that are about one of `splits`, in order."""
  try:
    found = metrics_log.read(pathlib.Path(workdir) / 'metrics.jsonl')
  except (FileNotFoundError, NotADirectoryError):
    return []
  return [entry for entry in found if entry.get('split') in splits]


def last_epoch(workdir: pathlib.Path) -> float:
  """The epoch of the last line of a log; 0 without one."""
  found = 0.0
  with (
    contextlib.suppress(OSError),
    open(workdir / 'metrics.jsonl', 'rb') as log,
  ):
    log.seek(-min(_TAIL, log.seek(0, os.SEEK_END)), os.SEEK_END)
    for line in log.read().splitlines():
      with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line
        found = float(json.loads(line)['epoch'])
  return found


def trained(workdir: str | pathlib.Path) -> float:
  """Seconds of training until the last line of a network's log."""
  entries = lines(workdir, 'train', 'validation')
  return max((e['seconds_training'] for e in entries), default=0.0)


def validations(run: Run) -> list[tuple[float, dict[str, Any]]]:
  """(seconds trained until then, line of the log) of each validation.

  Those of stage II and, where it was fine-tuned, of that after them.
  """
  folders = [*([run.retraining] if run.retraining else []), run.workdir]
  before, found = run.seconds['pretraining'], []
  for folder in folders:
    found += [
      (before + entry['seconds_training'], entry)
      for entry in lines(folder, 'validation')
    ]
    before += trained(folder)
  return found


def _seconds_trained(workdir, stage_one, stage_two=None):
  """Seconds of the stage I of a run, and of all its stages together.

  Args:
    workdir: of the run.
    stage_one, stage_two: those that it started from; None: as it has them on
      record. They may have been moved, with the study, since.
  """
  config = record_lib.load(pathlib.Path(workdir) / 'config.json')
  before = config.init.backbone
  if config.stage == 'finetune':
    pretraining, training = _seconds_trained(stage_two or before, stage_one)
  else:
    before = stage_one or before
    pretraining = training = trained(before) if before else 0.0
  return pretraining, training + trained(workdir)
