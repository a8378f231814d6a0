"""Every test sees eight CPU devices and strict broadcasting."""

import atexit
import os
import shutil
import tempfile

# These are read once, when JAX starts its backend: set them before the import.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()
# Many tests compile the same small step, some in processes of their own: once
# is enough. The cache is this session's alone. Workers of pytest-xdist share
# it: they start with this process's environment.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix='dpjax-tests-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax
import pytest

# (N,) with (N, 1) is (N, N) in silence: the classic mistake in a loss.
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_runtest_setup(item):
  """Skips what bears the mark `torch` where PyTorch is not installed."""
  if item.get_closest_marker('torch'):
    pytest.importorskip('torch')
