"""Configs as a user gives them, and resolved as on a machine."""

import pathlib
import runpy

from dpjax.config import resolve as resolve_lib

ROOT = pathlib.Path(__file__).parents[2]


def make(file='retrain', variant='', **changes):
  """What configs/FILE.py gives, with double underscores for dots."""
  path = ROOT / 'configs' / f'{file}.py'
  config = runpy.run_path(str(path))['get_config'](variant)
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return config


def resolve(*, num_devices=1, platform='cpu', num_processes=1, **changes):
  """`make` and resolve, with the changes in its bounds or not."""
  return resolve_lib.resolve(
    make(**changes),
    num_devices=num_devices,
    platform=platform,
    num_processes=num_processes,
  )
