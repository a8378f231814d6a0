"""The prepare command: a raw set, or the phantom, becomes a prepared set."""

import os
import pathlib
from typing import Any

from dpjax.data import store


def prepare(config: Any) -> dict[str, Any]:
  """Prepares the set that config.data describes; returns its summary.

  A set that is already there, made from the same source in the same way, is
  kept as it is.

  Args:
    config: as resolved (dpjax.config.resolve).

  Raises:
    ValueError: one line that names what is wrong with the source, or that
      another set is in the way.
  """
  data = config.data
  readers = {'phantom': _phantom, 'competition': _competition}
  radiographs, provenance = readers[data.layout](data)
  return store.prepare(
    radiographs,
    data.path,
    name=data.layout,
    provenance=provenance,
    size=data.store_size,
    split_seed=data.split_seed,
    workers=data.workers or os.cpu_count(),
    progress=config.train.progress,
  )


def _phantom(data):
  from dpjax.data.readers import phantom

  settings = {
    'version': phantom.VERSION,
    'count': data.phantom.count,
    'seed': data.phantom.seed,
  }
  radiographs = phantom.read(
    data.phantom.count, data.phantom.seed, size=max(256, data.store_size)
  )
  return radiographs, {'layout': 'phantom', **settings}


def _competition(data):
  from dpjax.data.readers import competition

  if data.source is None:
    raise ValueError(
      'config.data.source is None; it must be the folder of the competition set'
    )
  source = pathlib.Path(data.source)
  return competition.read(source), {'layout': 'competition'}


def open_prepared(config: Any) -> store.Store:
  """The prepared set of config.data; the phantom is prepared on first use.

  Raises:
    ValueError: the set is missing, with the command that makes it, or broken.
  """
  path = pathlib.Path(config.data.path)
  if not path.exists():
    if config.data.layout != 'phantom':
      raise ValueError(
        f'config.data.path: {path} is not there; make it by python -m'
        ' dpjax.main prepare --config=configs/retrain.py'
        f' --config.data.layout={config.data.layout}'
        f' --config.data.source={config.data.source or "FOLDER"}'
        f' --config.data.store_size={config.data.store_size}'
        f' --config.data.path={path}'
      )
    print(
      f'{path} is not there: preparing {config.data.phantom.count} phantom'
      ' radiographs',
      flush=True,
    )
    print(store.format_summary(prepare(config)), flush=True)
  return store.load(path)
