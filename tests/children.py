"""The environment of processes that tests start."""

import os
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(devices: int = 1) -> dict[str, str]:
  """This process's, for one with so many CPU devices that imports this tree."""
  count = re.compile('(?<=xla_force_host_platform_device_count=)[0-9]+')
  return {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'XLA_FLAGS': count.sub(str(devices), os.environ['XLA_FLAGS']),
  }
