"""How a per-device step runs on the devices at hand: jit, pmap or shard_map.

One pure step `f(state, batch, shared, *, axis_name)` serves all three. The
state and `shared` are replicated, the batch is cut along its rows, and what the
step returns is replicated: a training step's by itself, an evaluation's because
the rows of all devices are gathered.

With several processes (jax.distributed) the devices of all of them count, in
the order of the processes, and each process hands in its own rows.

Programs can be compiled for devices that are not there (`Topology`). What would
be put on those is described by its shapes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import (
  AxisType,
  Mesh,
  NamedSharding,
  Sharding,
  SingleDeviceSharding,
)
from jax.sharding import PartitionSpec as P

AXIS = 'data'
MODES = ('jit', 'pmap', 'shard_map')


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for that are not there.

  Attributes:
    devices: of all processes (jax.experimental.topologies).
    free_bytes: what JAX would have of the memory of each.
  """

  devices: tuple[jax.Device, ...]
  free_bytes: int

  @property
  def platform(self) -> str:
    """'gpu' or 'tpu'."""
    return self.devices[0].platform


@dataclasses.dataclass(frozen=True)
class Devices:
  """Which devices a step runs on, and how.

  Attributes:
    mode: 'jit' (one device), 'pmap' or 'shard_map'.
    count: how many devices, over all processes.
    topology: what to compile for in place of the devices that are here; then
      `place` and `replicate` describe arrays and make none.

  Raises:
    ValueError: an unknown mode, jit on several devices, or pmap on a topology.
  """

  mode: str
  count: int
  topology: Topology | None = None

  def __post_init__(self) -> None:
    if self.mode not in MODES:
      raise ValueError(
        f'parallel.mode {self.mode!r} is none of {", ".join(MODES)}'
      )
    if self.mode == 'jit' and self.count != 1:
      raise ValueError(
        f'parallel.mode jit runs on one device, not {self.count}'
      )
    if self.mode == 'pmap' and self.topology:
      raise ValueError('parallel.mode pmap needs devices that are there')

  @property
  def axis_name(self) -> str | None:
    """What a step calls the axis of the devices; None on one."""
    return None if self.mode == 'jit' else AXIS

  @property
  def platform(self) -> str:
    """'cpu', 'gpu' or 'tpu': what the programs are for."""
    return self.topology.platform if self.topology else jax.default_backend()

  @property
  def process_shard(self) -> tuple[int, int]:
    """(this process, number of processes): whose rows of a batch are read.

    With jit a process works by itself, even in a job of several.
    """
    if self.mode == 'jit':
      return 0, 1
    return jax.process_index(), jax.process_count()

  def whole_batch(self, rows: int) -> int:
    """`rows` rounded up to a multiple of the devices."""
    return -(-rows // self.count) * self.count

  def compile(
    self,
    step: Callable[..., Any],
    *,
    donate: bool = False,
    gather: bool = False,
    steps: int = 1,
  ) -> jax.stages.Wrapped:
    """Compiles `step(state, batch, shared, axis_name=...)` for the devices.

    Args:
      step: the pure per-device step.
      donate: the state's buffers become the result's; a caller must not use a
        state again that it has passed in.
      gather: the step returns a result for each row of its share (evaluation);
        all rows are put together again on every device.
      steps: K above 1 makes K steps in one dispatch. The batch then leads with
        (K, rows), and what a step returns beside the state leads with (K,).

    Returns:
      f(state, batch, shared) of what `place` and `replicate` have put on the
      devices (`shared` may be None), with jit's `lower` for a compilation
      ahead.
    """
    step = functools.partial(step, axis_name=self.axis_name)
    if gather:
      step = _gathered(step, self.axis_name)
    elif steps > 1:
      step = _scanned(step, steps, self.platform)
    donated = (0,) if donate else ()
    if self.mode == 'jit':
      return jax.jit(step, donate_argnums=donated)
    if self.mode == 'pmap':
      return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0 if steps == 1 else 1, None),
        out_axes=None,
        devices=[*self._mesh.devices],
        donate_argnums=donated,
      )
    # check_vma would sum the gradients of replicated parameters by itself, and
    # the step's own mean would then leave them `count` times too large.
    mapped = jax.shard_map(
      step,
      mesh=self._mesh,
      in_specs=(P(), _rows(steps > 1), P()),
      out_specs=P(),
      check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donated)

  def place(self, batch: Any, *, stacked: bool = False) -> Any:
    """Starts the transfer of a host batch to the devices; returns at once.

    Args:
      batch: tree of numpy arrays with this process's rows; (rows, ...), or
        (K, rows, ...) if stacked.
      stacked: as the compiled step has K steps in one dispatch.
    """
    if self.topology:
      return self._described(batch, _rows(stacked))
    if self.mode == 'jit':
      return jax.device_put(batch)
    sharding = NamedSharding(self._mesh, _rows(stacked))
    if self.mode == 'pmap':  # A leading axis of devices in place of the rows.

      def split(x):
        lead = x.shape[:stacked]
        return x.reshape(*lead, self.count, -1, *x.shape[stacked + 1 :])

      batch = jax.tree.map(split, batch)
    if jax.process_count() == 1:
      return jax.device_put(batch, sharding)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )

  def replicate(self, tree: Any) -> Any:
    """Puts a tree of arrays, the same in every process, on every device."""
    if self.topology:
      return self.replicated_shapes(tree)
    if self.mode == 'jit':
      return jax.device_put(tree)
    sharding = NamedSharding(self._mesh, P())
    if jax.process_count() == 1:
      return jax.device_put(tree, sharding)

    def put(x):
      x = np.asarray(x)
      return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

    return jax.tree.map(put, tree)

  def replicated_shapes(self, tree: Any) -> Any:
    """What `replicate` makes of a tree of such shapes, as shapes."""
    return self._described(tree, P())

  def _described(self, tree, spec):
    """The tree as shapes on the devices; of its arrays only shapes count."""
    sharding: Sharding = (
      SingleDeviceSharding(self._all[0])
      if self.mode == 'jit'
      else NamedSharding(self._mesh, spec)
    )
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  @property
  def _all(self):
    return self.topology.devices if self.topology else jax.devices()

  @property
  def used(self) -> list[jax.Device]:
    """The devices of all processes that share a batch, in order.

    In the order of the processes, so that the rows of one are in a row. (What
    make_mesh returns follows a TPU's wiring instead.)
    """
    ordered = sorted(self._all, key=lambda d: (d.process_index, d.id))
    return ordered[: self.count]

  @property
  def _mesh(self):
    return Mesh(np.array(self.used), (AXIS,), axis_types=(AxisType.Auto,))


def _gathered(step, axis_name):
  """The step, whose rows of all devices are put together again."""
  if axis_name is None:
    return step

  def gathered(state, batch, shared):
    rows = step(state, batch, shared)
    return jax.lax.all_gather(rows, axis_name, axis=0, tiled=True)

  return gathered


def _scanned(step, steps, platform):
  """So many of the step, one after the other, on a stack of batches."""

  def scanned(state, batches, shared):
    # XLA's CPU path runs convolutions in a loop some ten times slower.
    unroll = steps if platform == 'cpu' else 1
    return jax.lax.scan(
      lambda state, batch: step(state, batch, shared),
      state,
      batches,
      unroll=unroll,
    )

  return scanned


def free_bytes() -> int | None:
  """Memory that is free on a device of this process; None where unknown."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats['bytes_in_use']


def _rows(stacked):
  return P(None, AXIS) if stacked else P(AXIS)
