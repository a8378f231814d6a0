"""What the benchmark runs: a config's stages as compiled programs and calls."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dpjax.benchmark import timing
from dpjax.data import store
from dpjax.data.feed import pipeline
from dpjax.distributed import parallel, processes
from dpjax.errors import UserError
from dpjax.training import batches, build, packed, steps
from dpjax.training.programs import compile_evaluation, compile_training
from dpjax.training.run import Run

# On accelerators, where the config names none.
_BATCH_SIZES = (16, 64, 256, 1024)
# The share of a GPU's memory that JAX takes (main.py sets it beside a peer).
MEMORY_SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


def stage_of(part: str) -> str:
  """The stage that a part of the benchmark runs; inference is of stage II."""
  return 'retrain' if part == 'inference' else part


class Bench:
  """A config on its set, and what is needed again and again of it.

  Attributes:
    config: as resolved (dpjax.config.resolve).
    data: the prepared set.
    topology: what to compile for, if not for the devices that are here.
    repeats: (how many, seconds of each), for timing.measure.
  """

  def __init__(
    self,
    config: ConfigDict,
    data: store.Store,
    topology: parallel.Topology | None = None,
  ):
    self.config = config
    self.data = data
    self.topology = topology
    self.repeats = (config.benchmark.repeats, config.benchmark.seconds)
    self._placements: dict[str, str] = {}
    self._states: dict[str, Any] = {}
    self._images: dict[str, Any] = {}

  def say(self, line: str) -> None:
    """Progress, on stderr."""
    if self.config.train.progress:
      print(f'benchmark: {line}', file=sys.stderr, flush=True)

  def run(self, stage: str, **changes: Any) -> Run:
    """The stage with changes to the config, e.g. data__render='host'."""
    config = self.config.copy_and_resolve_references()
    for name, value in changes.items():
      *sections, field = name.split('__')
      functools.reduce(lambda c, key: c[key], sections, config)[field] = value
    by_memory = config.data.placement == 'auto'
    if by_memory and stage in self._placements:  # As when there was most free.
      config.data.placement = self._placements[stage]
    run = build.build(config, stage, self.data, self.topology)
    if by_memory:
      self._placements[stage] = run.config.data.placement
    return run

  def sized(self, stage: str, batch_size: int, **changes: Any) -> Run:
    """The stage with another batch size."""
    return self.run(stage, **{f'{stage}__batch_size': batch_size}, **changes)

  def check(self, stage: str) -> None:
    """Raises UserError if the config's own batch size is above the set."""
    run = self.run(stage)
    if why := self._unfit(run, run.settings.batch_size):
      raise UserError(
        f'config.{stage}.batch_size is {run.settings.batch_size}: {why}'
      )

  def state(self, part: str) -> steps.TrainState:
    """A fresh state as the part's program takes it, which may be donated.

    A training step has it packed (packed.at_rest), inference as the modules
    know it.
    """
    run = self.run(stage_of(part))
    state = self.weights(run.stage)
    if not self.topology:
      state = run.devices.replicate(jax.tree.map(jnp.array, state))
    return state if part == 'inference' else packed.at_rest(run, state)

  def weights(self, stage: str) -> steps.TrainState:
    """The stage's first state, on the host; for a topology its shapes."""
    if stage not in self._states:
      run = self.run(stage)
      optimizer, _ = build.make_optimizer(run, 1)
      state = build.initial_state(run, optimizer)
      # Not on the devices, whose memory is measured.
      self._states[stage] = state if self.topology else jax.device_get(state)
    return self._states[stage]

  def images(self, run: Run) -> Any:
    """The stage's training images on the devices, or None if not resident."""
    if run.config.data.placement != 'resident':
      return None
    if run.stage not in self._images:
      self._images[run.stage] = batches.resident_images(run, run.records)
    return self._images[run.stage]

  def forget(self) -> None:
    """Frees the images."""
    self._images.clear()

  def sizes(self, stage: str) -> tuple[list[int], list[dict[str, Any]]]:
    """The batch sizes that fit, rising, and the others with the reason."""
    run = self.run(stage)
    wanted = self.config.benchmark.batch_sizes
    if not wanted:
      wanted = {run.settings.batch_size}
      if run.devices.platform != 'cpu':
        wanted |= {*_BATCH_SIZES}
    why = {size: self._unfit(run, size) for size in sorted({*wanted})}
    return (
      [size for size in why if not why[size]],
      [{'batch_size': s, 'why': why[s]} for s in why if why[s]],
    )

  def _unfit(self, run, size):
    # What is only compiled draws no batch from the set.
    if size > len(run.records) and not self.topology:
      return f'there are {len(run.records)} training radiographs'
    if size % self.config.parallel.devices:
      return f'not a multiple of the {self.config.parallel.devices} devices'
    return None


def attempt(
  measurement: Callable[[], dict[str, Any]], about: dict[str, Any]
) -> dict[str, Any]:
  """What the measurement finds, or that the device's memory is too small."""
  try:
    return about | measurement()
  except RuntimeError as error:
    # torch's own error by its name, since torch may not be there.
    theirs = type(error).__name__ == 'OutOfMemoryError'
    if not (theirs or processes.too_little_memory(error)):
      raise
  why = 'out of device memory'
  if share := os.environ.get(MEMORY_SHARE):
    why += f' ({MEMORY_SHARE} gives JAX {share} of it)'
  return about | {'error': why}


def training_program(
  run: Run, state: steps.TrainState, images: jax.Array | None, count: int = 1
) -> tuple[Any, Any, dict[str, Any]]:
  """The compiled step, its batch on the devices, and what is known of it.

  Args:
    run: the stage, at the batch size that is wanted.
    state: fresh; only its shapes count.
    images: on the devices, or None.
    count: steps a dispatch.
  """
  optimizer, schedule = build.make_optimizer(run, run.total_steps)
  step = compile_training(run, optimizer, schedule, count)
  batch = batches.place_dispatch(
    run, pipeline.first(batches.training_stream(run), count)
  )
  program, about = timing.compile_ahead(step, state, batch, images)
  return program, batch, about


def train_call(
  program: jax.stages.Compiled,
  state: steps.TrainState,
  batch: Any,
  images: jax.Array | None,
) -> Callable[[int], None]:
  """f(n) that makes n dispatches, the state going from one to the next."""

  def call(number):
    nonlocal state
    for _ in range(number):
      state, metrics = program(state, batch, images)
    jax.block_until_ready((state, metrics))

  return call


def evaluation_batches(
  run: Run, images: jax.Array | None, count: int
) -> list[dict[str, Any]]:
  """The first batches of the training split, plain, on the host."""
  split = run.data.split('train')
  stream = batches.sequential_stream(
    run, split, run.settings.batch_size, images=images is None
  )
  return pipeline.first(stream, count)


def evaluation_program(
  run: Run, state: steps.TrainState, batch: Any, images: jax.Array | None
) -> tuple[Any, dict[str, Any]]:
  """The compiled steps.eval_step, and what is known of it."""
  return timing.compile_ahead(compile_evaluation(run), state, batch, images)


def infer_call(
  program: jax.stages.Compiled,
  state: steps.TrainState,
  placed: list[Any],
  images: jax.Array | None,
) -> Callable[[int], None]:
  """f(n) that evaluates n batches, going round those that are there."""

  def call(number):
    for i in range(number):
      outputs = program(state, placed[i % len(placed)], images)
    jax.block_until_ready(outputs)

  return call
