"""Where runs of a study work side by side: on GPUs, or parts of the cores."""

import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping

from dpjax import signals
from dpjax.errors import UserError

_MEMORY = 0.9  # of a GPU, for all that share it
_PROBE = 'import jax; print(jax.default_backend(), jax.local_device_count())'


@dataclasses.dataclass(frozen=True)
class Place:
  """Where one process at a time runs.

  Attributes:
    name: 'GPU 3', 'cores 0-3'.
    variables: of the environment, beside those of all.
    cores: that it may use; None: all.
  """

  name: str
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  cores: frozenset[int] | None = None


def devices(environment: Mapping[str, str]) -> tuple[str, int]:
  """JAX's platform and how many devices it has, found by another process.

  Raises:
    UserError: one line: JAX finds none.
  """
  if environment.get('JAX_PLATFORMS') == 'cpu':
    return 'cpu', 1
  with signals.no_interrupt_for_children():
    found = subprocess.run(
      [sys.executable, '-c', _PROBE], env=environment, capture_output=True,
      text=True, check=False,
    )  # fmt: skip
  signals.check()
  if found.returncode:
    lines = found.stderr.strip().splitlines() or ['no word']
    raise UserError(f'--jobs: JAX finds no device ({lines[-1]})')
  platform, count = found.stdout.split()[-2:]
  return platform, int(count)


def make_places(
  jobs: int,
  per_device: int | None,
  platform: str,
  num_devices: int,
  environment: Mapping[str, str],
) -> list[Place]:
  """Where so many processes run: on GPUs in turn, or on parts of the cores.

  Args:
    jobs: how many at once.
    per_device: how many may share a GPU, each with an equal part of its memory;
      None: one.
    platform: JAX's.
    num_devices: of it.
    environment: of this process. CUDA_VISIBLE_DEVICES says which GPUs,
      XLA_PYTHON_CLIENT_MEM_FRACTION how much of their memory.

  Raises:
    UserError: one line: there are not so many devices, or of another kind.
  """
  share = 1 if per_device is None else per_device
  if jobs < 1 or share < 1:
    raise UserError(f'--jobs={jobs}, --jobs_per_device={per_device}; wanted 1'
                     ' or more')  # fmt: skip
  if platform == 'cpu':
    return _parts_of_cores(jobs, per_device)
  if platform != 'gpu':
    raise UserError(f'--jobs is for GPUs and CPUs, and here is a {platform}')
  if jobs > share * num_devices:
    raise UserError(
      f'--jobs={jobs}: {num_devices} GPU{"s" * (num_devices > 1)} with {share}'
      f' on each; --jobs_per_device={-(-jobs // num_devices)} would do'
    )
  visible = environment.get('CUDA_VISIBLE_DEVICES', '')
  names = [name for name in visible.split(',') if name]
  names = names or [*map(str, range(num_devices))]
  memory = {}
  if share > 1:
    whole = environment.get('XLA_PYTHON_CLIENT_MEM_FRACTION', _MEMORY)
    fraction = float(whole) / share
    memory = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{fraction:.3f}'}
  return [
    Place(f'GPU {name}', {'CUDA_VISIBLE_DEVICES': name, **memory})
    for name in (names[i % num_devices] for i in range(jobs))
  ]


def _parts_of_cores(jobs, per_device):
  if per_device is not None:
    raise UserError('--jobs_per_device is for GPUs; here are cores')
  if not hasattr(os, 'sched_getaffinity'):  # Only Linux has it.
    return [Place(f'place {i}') for i in range(jobs)]
  cores = sorted(os.sched_getaffinity(0))
  if jobs > len(cores):
    raise UserError(
      f'--jobs={jobs}: this machine has {len(cores)} core'
      f'{"s" * (len(cores) > 1)} for it'
    )
  ends = [len(cores) * i // jobs for i in range(jobs + 1)]
  parts = [cores[a:b] for a, b in itertools.pairwise(ends)]
  return [
    Place(
      f'core{"s" * (len(part) > 1)} {",".join(map(str, part))}',
      cores=frozenset(part),
    )
    for part in parts
  ]
