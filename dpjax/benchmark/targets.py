"""The devices that programs can be compiled for, and their figures.

A target is written as a device and how many of it: h100, h100x8, v5e:4x4.
None of them has to be there.
"""

import dataclasses
import difflib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from dpjax.distributed import parallel
from dpjax.errors import UserError

GPUS_A_MACHINE = 8
# InfiniBand NDR, 400 Gb/s, one port a GPU; bytes a second (NVIDIA, DGX H100
# datasheet, 2023).
NETWORK = 50e9
# What JAX takes of a GPU's memory by itself (XLA_PYTHON_CLIENT_MEM_FRACTION).
_MEMORY_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Cuda:
  """What XLA's compiler asks of an NVIDIA GPU.

  Attributes:
    capability: the compute capability; with an a, the features of it alone.
    cores: streaming multiprocessors.
    lanes: float32 units of each.
    clock: boost clock, GHz.
    cache: level 2, bytes.
    threads: that a core may hold.
    shared: memory of a core that threads share, bytes.
  """

  capability: str
  cores: int
  lanes: int
  clock: float
  cache: int
  threads: int
  shared: int


@dataclasses.dataclass(frozen=True)
class Device:
  """One device: figures of its maker, not measured by us.

  Attributes:
    kind: what JAX calls it (jax.Device.device_kind).
    memory: bytes.
    flops: dense bfloat16 products with float32 sums, operations a second.
    bandwidth: of its memory, bytes a second.
    link: to the other devices of a machine or slice, bytes a second out of one
      device.
    source: of these figures.
    cuda: what the compiler asks of a GPU.
    clock: of a TPU's core, Hz; with it cycles become seconds.
    cores_a_chip: devices that JAX sees in a TPU chip; all figures are of one.
  """

  kind: str
  memory: int
  flops: float
  bandwidth: float
  link: float
  source: str
  cuda: Cuda | None = None
  clock: float = 0.0
  cores_a_chip: int = 1

  @property
  def platform(self) -> str:
    """'gpu' or 'tpu'."""
    return 'gpu' if self.cuda else 'tpu'

  @property
  def usable(self) -> int:
    """Bytes of its memory that JAX has by default."""
    return int(self.memory * (_MEMORY_SHARE if self.cuda else 1))


_HOPPER = Cuda('9.0a', 132, 128, 1.98, 50 << 20, 2048, 228 << 10)
_BLACKWELL = functools.partial(Cuda, lanes=128, threads=2048, shared=228 << 10)
_AMPERE = Cuda('8.0', 108, 64, 1.41, 40 << 20, 2048, 164 << 10)
_ADA = functools.partial(Cuda, '8.9', lanes=128, threads=1536, shared=100 << 10)

# A TPU's clock is its peak over what its matrix units do in a cycle: of v4 and
# v5, four of 128 x 128 products in each core. Of v6e and TPU7x the maker names
# two of 256 x 256 a core, which would need 3.5 and 4.4 GHz: twice the products
# are taken for a cycle's, and times from their cycles are the least sure.
# Links are half of what the maker gives for both directions together.
# The figures for the compiler (Cuda, memory, bandwidth) of A100, H100, H200,
# B200 and RTX PRO 6000 are those of openxla/xla,
# xla/backends/gpu/target_config/specs; of the others they are NVIDIA's, as the
# source says.
DEVICES = {
  'a100': Device(
    'NVIDIA A100-SXM4-80GB', 85_100_068_864, 312e12, 2.039e12, 300e9,
    'NVIDIA, A100 Tensor Core GPU datasheet (2021), SXM4', _AMPERE,
  ),
  'a100-40gb': Device(
    'NVIDIA A100-SXM4-40GB', 42_331_013_120, 312e12, 1.555e12, 300e9,
    'NVIDIA, A100 Tensor Core GPU datasheet (2021), SXM4', _AMPERE,
  ),
  'b200': Device(
    'NVIDIA B200', 191_514_411_008, 2250e12, 7.672e12, 900e9,
    'NVIDIA, Blackwell Architecture Technical Brief (2024), HGX B200',
    _BLACKWELL('10.0a', 148, clock=1.965, cache=132_644_864),
  ),
  'h100': Device(
    'NVIDIA H100 80GB HBM3', 84_942_979_072, 989.4e12, 3.352e12, 450e9,
    'NVIDIA, H100 Tensor Core GPU Architecture white paper (2022), SXM5',
    _HOPPER,
  ),
  'h200': Device(
    'NVIDIA H200', 151_397_597_184, 989.4e12, 4.8e12, 450e9,
    'NVIDIA, H200 Tensor Core GPU datasheet (2024), SXM',
    _HOPPER,
  ),
  'l4': Device(
    'NVIDIA L4', 24_152_899_584, 121e12, 0.300e12, 32e9,
    'NVIDIA, L4 Tensor Core GPU datasheet (2023); link: PCIe 4.0 x16',
    _ADA(cores=58, clock=2.04, cache=48 << 20),
  ),
  'l40s': Device(
    'NVIDIA L40S', 48_305_799_168, 362e12, 0.864e12, 32e9,
    'NVIDIA, L40S datasheet (2023); link: PCIe 4.0 x16',
    _ADA(cores=142, clock=2.52, cache=96 << 20),
  ),
  'rtx4090': Device(
    'NVIDIA GeForce RTX 4090', 25_757_220_864, 165.2e12, 1.008e12, 32e9,
    'NVIDIA, Ada GPU Architecture white paper (2022); link: PCIe 4.0 x16',
    _ADA(cores=128, clock=2.52, cache=72 << 20),
  ),
  'rtx5090': Device(
    'NVIDIA GeForce RTX 5090', 34_190_917_632, 209.5e12, 1.792e12, 64e9,
    'NVIDIA, RTX Blackwell GPU Architecture white paper (2025); link:'
    ' PCIe 5.0 x16',
    Cuda('12.0', 170, 128, 2.407, 96 << 20, 1536, 100 << 10),
  ),
  'rtx6000pro': Device(
    'NVIDIA RTX PRO 6000 Blackwell', 103_079_215_104, 503.8e12, 1.792e12, 64e9,
    'NVIDIA, RTX PRO Blackwell GPU Architecture white paper (2025); link:'
    ' PCIe 5.0 x16',
    Cuda('12.0', 188, 128, 2.6, 128 << 20, 1536, 100 << 10),
  ),
  'v4': Device(
    'TPU v4', 17_200_000_000, 137.5e12, 0.614e12, 150e9,
    'Google Cloud, Cloud TPU documentation, TPU v4 (2025); half a chip',
    clock=1.05e9, cores_a_chip=2,
  ),
  'v5e': Device(
    'TPU v5 lite', 17_200_000_000, 197e12, 0.819e12, 200e9,
    'Google Cloud, Cloud TPU documentation, TPU v5e (2025)', clock=1.5e9,
  ),
  'v5p': Device(
    'TPU v5', 103_000_000_000, 459e12, 2.765e12, 600e9,
    'Google Cloud, Cloud TPU documentation, TPU v5p (2025)', clock=1.75e9,
  ),
  'v6e': Device(
    'TPU v6 lite', 34_400_000_000, 918e12, 1.638e12, 400e9,
    'Google Cloud, Cloud TPU documentation, TPU v6e (2025)', clock=1.75e9,
  ),
  'tpu7x': Device(
    'TPU7x', 103_000_000_000, 1153e12, 3.69e12, 300e9,
    'Google Cloud, Cloud TPU documentation, TPU7x (2025); half a chip',
    clock=2.2e9, cores_a_chip=2,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Target:
  """So many of a device.

  Attributes:
    name: as it was asked for.
    device: of DEVICES.
    shape: of a TPU slice, in chips; () for GPUs.
    count: devices that JAX sees.
    processes: that drive them.
  """

  name: str
  device: Device
  shape: tuple[int, ...]
  count: int
  processes: int


def find(name: str) -> Target:
  """The target of that name.

  Raises:
    UserError: there is none; the line says what there is.
  """
  word, _, sides = name.partition(':')
  count = 1
  if gpus := re.fullmatch(r'(.+?)x([1-9]\d*)', word):
    if gpus[1] in DEVICES:
      word, count = gpus[1], int(gpus[2])
  device = DEVICES.get(word)
  if device is None:
    near = difflib.get_close_matches(word, DEVICES, 1)
    hint = f' (did you mean {near[0]}?)' if near else ''
    raise UserError(f'--target={name} is unknown{hint}; there is {_known()}')
  if device.platform == 'gpu':
    if sides or (count > GPUS_A_MACHINE and count % GPUS_A_MACHINE):
      raise UserError(
        f'--target={name}; so many {word} are written e.g. {word}x8, up to'
        f' {GPUS_A_MACHINE} or a multiple of it'
      )
    return Target(name, device, (), count, -(-count // GPUS_A_MACHINE))
  if count > 1 or not re.fullmatch(r'([1-9]\d*(x[1-9]\d*)*)?', sides):
    raise UserError(f'--target={name}; a slice is written e.g. {word}:2x2')
  shape = tuple(map(int, sides.split('x'))) if sides else (1,)
  chips = math.prod(shape)
  return Target(
    name, device, shape, chips * device.cores_a_chip, max(1, chips // 4)
  )


def _known():
  gpus = [name for name, one in DEVICES.items() if one.platform == 'gpu']
  tpus = [name for name, one in DEVICES.items() if one.platform == 'tpu']
  return (
    f'{", ".join(gpus)}, each also as e.g. h100x8, and the slices of'
    f' {", ".join(tpus)}, e.g. v5e:2x2, v5p:2x2x1'
  )


def of_kind(kind: str) -> Device | None:
  """The device that JAX calls so, if its figures are known."""
  return next((one for one in DEVICES.values() if one.kind == kind), None)


def slice_shape(devices: Sequence[Any]) -> tuple[int, ...]:
  """Chips along each axis of the TPU slice that devices make; () for others."""
  if devices[0].platform != 'tpu':  # A GPU has coordinates too.
    return ()
  places = (device.coords for device in devices)
  return tuple(len({*along}) for along in zip(*places, strict=True))


def open_topology(target: Target) -> parallel.Topology:
  """Starts the compiler for a target.

  Raises:
    UserError: it is not installed, or does not know the target.
  """
  extra = {'gpu': 'cuda', 'tpu': 'tpu'}[target.device.platform]
  if not _installed(extra):
    raise UserError(
      f'--target={target.name} needs the compiler for it, which any machine can'
      f" have: pip install -e '.[{extra}]'"
    )
  import jax
  from jax.experimental import topologies

  try:
    if target.device.cuda:
      machines = target.processes
      found = topologies.get_topology_desc(
        target.name,
        'cuda',
        topology=f'1x{machines}x{target.count // machines}',
        target_config=cuda_config(target.device),
      )
    else:
      # Else it asks the network which worker of which slice this is.
      os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
      os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
      # Its lock is for chips, and several may compile at once.
      os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
      shape = 'x'.join(map(str, target.shape + (1,) * (2 - len(target.shape))))
      word = target.name.partition(':')[0]
      found = topologies.get_topology_desc(f'{word}:{shape}', 'tpu')
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    raise UserError(
      f'--target={target.name}: the compiler refuses it'
      f' ({str(error).splitlines()[0]})'
    ) from error
  return parallel.Topology(tuple(found.devices), target.device.usable)


def _installed(extra):
  if extra == 'tpu':
    return importlib.util.find_spec('libtpu') is not None
  if importlib.util.find_spec('jax_plugins') is None:
    return False
  names = ('jax_plugins.xla_cuda13', 'jax_plugins.xla_cuda12')
  return any(importlib.util.find_spec(name) for name in names)


def cuda_config(device: Device) -> str:
  """XLA's GpuTargetConfigProto of a GPU, as text.

  Raises:
    ValueError: it is none.
  """
  cuda = device.cuda
  if cuda is None:
    raise ValueError(f'{device.kind} is no GPU')
  major, minor = cuda.capability.rstrip('a').split('.')
  special = cuda.capability.endswith('a')
  fields = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 48 << 10,
    'shared_memory_per_core': cuda.shared,
    'shared_memory_per_block_optin': cuda.shared - 1024,
    'threads_per_core_limit': cuda.threads,
    'core_count': cuda.cores,
    'fpus_per_core': cuda.lanes,
    'block_dim_limit_x': 2**31 - 1,
    'block_dim_limit_y': 2**16 - 1,
    'block_dim_limit_z': 2**16 - 1,
    'thread_dim_limit_x': 1024,
    'thread_dim_limit_y': 1024,
    'thread_dim_limit_z': 64,
    'registers_per_core_limit': 2**16,
    'registers_per_block_limit': 2**16,
    'memory_bandwidth': int(device.bandwidth),
    'l2_cache_size': cuda.cache,
    'clock_rate_ghz': cuda.clock,
    'device_memory_size': device.memory,
  }
  lines = [f'  {name}: {value}' for name, value in fields.items()]
  feature = 'ACCELERATED_FEATURES' if special else 'NONE'
  return '\n'.join(
    [
      'gpu_device_info {',
      *lines,
      '  cuda_compute_capability {',
      f'    major: {major} minor: {minor} feature_extension: {feature}',
      '  }',
      '}',
      'platform_name: "CUDA"',
      'dnn_version_info { major: 9 minor: 10 patch: 0 }',
      f'device_description_str: "{device.kind}"',
    ]
  )
