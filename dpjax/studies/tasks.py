"""The tasks of a study: what each of its runs is, and where it is kept.

A study's workdir holds, for each seed, a folder a run and the stages I that
runs share:

    seed0/pretrain-1f2e3d4c/    stage I, shared by all runs that equal it
    seed0/resnet18/             a stage II workdir, evaluated

With finetune.epochs above 0 the latter holds retrain/ and finetune/, of which
the second is evaluated, as a recipe's folder does; where another run has the
same stage II, finetune/ alone.
"""

import ast
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import xxhash
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.errors import UserError


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
  if has_begun(task.workdir):
    record = record_lib.load(task.workdir / 'config.json')
    # In this study, though it be a copy of the one that is on record.
    source = record_lib.under(task.folder.parent, record.init.backbone or '')
    if source and source != task.retraining.workdir and has_begun(source):
      own = dataclasses.replace(task.retraining, workdir=source)
      key = source, _stage_two(own.config)
      return _fine_tuned_from(task, ends.get(key, own))
  return task if has_begun(task.retraining.workdir) else None


def has_begun(workdir: pathlib.Path) -> bool:
  """Whether a run was begun there."""
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
