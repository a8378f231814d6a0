"""config.json: the config of a run, and what of it may change."""

import json
import pathlib
from typing import Any

import ml_collections

from dpjax import atomic
from dpjax.config import fields
from dpjax.errors import UserError


def save(config: Any, path: str | pathlib.Path) -> None:
  """Writes config.json, whole or not at all."""
  atomic.write_json(path, config.to_dict())


def load(path: str | pathlib.Path) -> ml_collections.ConfigDict:
  """Reads a config.json, of an earlier version too.

  Raises:
    UserError: it holds no config.
  """
  try:
    record = json.loads(pathlib.Path(path).read_text())
  except ValueError as error:  # of JSON or of UTF-8
    raise UserError(f'{path} is damaged ({error})') from error
  if not isinstance(record, dict):
    raise UserError(f'{path} is damaged (it holds no sections)')
  values = {
    name: fields.as_tuples(value)
    for name, value in fields.flatten(record).items()
  }
  for name, field in fields.table().items():
    if field.before is not fields.ALWAYS and name.split('.')[0] in record:
      values.setdefault(name, field.before)
  return fields.typed(values)


def differences(old: Any, new: Any) -> list[str]:
  """['field: old -> new'] of the fields that may not change in a resume.

  An 'auto' agrees with whatever it stands for: earlier versions recorded it.
  """
  old, new = fields.flatten(old), fields.flatten(new)
  return [
    f'{name}: {old.get(name)!r} -> {new.get(name)!r}'
    for name in sorted((old.keys() | new.keys()) - fields.marked('resume'))
    if old.get(name) != new.get(name)
    and not (name in old and name in new and _any_auto(name, old, new))
  ]


def _any_auto(name, *configs):
  field = fields.table().get(name)
  return (
    field is not None
    and field.default == 'auto'
    and any(config[name] == 'auto' for config in configs)
  )


def on_this_machine(recorded: Any, here: Any) -> ml_collections.ConfigDict:
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
