"""Every test sees eight CPU devices and strict broadcasting."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

# These are read once, when JAX starts its backend: set them before the import.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Workers of pytest-xdist start with the environment that is made here.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  # The tests compile much and compute little. XLA's emitters of before, which
  # jax 0.10 still has, compile a step in two fifths of the time where code is
  # to be short. XLA_FLAGS that are given, even empty, stand instead; later
  # versions are left as they are.
  quick = ''
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    quick = (
      '--xla_cpu_use_fusion_emitters=false'
      ' --xla_backend_extra_options=xla_cpu_optimize_for_size'
    )
  os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', quick)
    + ' --xla_force_host_platform_device_count=8'
  )
  # Many tests compile the same small step, some in processes of their own: once
  # is enough. The cache is this session's alone.
  _CACHE = tempfile.mkdtemp(prefix='dpjax-tests-')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE
else:
  # Workers share the cores, and threads of OpenMP that wait for one another
  # burn theirs meanwhile: scikit-learn fits in an eighth of the time so.
  os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax
import pytest

# Begun first, so that no worker is left alone with one of them at the end.
_LONGEST = (
  'distributed/several_processes_test.py',
  'training/loop_test.py',
  'distributed/parallel_test.py',
  'main_test.py',
  'benchmarks/chaos_test.py',
  'training/disk_test.py',
  'training/objectives_test.py',
  'tutorial_test.py',
  'losses_test.py',
  'training/packed_test.py',
  'benchmark/benchmark_test.py',
  'earlier_version_test.py',
)

# (N,) with (N, 1) is (N, N) in silence: the classic mistake in a loss.
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_modifyitems(config, items):
  """The longest files first, all others in their order."""
  tests = config.rootpath / 'tests'
  turn = {tests / name: i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda item: turn.get(item.path, len(turn)))


def pytest_collection_finish():
  """What is there by now stays; tracing makes many objects and few cycles."""
  gc.freeze()
  gc.set_threshold(50_000)


def pytest_runtest_setup(item):
  """Skips what bears the mark `torch` where PyTorch is not installed."""
  if item.get_closest_marker('torch'):
    pytest.importorskip('torch')
