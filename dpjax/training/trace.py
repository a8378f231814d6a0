"""A profile of some steps of a training run, for TensorBoard or Perfetto."""

import contextlib
import pathlib
from typing import Any

import jax

# Dispatches before the first one that is traced: in those the device's memory
# is laid out, and Grain fills its queue.
_SKIPPED = 2


class Trace:
  """Names every dispatch to JAX's profiler, and writes a trace of some.

  For contextlib.closing: a run that ends before, or by an error, leaves what
  was traced until then.
  """

  def __init__(self, folder: pathlib.Path, steps: int):
    """Traces `steps` steps into `folder`, which is made if it is missing.

    Args:
      folder: a trace of another start stays beside it there.
      steps: at least so many, whole dispatches; 0: none.
    """
    self._folder = folder
    self._left = steps
    self._skip = _SKIPPED
    self._running = False

  def dispatch(self, step: int) -> contextlib.AbstractContextManager[Any]:
    """For `with`, around the call that sends off the steps after `step`."""
    if self._left > 0 and not self._running and not self._skip:
      jax.profiler.start_trace(self._folder)
      self._running = True
    self._skip = max(0, self._skip - 1)
    return jax.profiler.StepTraceAnnotation('train', step_num=step)

  def sent(self, size: int, metrics: Any) -> None:
    """Notes a dispatch of `size` steps; after the last one waits for it.

    Args:
      size: its steps.
      metrics: what it computes, on the devices.
    """
    if not self._running:
      return
    self._left -= size
    if self._left <= 0:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    """Writes what was traced, unless that is done."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
