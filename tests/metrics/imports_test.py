"""What the room of metrics stands on."""

import pkgutil
import subprocess
import sys

from dpjax import metrics


def test_metrics_import_neither_jax_nor_flax_nor_a_config():
  modules = [
    f'dpjax.metrics.{found.name}'
    for found in pkgutil.iter_modules(metrics.__path__)
  ]
  assert 'dpjax.metrics.scores' in modules
  program = (
    'import importlib, sys\n'
    f'for name in {modules}: importlib.import_module(name)\n'
    "heavy = {'jax', 'jaxlib', 'flax', 'ml_collections'} & set(sys.modules)\n"
    "print(heavy, [m for m in sys.modules if m.startswith('dpjax.config')])"
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'set() []\n'
