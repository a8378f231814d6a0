"""config.json: a run's own config, and what of it may change."""

import json
import pathlib

import ml_collections

from dpjax import atomic
from dpjax.config.fields import flatten

# Fields that earlier versions did not record, and what they did.
_EARLIER = {
  'model.network': 'resnet',
  'model.stem': 'conv',
  'retrain.freeze': False,
}

# Fields that may differ between two starts of one run.
_FREE = ('data.source', 'data.path', 'data.threads', 'data.prefetch',
         'data.workers', 'data.placement', 'model.stem',
         'train.steps_per_dispatch', 'train.save_every', 'train.log_every',
         'train.keep', 'train.tensorboard', 'train.progress', 'evaluate.',
         'ablate.', 'compare.', 'benchmark.', 'parallel.')  # fmt: skip


def save(config, path):
  """Writes config.json, whole or not at all."""
  atomic.write_json(path, config.to_dict())


def load(path):
  """Reads a config.json, of an earlier version too; lists become tuples."""

  def tuples(value):
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value

  config = ml_collections.ConfigDict(
    tuples(json.loads(pathlib.Path(path).read_text()))
  )
  for name, value in _EARLIER.items():
    section, field = name.split('.')
    if section in config and field not in config[section]:
      config[section][field] = value
  return config


def differences(old, new):
  """['field: old -> new'] of the fields that may not change in a resume."""
  old, new = flatten(old), flatten(new)
  return [
    f'{name}: {old.get(name)!r} -> {new.get(name)!r}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not name.startswith(_FREE)
  ]
