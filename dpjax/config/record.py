"""config.json: the config of a run, and what of it may change."""

import os
import pathlib
import re

import ml_collections

from dpjax import atomic
from dpjax.config import fields
from dpjax.errors import UserError

# What compare records of a method without a network; no flag gives it.
_CLASSICAL = 'stage', 'classical'
_SEED = re.compile('seed[0-9]+')  # a folder of a study (studies.tasks)
# What a stage does not read, beside the fields that may change in a run.
_UNREAD = {
  'pretrain': ('retrain.', 'finetune.', 'loss.', 'mgacr.', 'init.',
               'evaluate.', 'eval.best'),
  'retrain': ('finetune.',),
}  # fmt: skip


def save(config: ml_collections.ConfigDict, path: str | pathlib.Path) -> None:
  """Writes config.json, whole or not at all.

  A backbone that stands beside the run, as a recipe's stage I does, is recorded
  as ../NAME, relative to the run: both may move.
  """
  record = config.to_dict()
  backbone = record.get('init', {}).get('backbone')
  if backbone not in (None, 'auto'):
    backbone = seen_from(pathlib.Path(path).parent, backbone)
    record['init']['backbone'] = backbone
  atomic.write_json(path, record)


def seen_from(workdir: str | pathlib.Path, backbone: str) -> str:
  """../NAME of a run that stands beside another; else the path as given."""
  around, name = os.path.split(os.path.realpath(backbone))
  beside = around == os.path.dirname(os.path.realpath(workdir))
  if beside and os.path.isdir(backbone):
    return f'../{name}'
  # As given, but not to be taken for the former.
  return os.path.abspath(backbone) if backbone.startswith('..') else backbone


def load(
  path: str | pathlib.Path, *, whole: bool = False
) -> ml_collections.ConfigDict:
  """Reads a config.json, of an earlier version too.

  Args:
    path: of the file.
    whole: refuse one that lacks a field.

  Raises:
    OSError: as open.
    UserError: it holds no config, or a value that a flag could not give.
  """
  record = atomic.read_json(path)
  declared = fields.table()
  values = {}
  try:
    for name, value in fields.flatten(record).items():
      fields.check_field(declared, name)
      if (name, value) == _CLASSICAL:
        values[name] = value
      else:
        values[name] = declared[name].checked(name, value)
  except RecursionError:
    raise UserError(f'{path} is damaged (nested too deep)') from None
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  for name, field in declared.items():
    if field.before is not fields.ALWAYS:
      values.setdefault(name, field.before)
    if whole and name not in values:
      raise UserError(f'{path}: config.{name} is missing')
  if (backbone := values.get('init.backbone')) is not None:
    folder = pathlib.Path(path).parent
    values['init.backbone'] = (
      _beside(folder, backbone) or _in_study(folder, backbone) or backbone
    )
  return fields.typed(values)


def _beside(folder, backbone):
  """What ../NAME in the record of `folder` means here; None for another path.

  Earlier versions recorded what was given, relative to where they were run.
  """
  if not re.fullmatch(r'\.\./[^/]+', backbone):
    return None
  if os.path.islink(folder):
    folder = os.path.realpath(folder)
  there = os.path.normpath(os.path.join(folder, backbone))
  return (
    there if os.path.exists(there) or not os.path.exists(backbone) else None
  )


def _in_study(folder, backbone):
  """Where a run of the study that `folder` is of lies since it was moved."""
  if os.path.exists(backbone):
    return None
  for seed in pathlib.Path(folder).absolute().parents:
    if _SEED.fullmatch(seed.name) and (there := under(seed, backbone)):
      return str(there) if there.exists() else None
  return None


def under(seed: pathlib.Path, backbone: str) -> pathlib.Path | None:
  """The place under a study's `seed`, its folder seedN, that a path names.

  Args:
    seed: .../seedN, of any study.
    backbone: .../seedN/TAIL, wherever that study was.

  Returns:
    seed/TAIL; None for a path without such a folder.
  """
  parts = pathlib.Path(backbone).parts
  if seed.name not in parts:
    return None
  return seed.joinpath(*parts[len(parts) - parts[::-1].index(seed.name) :])


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> list[str]:
  """['field: old -> new'] of the fields that may not change in a resume.

  An 'auto' agrees with whatever it stands for: earlier versions recorded it.
  The backbone may have been moved, or be named in another way. What is for the
  stages after it may change until they begin.
  """
  old, new = fields.flatten(old), fields.flatten(new)
  names = (old.keys() | new.keys()) - fields.marked('resume')
  unread = _UNREAD.get(new.get('stage'), ())
  names = {name for name in names if not name.startswith(unread)}
  return [
    f'{name}: {old.get(name)!r} -> {new.get(name)!r}'
    for name in sorted(names)
    if old.get(name) != new.get(name)
    and not (name in old and name in new and _agree(name, old, new))
  ]


def _agree(name, old, new):
  if name == 'init.backbone' and None not in (old[name], new[name]):
    return _any_auto(name, old, new) or _same_run(old[name], new[name])
  return _any_auto(name, old, new)


def _same_run(old, new):
  """Whether the path on record and the one given are of one run.

  Under another path the same run may stand because it was moved, so that
  nothing is where it was, or copied, with its config.json.
  """
  if os.path.realpath(old) == os.path.realpath(new):
    return True
  old, new = pathlib.Path(old).absolute(), pathlib.Path(new).absolute()
  if old.name != new.name or not (new / 'config.json').is_file():
    return False
  if not old.exists():
    return True
  if not (old / 'config.json').is_file():
    return False
  # Where that one started from does not count: it could be asked for ever.
  old, new = (
    fields.flatten(load(folder / 'config.json')) | {'init.backbone': None}
    for folder in (old, new)
  )
  return not differences(old, new)


def _any_auto(name, *configs):
  field = fields.table().get(name)
  return (
    field is not None
    and field.default == 'auto'
    and any(config[name] == 'auto' for config in configs)
  )


def set_path(
  recorded: ml_collections.ConfigDict, here: ml_collections.ConfigDict
) -> str:
  """Where the prepared set of a run is: as recorded, unless it was moved.

  Args:
    recorded: config of the run.
    here: config whose data.path counts where the recorded one is gone.
  """
  own, other = str(recorded.data.path), here.data.path
  moved = other and not pathlib.Path(own).exists()
  return str(other) if moved and pathlib.Path(other).exists() else own


def on_this_machine(
  recorded: ml_collections.ConfigDict, here: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """The recorded config of a run, to be opened on this machine.

  Args:
    recorded: of the run, whichever machine it was trained on.
    here: any config as resolved on this one; the machine's fields count.
  """
  machine = {
    name: value
    for name, value in fields.flatten(here).items()
    if name in fields.marked('machine')
  }
  return fields.typed({**fields.flatten(recorded), **machine})
