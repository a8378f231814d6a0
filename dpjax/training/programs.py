"""A run's steps, compiled for its devices."""

import concurrent.futures
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from dpjax import signals
from dpjax.training import steps
from dpjax.training.run import Run


def compile_step(
  run: Run, step: Callable[..., Any], **options: Any
) -> jax.stages.Wrapped:
  """Compiles a per-device step, as f(state, batch, images).

  Args:
    run: whose devices it runs on.
    step: f(state, batch, axis_name=...), e.g. steps.eval_step.
    **options: donate, gather, steps of parallel.Devices.compile.

  Returns:
    the program; `images` are those of batches.resident_images, of which the
    batch has the `index`, or None where they come with the batch.
  """

  def with_images(state, batch, images, **kwargs):
    if images is not None:
      squares = images.at[batch['index']].get(mode='promise_in_bounds')
      batch = {**batch, 'images': squares}
    return step(state, batch, **kwargs)

  return run.devices.compile(with_images, **options)


def compile_training(
  run: Run,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  count: int = 1,
  donate: bool = True,
) -> jax.stages.Wrapped:
  """`compile_step` of the run's update, `count` of them a dispatch."""
  step = functools.partial(
    steps.train_step,
    objective=run.objective,
    optimizer=optimizer,
    schedule=schedule,
    average=run.average,
    own_statistics=run.config.model.batch_norm == 'device',
  )
  return compile_step(run, step, donate=donate, steps=count)


def compile_evaluation(run: Run) -> jax.stages.Wrapped:
  """`compile_step` of what the run says of each image (inference.infer)."""
  step = functools.partial(steps.eval_step, objective=run.objective)
  return compile_step(run, step, gather=True)


def compile_embedding(run: Run) -> jax.stages.Wrapped:
  """`compile_step` of what its backbone makes of plain images."""
  step = functools.partial(steps.embed_step, objective=run.objective)
  return compile_step(run, step, gather=True)


def first_call(step: Callable[..., Any], *arguments: Any) -> Any:
  """Calls a jitted function that is not compiled yet.

  It waits for the compiler, unless a signal comes. A job of several stops
  together, at a step: there it waits all the same.

  Raises:
    KeyboardInterrupt, Stopped: a signal has come.
  """
  if not _is_alone():
    return step(*arguments)
  return signals.interruptible(step, *arguments)


def _is_alone():
  return jax.process_count() == 1


class Programs:
  """Steps compiled ahead, at the same time, each known by a name."""

  def __init__(self) -> None:
    self._futures: dict[Any, concurrent.futures.Future] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor()

  def begin(self, name: Any, step: Any, *arguments: Any) -> None:
    """Starts the compilation of a step for arguments of these shapes."""
    self._futures[name] = self._pool.submit(step.lower(*arguments).compile)

  def __getitem__(self, name: Any) -> Any:
    """The program; waits for the compiler, unless a signal comes.

    A job of several stops together, at a step: there it waits all the same.

    Raises:
      KeyboardInterrupt, Stopped: a signal has come.
    """
    future = self._futures[name]
    return signals.wait(future) if _is_alone() else future.result()

  def close(self) -> None:
    """Waits for what is being compiled, unless a signal has come."""
    stopped = signals.received() is not None
    self._pool.shutdown(wait=not stopped, cancel_futures=stopped)
