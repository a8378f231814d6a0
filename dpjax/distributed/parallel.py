"""How a per-device step runs on the devices at hand: jit, pmap or shard_map.

One pure step `f(state, batch, shared, *, axis_name)` serves all three. The
state and `shared` are replicated, the batch is cut along its rows, and what the
step returns is replicated: a training step's by itself, an evaluation's because
the rows of all devices are gathered.

With several processes (jax.distributed) the devices of all of them count, in
the order of the processes, and each process hands in its own rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = 'data'


def compile_step(
  step: Callable[..., Any],
  *,
  mode: str,
  devices: int,
  donate: bool = False,
  gather: bool = False,
  steps: int = 1,
) -> Callable[[Any, Any, Any], Any]:
  """Compiles `step(state, batch, shared, axis_name=...)` for the devices.

  Args:
    step: the pure per-device step.
    mode: 'jit' (one device), 'pmap' or 'shard_map'.
    devices: how many, over all processes.
    donate: the state's buffers become the result's; a caller must not use a
      state again that it has passed in.
    gather: the step returns a result for each row of its share (evaluation);
      all rows are put together again on every device.
    steps: K above 1 makes K steps in one dispatch. The batch then leads with
      (K, rows), and what a step returns beside the state leads with (K,).

  Returns:
    f(state, batch, shared) of what `place` and `replicate` have put on the
    devices (`shared` may be None), with jit's `lower` for a compilation ahead.

  Raises:
    ValueError: an unknown mode, or jit on several devices.
  """
  if mode not in ('jit', 'pmap', 'shard_map'):
    raise ValueError(f'parallel.mode {mode!r} is none of jit, pmap, shard_map')
  if mode == 'jit' and devices != 1:
    raise ValueError(f'parallel.mode jit runs on one device, not {devices}')
  one = functools.partial(step, axis_name=None if mode == 'jit' else AXIS)

  def per_device(state, batch, shared):
    if gather:
      rows = one(state, batch, shared)
      if mode == 'jit':
        return rows
      return jax.lax.all_gather(rows, AXIS, axis=0, tiled=True)
    if steps == 1:
      return one(state, batch, shared)
    # XLA's CPU path runs convolutions in a loop some ten times slower.
    unroll = steps if jax.default_backend() == 'cpu' else 1
    return jax.lax.scan(
      lambda state, batch: one(state, batch, shared),
      state,
      batch,
      unroll=unroll,
    )

  donated = (0,) if donate else ()
  if mode == 'jit':
    return jax.jit(per_device, donate_argnums=donated)
  mesh = _mesh(devices)
  if mode == 'pmap':
    return jax.pmap(
      per_device,
      axis_name=AXIS,
      in_axes=(None, 0 if steps == 1 else 1, None),
      out_axes=None,
      devices=[*mesh.devices],
      donate_argnums=donated,
    )
  # check_vma would sum the gradients of replicated parameters by itself, and
  # the step's own mean would then leave them `devices` times too large.
  mapped = jax.shard_map(
    per_device,
    mesh=mesh,
    in_specs=(P(), _rows(steps > 1), P()),
    out_specs=P(),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=donated)


def place(batch: Any, *, mode: str, devices: int, stacked: bool = False) -> Any:
  """Starts the transfer of a host batch to the devices; returns at once.

  Args:
    batch: tree of numpy arrays with this process's rows; (rows, ...), or
      (K, rows, ...) if stacked.
    mode, devices, stacked: those of the compiled step.
  """
  if mode == 'jit':
    return jax.device_put(batch)
  sharding = NamedSharding(_mesh(devices), _rows(stacked))
  if mode == 'pmap':  # A leading axis of devices in place of the rows.

    def split(x):
      lead = x.shape[:stacked]
      return x.reshape(*lead, devices, -1, *x.shape[stacked + 1 :])

    batch = jax.tree.map(split, batch)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def replicate(tree: Any, *, mode: str, devices: int) -> Any:
  """Puts a tree of arrays, the same in every process, on every device."""
  if mode == 'jit':
    return jax.device_put(tree)
  sharding = NamedSharding(_mesh(devices), P())
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def put(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def share() -> tuple[int, int]:
  """(this process, number of processes): whose rows of a batch are read."""
  return jax.process_index(), jax.process_count()


def is_first() -> bool:
  """Whether this process is the one that writes logs and speaks."""
  return jax.process_index() == 0


def free_bytes() -> int | None:
  """Memory that is free on a device of this process; None where unknown."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  return stats['bytes_limit'] - stats['bytes_in_use']


def _mesh(devices):
  # In the order of the processes, so that the rows of one are in a row. (What
  # make_mesh returns follows a TPU's wiring instead.)
  ordered = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  return Mesh(np.array(ordered[:devices]), (AXIS,), axis_types=(AxisType.Auto,))


def _rows(stacked):
  return P(None, AXIS) if stacked else P(AXIS)
