"""The prepare command: a raw set, or the phantom, becomes a prepared set."""

import copy
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dpjax.config import fields as fields_lib
from dpjax.data import store
from dpjax.data.prepare import labels, summary
from dpjax.data.sources import phantom, registry, tables
from dpjax.errors import UserError, warn


def prepare(
  config: ConfigDict,
  *,
  on_error: str = 'fail',
  strict: bool = False,
  beam: tuple[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
  """Prepares the set that config.data describes; returns its summary.

  A set that is already there, made from the same source in the same way, is
  kept as it is; so is any without a source to compare with.

  Args:
    config: as resolved (dpjax.config.resolve).
    on_error: 'fail' at the first fault of the source, or 'skip' what is at
      fault and list it in quarantine.csv.
    strict: what the summary warns of is a fault; the set is not made.
    beam: see runners.run.

  Raises:
    UserError: one line that names what is wrong with the source, or that
      another set is in the way.
  """
  # Training imports this module, and not what only preparing needs.
  from dpjax.data.prepare import build, guards

  data, split = config.data, config.split
  if data.layout != 'phantom' and data.source is None:
    made = store.read_summary(data.path)
    guards.check(made.get('warnings'), strict, data.path)
    return {**made, 'path': str(data.path), 'reused': True}
  faults = tables.Faults(on_error)
  records, provenance, columns = _read(config, faults)
  records, class_names = labels.assign(
    records,
    data.label,
    cap=data.label_cap,
    findings=data.findings,
    classes=data.classes,
  )
  odd = [r for r in records if r.findings == () and r.boxes]
  if odd:
    warn(
      f'{odd[0].where} ({odd[0].id}) has boxes and is said to be without a'
      f' finding ({len(odd)} such)'
    )
  if split.unit == 'image':
    warn(
      'config.split.unit=image, as in the paper: images of one patient may be'
      ' on both sides of a split, and scores then look better than they are'
    )
  return build.build(
    records,
    data.path,
    name=data.layout,
    provenance=provenance,
    columns=columns,
    class_names=class_names,
    settings=build.Settings(
      size=data.store_size,
      fit=data.fit,
      unit=split.unit,
      seed=split.seed,
      given=split.given,
      test=split.test,
      validation=split.validation,
      near=split.near,
    ),
    faults=faults,
    strict=strict,
    workers=data.workers,
    beam=beam,
    progress=config.train.progress,
  )


def _read(config, faults):
  """The records, what they depend on, and what 'auto' fields stand for."""
  data = config.data
  table, flat = fields_lib.table(), fields_lib.flatten(config)
  provenance = {
    name: list(flat[name]) if isinstance(flat[name], tuple) else flat[name]
    # Left out where it is as before there was the field: else a set that is
    # older than the field would be another one.
    for name in table
    if table[name].source and flat[name] != table[name].before
  }
  if data.layout == 'phantom':
    count, seed = data.phantom.count, data.phantom.seed
    size = max(256, data.store_size)
    records = phantom.read(count, seed, size, data.phantom.least)
    return (
      records,
      {
        **provenance,
        'data.phantom.version': phantom.VERSION,
        'data.phantom.count': count,
        'data.phantom.seed': seed,
      },
      {},
    )
  source = pathlib.Path(data.source)
  if not source.is_dir():
    raise UserError(f'config.data.source: {source} is not a folder')
  fields = fields_lib.flatten(data)
  records, found = registry.read(data.layout, source, faults, fields)
  return records, provenance, {f'data.{k}': v for k, v in found.items()}


def prepare_missing(config: ConfigDict) -> None:
  """Prepares the set of config.data and says so, if it is not there.

  Raises:
    UserError: what `prepare` raises; or there is no source either: with the
      command that makes the set.
  """
  data, path = config.data, pathlib.Path(config.data.path)
  if path.exists():
    return
  if data.layout == 'phantom':
    what = f'{data.phantom.count} phantom radiographs'
  elif data.source and pathlib.Path(data.source).is_dir():
    what = f'the {data.layout} set in {data.source}'
  else:
    raise UserError(
      f'config.data.path: {path} is not there; make it by the same flags'
      ' after python -m dpjax.main prepare, with --config.data.source='
      f'{data.source or "FOLDER"}'
    )
  print(f'{path} is not there: preparing {what}', flush=True)
  print(summary.format_summary(prepare(config)), flush=True)


def open_prepared(config: ConfigDict) -> store.Store:
  """The prepared set of config.data, which is made if it is not there.

  Raises:
    UserError: what `prepare_missing` raises, or the set is broken.
  """
  prepare_missing(config)
  return store.load(pathlib.Path(config.data.path))


def as_made(config: ConfigDict) -> Any:
  """The config with what its prepared set was made with, if it is there.

  A run takes the set as it is, so this is what its record must say.

  Args:
    config: as resolved; stays as it is.
  """
  config = copy.deepcopy(config)
  made = _summary(config.data.path)
  config.update_from_flattened_dict(_made_with(made) if made else {})
  return config


def check_asked(config: ConfigDict, asked: Mapping[str, Any]) -> None:
  """Refuses what is asked of a prepared set that was made in another way.

  Without this a run would take the set as it is under the name of what was
  asked for.

  Args:
    config: as resolved.
    asked: {field: value as it was given} of flags, or of a study's row.

  Raises:
    UserError: one line: the field, what it is, and what the set has.
  """
  path = config.data.path
  for name, (own, made) in _overruled(config).items():
    if asked.get(name, 'auto') != 'auto':
      fields_lib.refuse(
        name,
        own,
        f'{made!r}, as the prepared set {path} has it; for another set name a'
        ' data.path of its own',
      )


def warn_overruled(config: ConfigDict) -> None:
  """Says in a line what of a config its prepared set overrules.

  What stands at its default is not said: a set may be named by its path alone.

  Args:
    config: as resolved.
  """
  table = fields_lib.table()
  given = [
    f'{name}={made!r}, not {own!r}'
    for name, (own, made) in _overruled(config).items()
    if own != table[name].default
    # By the layout, which may not have been given.
    and (name, own) != ('data.label', registry.label_policy(config.data.layout))
  ]
  if given:
    warn(f'{config.data.path} was prepared with {", ".join(given)}')


def _overruled(config):
  """{field: (value in the config, in its prepared set)} where they differ."""
  made = _summary(config.data.path)
  if made is None:
    return {}
  # These name a set and are not taken over from it: its path is enough.
  names = {'data.phantom.count', 'data.phantom.seed'} & {*made['provenance']}
  fields = _made_with(made) | {n: made['provenance'][n] for n in names}
  flat = fields_lib.flatten(config)
  return {
    name: (flat[name], value)
    for name, value in fields.items()
    if flat[name] != value and 'auto' not in (flat[name], value)
  }


def _summary(path):
  """Of the prepared set there; None without one."""
  if not (pathlib.Path(path) / 'summary.json').is_file():
    return None
  return store.read_summary(path)


def _made_with(made):
  """{field: value} that the set of this summary was made with."""
  found = {
    name: made['provenance'].get(name, field.before)
    for name, field in fields_lib.table().items()
    if field.source
    and (name in made['provenance'] or field.before is not fields_lib.ALWAYS)
  }
  found = {k: fields_lib.as_tuples(value) for k, value in found.items()}
  found |= {'data.store_size': made['size'], 'data.fit': made['fit']}
  for field in ('unit', 'seed', 'given', 'test', 'validation', 'near'):
    found[f'split.{field}'] = made[field]
  # What a reader of tables took 'auto' for; earlier versions did not say.
  return found | made.get('columns', {})
