"""The runs of a study: what is trained, what is there already, and its record.

A study's workdir holds, for each seed, a folder a run and the stages I that
runs share:

    seed0/pretrain-1f2e3d4c/    stage I, shared by all runs that equal it
    seed0/resnet18/             a stage II workdir, evaluated

With finetune.epochs above 0 the latter holds retrain/ and finetune/, of which
the second is evaluated, as a recipe's folder does; where another run has the
same stage II, finetune/ alone.

What is finished is not done again, so the same command goes on from wherever
it was stopped, and processes that run different seeds may share a workdir.
"""

import ast
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash
from ml_collections import ConfigDict

from dpjax import atomic, prepare, signals
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.errors import NonFinite, UserError
from dpjax.evaluation import evaluate, files
from dpjax.training import checkpoint, loop, metrics_log

_FINISHED = 'finished'  # the mark of a stage that others may start from
_TAIL = 8192  # bytes at the end of a log that hold its last lines


@dataclasses.dataclass(frozen=True)
class Task:
  """A run of a study, done or not.

  Attributes:
    name: of its row or method.
    workdir: where it is kept.
    config: as it is recorded there; its seed is the run's.
    pretraining: workdir of the stage I that it needs and shares, or None.
    retraining: the stage II that it is fine-tuned from, its own or that of
      another run, or None.
  """

  name: str
  workdir: pathlib.Path
  config: ConfigDict
  pretraining: pathlib.Path | None
  retraining: 'Task | None' = None

  @property
  def folder(self) -> pathlib.Path:
    """Where all of it is but the stages that it shares; seedN/NAME."""
    return self.workdir if self.retraining is None else self.workdir.parent

  @property
  def stage_two_elsewhere(self) -> pathlib.Path | None:
    """Workdir of the stage II of another run that it is fine-tuned from."""
    if self.retraining and self.retraining.workdir.parent != self.folder:
      return self.retraining.workdir
    return None

  def __str__(self) -> str:
    return f'{self.name}, seed {self.config.seed}'


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


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> Any:
  """A copy of `config` changed by texts like 'mgacr.features=False'.

  Args:
    config: as given by configs/ and the flags, before it is resolved.
    overrides: 'section.field=value', the value as a flag would have it.

  Raises:
    UserError: one line: no such field, or a value of another type.
  """
  changed = config.copy_and_resolve_references()
  for name, value in named(overrides).items():
    fields_lib.check_field(fields_lib.flatten(config), name)
    section = config
    *sections, field = name.split('.')
    for part in sections:
      section = section[part]
    parsed = _parsed(name, value, section.get_type(field))
    try:
      changed.update_from_flattened_dict({name: parsed})
    except TypeError as error:
      raise _wrong_type(name, value, section.get_type(field)) from error
  return changed


def named(overrides: Sequence[str]) -> dict[str, str]:
  """{'section.field': its value as a text} of overrides.

  Raises:
    UserError: one line: one of them is none.
  """
  found = {}
  for text in overrides:
    name, equals, value = text.partition('=')
    if not equals:
      raise UserError(
        f'{text!r} is not an override; wanted section.field=value'
      )
    found[name.strip().removeprefix('config.')] = value.strip()
  return found


def _parsed(name, text, kind):
  """The value that `text` gives a field of type `kind`."""
  # A field without a value so far, such as data.source, takes a text.
  if kind in (str, type(None)):
    return None if text == 'None' else text
  if kind is bool:
    text = text.capitalize()
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError) as error:
    raise _wrong_type(name, text, kind) from error
  if value is None or isinstance(value, bool) != (kind is bool):
    raise _wrong_type(name, text, kind)
  return value


def _wrong_type(name, text, kind):
  return UserError(f'config.{name} is {text!r}; it must be a {kind.__name__}')


def resolved(
  config: ConfigDict, name: str, overrides: Sequence[str], seed: int,
  resolve: Callable[[ConfigDict], ConfigDict],
) -> Any:  # fmt: skip
  """The checked config of one run of a study.

  Args:
    config: of the study, before it is resolved.
    name: of the row or method, for an error.
    overrides: of the row.
    seed: of the training.
    resolve: config -> resolved config (dpjax.config.resolve).

  Raises:
    UserError: one line that names the row and the field.
  """
  try:
    return resolve(apply_overrides(config, [*overrides, f'seed={seed}']))
  except UserError as error:
    raise UserError(f'{name!r}: {error}') from error


def check_set(
  config: ConfigDict, name: str, overrides: Sequence[str]
) -> None:  # fmt: skip
  """Refuses a row that asks its prepared set for what that does not have.

  Args:
    config: of one of its runs (`resolved`); its set is there.
    name: of the row.
    overrides: of the row.

  Raises:
    UserError: one line that names the row, the field, and what the set has.
  """
  try:
    prepare.check_asked(config, named(overrides))
  except UserError as error:
    raise UserError(f'{name!r}: {error}') from error


def slug(name: str) -> str:
  """The folder of a row: '+ mask-guided attention' -> 'mask-guided-attention'.

  Raises:
    UserError: nothing is left.
  """
  found = re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')
  if not found:
    raise UserError(
      f'{name!r} needs a letter or digit: a folder is named after it'
    )
  return found


def check_names(names: Sequence[str]) -> None:
  """Raises UserError where two names give one folder."""
  seen: dict[str, str] = {}
  for name in names:
    if (other := seen.setdefault(slug(name), name)) is not name:
      raise UserError(
        f'{other!r} and {name!r} are both kept in {slug(name)}; rename one'
      )


def short(folder: pathlib.Path) -> str:
  """A run's folder in its study: 'seed0/resnet18'."""
  return '/'.join(folder.parts[-2:])


def place(workdir: str | pathlib.Path, name: str, seed: int) -> pathlib.Path:
  """The folder of one run."""
  return pathlib.Path(workdir) / f'seed{seed}' / slug(name)


def network(config: ConfigDict, workdir: str | pathlib.Path, name: str) -> Task:
  """The task of stage II, after its stage I where init.backbone is 'auto'.

  With finetune.epochs above 0, that of fine-tuning, after both.

  Args:
    config: as resolved; stays as it is.
    workdir: of the study.
    name: of the row or method.
  """
  task = make_task(config, workdir, name, 'retrain', config.init.backbone)
  if not config.finetune.epochs:
    return task
  retraining = dataclasses.replace(task, workdir=task.workdir / 'retrain')
  config = task.config.copy_and_resolve_references()
  config.stage = 'finetune'
  config.init.backbone = str(retraining.workdir)
  return dataclasses.replace(
    task,
    workdir=task.workdir / 'finetune',
    config=config,
    retraining=retraining,
  )


def share_stage_two(tasks: Sequence[Task]) -> list[Task]:
  """The tasks of a study, in which equal stages II of a seed are trained once.

  A task is fine-tuned from the stage II of the first task that equals its own
  and ends with it, else of the first one that is fine-tuned. What has begun
  with one of its own, or from another one, goes on so.

  Args:
    tasks: of networks, as `network` makes them.
  """
  ends = {
    (task.workdir, _stage_two(task.config)): task
    for task in tasks
    if task.retraining is None
  }
  begun = {task.folder: _as_begun(task, ends) for task in tasks}
  first: dict[str, Task] = {}
  # Those that end with stage II train it in any case.
  for task in sorted(
    tasks,
    key=lambda task: (task.retraining is not None, begun[task.folder] is None),
  ):
    known = begun[task.folder] or task
    stage_two = known.retraining or known
    first.setdefault(_stage_two(stage_two.config), stage_two)

  def settled(task):
    if task.retraining is None or begun[task.folder]:
      return begun[task.folder] or task
    return _fine_tuned_from(task, first[_stage_two(task.retraining.config)])

  return [settled(task) for task in tasks]


def _as_begun(task, ends):
  """A fine-tuning as it has begun; None for one that has not.

  `ends` holds the tasks that end with stage II, by where and which it is.
  """
  if task.retraining is None:
    return None
  record = task.workdir / 'config.json'
  if record.is_file():
    # In this study, though it be a copy of the one that is on record.
    source = record_lib.under(
      task.folder.parent, record_lib.load(record).init.backbone or ''
    )
    if source and source != task.retraining.workdir and _exists(source):
      own = dataclasses.replace(task.retraining, workdir=source)
      key = source, _stage_two(own.config)
      return _fine_tuned_from(task, ends.get(key, own))
  return task if _exists(task.retraining.workdir) else None


def _exists(workdir):
  return (workdir / 'config.json').is_file()


def _fine_tuned_from(task, stage_two):
  """The task, fine-tuned from another's stage II."""
  config = task.config.copy_and_resolve_references()
  config.init.backbone = str(stage_two.workdir)
  return dataclasses.replace(task, config=config, retraining=stage_two)


def _stage_two(config):
  """All that stage II reads of a task's config, as a text."""
  lines = record_lib.differences({}, config)
  return '\n'.join([os.path.realpath(config.data.path), *lines])


def make_task(
  config: ConfigDict, workdir: str | pathlib.Path, name: str, stage: str,
  backbone: str | None,
) -> Task:  # fmt: skip
  """A task whose record says `stage`, and where it starts from.

  Args:
    config: as resolved; stays as it is.
    workdir: of the study.
    name: of the row or method.
    stage: what is trained.
    backbone: 'auto' for the stage I of `config`, else as init.backbone.
  """
  config = config.copy_and_resolve_references()
  config.stage = stage
  pretraining = None
  if backbone == 'auto':
    key = pretraining_key(config)
    pretraining = place(workdir, f'pretrain-{key}', config.seed)
    backbone = str(pretraining)
  folder = place(workdir, name, config.seed)
  config.init.backbone = backbone
  return Task(name, folder, config, pretraining)


def pretraining_key(config: ConfigDict) -> str:
  """Eight hex digits of all that stage I reads of a resolved config.

  Configs of one key have the same stage I, whatever their stage II.
  """
  # Against nothing, the differences are all fields that make the run. One that
  # came later counts where it says something new: the studies of before go on.
  stage_one = _without_news(config)
  stage_one.stage = 'pretrain'
  lines = record_lib.differences({}, stage_one)
  read = '\n'.join(line for line in lines if not line.startswith('stage:'))
  return xxhash.xxh3_64_hexdigest(read.encode())[:8]


def _without_news(config):
  """The config without the fields that do as runs did before there were any.

  Nor those that are left to a run ('auto'). But two of model: the first studies
  had them.
  """
  table = fields_lib.table()
  return fields_lib.typed(
    {
      name: value
      for name, value in fields_lib.flatten(config).items()
      if name in ('model.network', 'model.stem')
      or table[name].before is fields_lib.ALWAYS
      or value not in (table[name].before, 'auto')
    }
  )


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
  if not _exists(folder):
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
  if task.stage_two_elsewhere and not _exists(task.stage_two_elsewhere):
    return run  # It was removed, to be trained again.
  if not (task.workdir / 'config.json').is_file() or _changed(task):
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
