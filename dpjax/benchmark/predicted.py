"""How long a compiled program takes by a model; nothing here is measured.

Every kernel takes the longer of its bytes over the memory's bandwidth and its
products over the peak (the roofline: Williams, Waterman and Patterson, 2009),
and what a launch costs. On a TPU the compiler's own cycles stand in its place,
where it says some. Beside them the collectives, by latency and bytes.
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from dpjax.benchmark import kernels as kernels_lib
from dpjax.benchmark import targets
from dpjax.benchmark.kernels import Kernel

# Seconds that a kernel costs beside its own work. In a CUDA graph 3.4 - 2.9
# microseconds (A. Gray, Getting Started with CUDA Graphs, NVIDIA, 2019). One by
# one 3.8 - 2.9 there, from C, and 4 to 6 of CPU time in another measurement
# (susun-blog.com, pegainfer (3), 2026); we take 2.5.
_IN_GRAPH, _ONE_BY_ONE = 0.5e-6, 2.5e-6
# The least that published runs of ResNets reach of such a sum of rooflines, as
# docs/throughput.md has it.
_EFFICIENCY = 0.79
# NCCL's own model of latency, for its protocol of low latency: seconds of an
# all-reduce by ring and by tree, and of a step on NVLink and on the network
# (NVIDIA/nccl, src/graph/tuning.cc). Within several machines a step on NVLink
# takes 1.8 times as long.
_RING, _TREE = 3.6e-6, 4.4e-6
_NVLINK_RING, _NVLINK_TREE, _NET_RING, _NET_TREE = (
  0.47e-6, 0.52e-6, 2.7e-6, 5.0e-6,
)  # fmt: skip
_NVLINK_AMONG_MACHINES = 1.8
# A hop between chips (Austin et al., How to Scale Your Model, 2025).
_ICI_HOP = 1e-6
_SHOWN = 10  # slowest kernels

# Whose source an operation comes from, where no module names it.
_FILES = {
  'render_device.py': 'render',
  'lesion_masks.py': 'masks',
  'losses.py': 'losses',
  'optim.py': 'update',
  'steps.py': 'update',
  'objectives.py': 'losses',
  'programs.py': 'render',
  'heads.py': 'attention',
}


def describe(
  text: str,
  device: targets.Device,
  *,
  rows: int,
  count: int = 1,
  dtype: str = 'bfloat16',
  shape: Sequence[int] = (),
  devices: int = 1,
) -> dict[str, Any]:
  """What a program does in a step, and how long by the model.

  Args:
    text: the program.
    device: that it is compiled for.
    rows: radiographs of a step, over all devices.
    count: steps in a run of the program; all figures are of one step.
    dtype: that the network computes in. float32 has half the peak (TF32).
    shape: of a TPU slice, in chips.
    devices: that share a step.

  Returns:
    of one device: 'kernels', 'small_kernels' (below 4 MB), 'copies',
    'scatters', 'bytes', 'flops', 'cycles' (or None), 'collectives' {kind:
    {'count', 'bytes'}}, 'collective_seconds', 'seconds' and 'per_second'
    {'best', 'worst'}, 'limit_per_second' (all products at the peak, or all
    bytes at the bandwidth, whichever takes longer), 'parts' (of the network,
    the slowest first) and 'slowest' (kernels).
  """
  found = kernels_lib.read(text)
  peak = device.flops / (1 if dtype == 'bfloat16' else 2)
  mesh = (shape, devices)
  own = {k.name: _seconds(k, device, peak, mesh) for k in found}
  total = {
    name: sum(k.times * getattr(k, name) for k in found) / count
    for name in ('bytes', 'flops', 'cycles')
  }
  number = sum(k.times for k in found) / count
  talk = sum(k.times * own[k.name] for k in found if k.collective) / count
  work = sum(k.times * own[k.name] for k in found) / count - talk
  launches = (_IN_GRAPH, _ONE_BY_ONE) if device.cuda else (0, 0)
  best = work + talk + number * launches[0]
  worst = (work + talk) / _EFFICIENCY + number * launches[1]
  limit = max(total['flops'] / peak, total['bytes'] / device.bandwidth)
  return {
    'kernels': number,
    'small_kernels': _number(found, lambda k: k.bytes < kernels_lib.SMALL)
    / count,
    'copies': _number(found, lambda k: k.kind == 'copy') / count,
    'scatters': _number(found, lambda k: k.scatters) / count,
    **total,
    'cycles': total['cycles'] or None,
    'collectives': _collectives(found, count),
    'collective_seconds': talk,
    'seconds': {'best': best, 'worst': worst},
    'per_second': {'best': rows / best, 'worst': rows / worst},
    'limit_per_second': rows / limit,
    'parts': _parts(found, own, count),
    'slowest': [
      {
        'name': k.name,
        'kind': k.kind,
        'part': part_of(k),
        'times': k.times / count,
        'bytes': k.bytes,
        'flops': k.flops,
        'seconds': own[k.name],
      }
      for k in sorted(found, key=lambda k: -k.times * own[k.name])[:_SHOWN]
    ],
  }


def _number(found, chosen):
  return sum(k.times for k in found if chosen(k))


def _seconds(kernel, device, peak, mesh):
  """One run of a kernel, without its launch."""
  if kernel.collective:
    return collective_seconds(kernel.kind, kernel.sent, device, *mesh)
  if kernel.cycles:
    return kernel.cycles / device.clock
  if device.clock and kernel.kind.endswith('-start'):
    return 0.0  # It goes on beside other work.
  return max(kernel.bytes / device.bandwidth, kernel.flops / peak)


def collective_seconds(
  kind: str,
  sent: int,
  device: targets.Device,
  shape: Sequence[int],
  devices: int,
) -> float:
  """One collective of all devices: latency, and bytes over the slowest link.

  Of n devices in a ring each sends (n - 1) / n of what it hands in, and in an
  all-reduce twice that.

  Args:
    kind: e.g. 'all-reduce'.
    sent: bytes that each device hands in.
    device: whose links count.
    shape: of a TPU slice, in chips; () for GPUs.
    devices: how many.
  """
  if devices == 1:
    return 0.0
  turns = 2 if kind == 'all-reduce' else 1
  moved = float(turns * sent * (devices - 1))
  if kind != 'all-gather':
    moved /= devices
  if device.cuda is None:
    # There and back along each axis; 16 chips and more close to a ring.
    hops = sum(side / 2 if side >= 16 else side - 1 for side in shape)
    return turns * hops * _ICI_HOP + moved / device.link
  machines = -(-devices // targets.GPUS_A_MACHINE)
  near = devices // machines - 1
  slower = _NVLINK_AMONG_MACHINES if machines > 1 else 1
  ring = _RING + turns * (
    (devices - machines) * slower * _NVLINK_RING + (machines - 1) * _NET_RING
  )
  doublings = (machines - 1).bit_length()
  tree = _TREE + turns * (near * slower * _NVLINK_TREE + doublings * _NET_TREE)
  link = min(device.link, targets.NETWORK) if machines > 1 else device.link
  return min(ring, tree) + moved / link


def _collectives(found, count):
  kinds: dict[str, dict[str, float]] = {}
  for k in found:
    if k.collective:
      one = kinds.setdefault(k.kind, {'count': 0, 'bytes': 0})
      one['count'] += k.times / count
      one['bytes'] += k.times * k.sent / count
  return kinds


def _parts(found, own, count):
  parts: dict[str, dict[str, Any]] = {}
  for k in found:
    name = part_of(k)
    one = parts.setdefault(
      name, {'part': name, 'kernels': 0, 'bytes': 0, 'flops': 0, 'seconds': 0}
    )
    one['kernels'] += k.times / count
    one['bytes'] += k.times * k.bytes / count
    one['flops'] += k.times * k.flops / count
    one['seconds'] += k.times * own[k.name] / count
  return sorted(parts.values(), key=lambda one: -one['seconds'])


def part_of(kernel: Kernel) -> str:
  """The part of the network, or of the step, that a kernel comes from."""
  name = kernel.op_name
  if kernel.collective:
    return 'collectives'
  if name.startswith('state.') or (kernel.kind == 'copy' and not name):
    return 'copies'
  back = ', backward' if 'transpose(' in name else ''
  if stage := re.search(r'\blayer(\d+)_\d+\b', name):
    return f'stage {stage[1]}{back}'
  for word, part in (
    ('AttentionHeads', 'attention'),
    ('Projector', 'projector'),
    ('/fc/', 'classifier'),
    ('ResNet', 'stem'),
    ('VGG16', 'backbone'),
  ):
    if word in name:
      return part + back
  for source in kernel.sources:
    file = pathlib.PurePath(source)
    if 'optax' in file.parts:
      return 'update'
    if file.name in _FILES:
      return _FILES[file.name] + back
  return 'other'
