"""Where and with what a benchmark was made, as it stands in benchmark.json."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

from ml_collections import ConfigDict

from dpjax import atomic

# Variables that are put on record, by how they begin.
_ENVIRONMENT = ('XLA_', 'JAX_', 'LIBTPU_', 'CUDA_VISIBLE_DEVICES', 'OMP_')
_PACKAGES = ('dpjax', 'jax', 'jaxlib', 'flax', 'optax', 'grain', 'numpy')
_COMPILERS = ('libtpu', 'jax-cuda13-plugin', 'jax-cuda12-plugin')


def circumstances(config: ConfigDict, *packages: str) -> dict[str, Any]:
  """'started', 'command', 'host', 'versions', 'environment' and 'config'.

  Args:
    config: as resolved.
    *packages: whose versions count beside our own.
  """
  versions = {'python': platform.python_version()}
  for name in (*_PACKAGES, *_COMPILERS, *packages):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return {
    'finished': False,
    'started': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
    'command': sys.argv,
    'host': {
      'system': platform.platform(),
      'cpus': os.cpu_count(),
      'load_at_start': os.getloadavg()[0],
    },
    'versions': versions,
    'environment': {
      name: os.environ[name]
      for name in sorted(os.environ)
      if name.startswith(_ENVIRONMENT)
    },
    'config': config.to_dict(),
  }


def write(workdir: pathlib.Path, found: dict[str, Any], page: str) -> None:
  """Writes benchmark.json, and the page as benchmark.md."""
  atomic.write_json(workdir / 'benchmark.json', found)
  atomic.write_text(workdir / 'benchmark.md', page + '\n')
