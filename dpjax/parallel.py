"""How a per-device step runs on the devices at hand: jit, pmap or shard_map.

One pure step `f(state, batch, *, axis_name)` serves all three. The state is
replicated, the batch is cut along its first axis, and what the step returns is
replicated (training) or put together again along its first axis (evaluation).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = 'data'


def compile_step(
  step: Callable[..., Any],
  *,
  mode: str,
  devices: int,
  donate: bool,
  gather: bool = False,
) -> Callable[[Any, Any], Any]:
  """Compiles `step(state, batch, axis_name=...)` for `devices` devices.

  Args:
    step: the pure per-device step.
    mode: 'jit' (one device), 'pmap' or 'shard_map'.
    devices: how many.
    donate: the state's buffers become the result's; a caller must not use a
      state again that it has passed in.
    gather: the results are one per row (evaluation), not replicated.

  Returns:
    f(state, batch), where batch is a host batch with a row for every image of
    all devices, or one that `place` has put on the devices.

  Raises:
    ValueError: an unknown mode, or jit on several devices.
  """
  donated = (0,) if donate else ()
  if mode == 'jit':
    if devices != 1:
      raise ValueError(f'parallel.mode jit runs on one device, not {devices}')
    return jax.jit(
      functools.partial(step, axis_name=None), donate_argnums=donated
    )
  per_device = functools.partial(step, axis_name=AXIS)
  if mode == 'shard_map':
    # check_vma would sum the gradients of replicated parameters by itself, and
    # the step's own mean would then leave them `devices` times too large.
    mapped = jax.shard_map(
      per_device,
      mesh=_mesh(devices),
      in_specs=(P(), P(AXIS)),
      out_specs=P(AXIS) if gather else P(),
      check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donated)
  if mode != 'pmap':
    raise ValueError(f'parallel.mode {mode!r} is none of jit, pmap, shard_map')
  mapped = jax.pmap(
    per_device,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=0 if gather else None,
    devices=jax.devices()[:devices],
    donate_argnums=donated,
  )

  def run(state, batch):
    out = mapped(state, jax.tree.map(lambda x: _split(x, devices), batch))
    if gather:
      out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    return out

  return run


def place(batch: Any, *, mode: str, devices: int) -> Any:
  """Starts the transfer of a host batch to the devices; returns at once."""
  if mode == 'pmap':  # pmap cuts and sends the batch itself.
    return batch
  if mode == 'jit':
    return jax.device_put(batch)
  return jax.device_put(batch, NamedSharding(_mesh(devices), P(AXIS)))


def replicate(state: Any, *, mode: str, devices: int) -> Any:
  """Puts the state where the compiled step takes it: on every device.

  jit and pmap take it from one device. jit over a mesh does not, once it is
  bound to that device, as a state that Orbax has restored is.
  """
  if mode != 'shard_map':
    return state
  return jax.device_put(state, NamedSharding(_mesh(devices), P()))


def _mesh(devices):
  # make_mesh's own default is Explicit axes, which jit would then enforce.
  return jax.make_mesh(
    (devices,),
    (AXIS,),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )


def _split(x, devices):
  x = np.asarray(x)
  return x.reshape(devices, x.shape[0] // devices, *x.shape[1:])
