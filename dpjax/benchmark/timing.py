"""Rates that can be trusted: repeats of blocks, each waited for to its end.

And what XLA and the device say of a program: its work, its memory, and what the
device can do at best.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# From here on a call is long enough for the peaks of a device, seconds.
_LONG = 2e-3
_LARGEST_SIDE = 16384  # of the multiplied matrices
_SMALLEST_COPY = 2**28  # bytes: no cache holds them
_LARGEST_COPY = 2**30

Call = Callable[[int], Any]


def summary(values: Sequence[float]) -> dict[str, float]:
  """{'median', 'min', 'max'} of the repeats."""
  return {
    'median': float(np.median(values)),
    'min': float(np.min(values)),
    'max': float(np.max(values)),
  }


def measure(
  calls: Mapping[str, Call], repeats: int, seconds: float
) -> dict[str, list[float]]:
  """Seconds a call of each, a number a repeat.

  Several are measured in turns, so that what disturbs the machine for a while
  disturbs all of them.

  Args:
    calls: name: f(n), which makes n calls and returns when all are done.
    repeats: of each, after a warm-up.
    seconds: a repeat takes at least so long.
  """
  counts = {name: _warm_up(call, seconds) for name, call in calls.items()}
  found: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      found[name].append(_repeat(call, counts[name], seconds))
  return found


def measure_one(call: Call, repeats: int, seconds: float) -> list[float]:
  """`measure` of one alone."""
  return measure({'': call}, repeats, seconds)['']


def _warm_up(call, seconds):
  """How many calls take `seconds`; what only first calls do is then done."""
  call(1)
  count = 1
  while True:
    began = time.perf_counter()
    call(count)
    took = time.perf_counter() - began
    if took >= max(seconds / 4, 1e-3):
      return max(1, math.ceil(1.1 * seconds * count / took))
    count *= 2


def _repeat(call, count, seconds):
  """Seconds a call."""
  made = 0
  began = time.perf_counter()
  while True:
    call(count)
    made += count
    took = time.perf_counter() - began
    if took >= seconds:
      return took / made


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """Within it nothing compiled is read from the persistent cache, or kept."""
  from jax.experimental.compilation_cache import compilation_cache

  before = jax.config.values['jax_enable_compilation_cache']
  try:
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # Else JAX remembers that it has one.
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def compile_ahead(step: Any, *arguments: Any) -> tuple[Any, dict[str, Any]]:
  """Compiles a step anew for these arguments.

  Args:
    step: what programs.compile_step returns.
    *arguments: on the devices.

  Returns:
    the program, and of it: 'trace_seconds', 'compile_seconds'; 'program_bytes'
    of one device's memory, or None; 'work': one device's 'flops' and
    'bytes_accessed', as XLA estimates them, None where it does not.
  """
  began = time.perf_counter()
  lowered = step.lower(*arguments)
  traced = time.perf_counter()
  with uncached():
    program = lowered.compile()
  compiled = time.perf_counter()
  return program, {
    'trace_seconds': traced - began,
    'compile_seconds': compiled - traced,
    'program_bytes': _program_bytes(program),
    'work': _work(lowered, program),
  }


def _work(lowered, program):
  """XLA's estimates for one run of a program on one device.

  The operations are those of the program before its compilation, which does not
  count twice what a fusion computes again. The compiled program's are on record
  too: on GPUs convolutions and matrix products are calls to a library there,
  and their work is missing.
  """
  before, after = _costs(lowered), _costs(program)
  counted, compiled = (costs.get('flops') or None for costs in (before, after))
  return {
    'flops': counted or compiled,
    'flops_compiled': compiled,
    'bytes_accessed': after.get('bytes accessed') or None,
    'bytes_before_compilation': before.get('bytes accessed') or None,
  }


def _costs(stage):
  costs = stage.cost_analysis()
  if isinstance(costs, (list, tuple)):  # One a module, of one.
    costs = costs[0] if costs else None
  return costs or {}


def _program_bytes(program):
  """Arguments, results and scratch; what a result takes over counts once."""
  found = program.memory_analysis()
  if found is None:
    return None
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    + found.temp_size_in_bytes
    - found.alias_size_in_bytes
  )


def peak_bytes() -> int | None:
  """The most memory in use on a device since the process began, or None."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  found = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
  return max(found) if found else None


def device_peaks(dtype: str, repeats: int, seconds: float) -> dict[str, Any]:
  """What one device does at best, measured: FLOP/s and bytes/s.

  Args:
    dtype: of the matrices that are multiplied, as the network computes.
    repeats, seconds: as in `measure`.

  Returns:
    'flops_per_second' of a square matrix product (2 n^3), with its 'side' and
    'dtype', and 'bytes_per_second' of adding 1 to an array in place (one read
    and one write of 'copied_bytes').
  """
  side, multiply = _fitted(
    lambda side: _multiplication(side, dtype), 1024, _LARGEST_SIDE
  )
  times = measure_one(multiply, repeats, seconds)
  peaks = {
    'dtype': dtype,
    'side': side,
    'flops_per_second': summary([2 * side**3 / t for t in times]),
  }
  del multiply  # And its matrices.
  size, add = _fitted(_addition, _SMALLEST_COPY, _LARGEST_COPY)
  times = measure_one(add, repeats, seconds)
  return peaks | {
    'copied_bytes': size,
    'bytes_per_second': summary([2 * size / t for t in times]),
  }


def _fitted(make, size, largest):
  """(size, f(n)) for the first size, by doubling, whose call is _LONG."""
  while True:
    call = make(size)
    call(1)
    began = time.perf_counter()
    call(1)
    if time.perf_counter() - began >= _LONG or size >= largest:
      return size, call
    del call
    size *= 2


def _multiplication(side, dtype):
  # Random, for zeros take less power, and a GPU then runs faster.
  a, b = (
    jax.random.normal(key, (side, side), jnp.dtype(dtype))
    for key in jax.random.split(jax.random.key(0))
  )
  multiply = jax.jit(jnp.matmul)

  def call(count):
    for _ in range(count):
      product = multiply(a, b)
    product.block_until_ready()

  return call


def _addition(size):
  array = jnp.zeros(size // 4, jnp.float32)
  # In place: fresh memory for the result would cost a CPU more than the copy.
  add = jax.jit(lambda x: x + 1, donate_argnums=0)

  def call(count):
    nonlocal array
    for _ in range(count):
      array = add(array)
    array.block_until_ready()

  return call


class Others:
  """The CPU cores that other processes have kept busy since this was made."""

  def __init__(self) -> None:
    self._began = time.perf_counter(), _seconds_of_others()

  def cores(self) -> float | None:
    """Their number on average; None where the system does not tell."""
    (clock, before), after = self._began, _seconds_of_others()
    if before is None or after is None:
      return None
    return max(0.0, (after - before) / (time.perf_counter() - clock))


def _seconds_of_others():
  """CPU seconds of all other processes since the machine was started."""
  try:
    with open('/proc/stat', encoding='ascii') as file:
      ticks = [int(word) for word in file.readline().split()[1:9]]
  except OSError:  # Not Linux.
    return None
  idle = ticks[3] + ticks[4]  # The latter: while waiting for a disk.
  busy = (sum(ticks) - idle) / os.sysconf('SC_CLK_TCK')
  return busy - time.process_time()
