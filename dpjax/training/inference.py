"""A compiled evaluation step over a whole split."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dpjax.data import store
from dpjax.data.feed import pipeline
from dpjax.training import batches, programs, steps
from dpjax.training.run import Run


def infer(
  run: Run, eval_step: Callable[[Any, Any, Any], Any], state: steps.TrainState,
  split: store.Rows, batch_size: int, images: jax.Array | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:  # fmt: skip
  """Yields (rows, outputs) for every batch of a split, whole, in order.

  Args:
    run: of the step.
    eval_step: as by programs.compile_evaluation. Where it is not compiled yet,
      a signal ends the wait for the compiler; a compiled one is not left, since
      a training that is stopped at a validation saves first.
    state: a steps.TrainState.
    split: of the prepared set.
    batch_size: rounded up to a multiple of the devices.
    images: of the split, if they are on the devices.
  """
  batch_size = run.devices.whole_batch(batch_size)
  stream = batches.sequential_stream(
    run, split, batch_size, images=images is None
  )
  pending = None  # (rows, outputs still on the device)
  for start, batch in zip(
    range(0, len(split), batch_size), stream, strict=True
  ):
    arguments = state, batches.place(run, batch), images
    outputs = (
      eval_step(*arguments)
      if start or isinstance(eval_step, jax.stages.Compiled)
      else programs.first_call(eval_step, *arguments)
    )
    if pending is not None:
      yield _on_host(*pending)
    pending = min(batch_size, len(split) - start), outputs
  if pending is not None:
    yield _on_host(*pending)


def _on_host(rows, outputs):
  outputs = jax.device_get(outputs)
  return rows, {name: value[:rows] for name, value in outputs.items()}


def first_batch(
  run: Run, split: store.Rows, batch_size: int, images: jax.Array | None = None
) -> Any:
  """The first batch of `infer`, on the devices: to compile for."""
  stream = batches.sequential_stream(
    run, split, run.devices.whole_batch(batch_size), images=images is None
  )
  return batches.place(run, pipeline.first(stream, 1)[0])


def collect(
  run: Run, eval_step: Callable[[Any, Any, Any], Any], state: steps.TrainState,
  split: store.Rows, batch_size: int, images: jax.Array | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
  """What `infer` yields of a whole split, an array (N, ...) an output."""
  parts: dict[str, list[np.ndarray]] = {}
  for _, outputs in infer(run, eval_step, state, split, batch_size, images):
    for name, value in outputs.items():
      parts.setdefault(name, []).append(value)
  return {name: np.concatenate(part) for name, part in parts.items()}
