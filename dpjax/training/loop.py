"""The training loop: data, step, metrics, validation, checkpoints.

A dispatch is train.steps_per_dispatch steps. The loop sends off dispatch n,
starts the transfer of the next one's batch, and then reads the metrics of
dispatch n - 1, so that the device never waits for the host. Nothing is saved
before its loss and gradient norm are known to be finite.

In a job of several processes all go through the same loop on the same numbers;
the first one writes the log and speaks, and all save.
"""

import contextlib
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from dpjax import leakage, prepare
from dpjax.distributed import processes
from dpjax.errors import NonFinite, Stopped
from dpjax.training import (
  batches,
  build,
  checkpoint,
  inference,
  metrics_log,
  programs,
  signals,
  start,
  validation,
)
from dpjax.training import workdir as workdir_lib
from dpjax.training.run import Run


def train(config: Any, stage: str, workdir: str | pathlib.Path) -> None:
  """Trains one stage to the end, from wherever `workdir` left off.

  Writes into `workdir`: config.json, metrics.jsonl, checkpoints/, and with
  train.tensorboard its events.

  Args:
    config: as resolved (dpjax.config.resolve).
    stage: 'pretrain' or 'retrain'.
    workdir: of this stage.

  Raises:
    UserError: one line, for a config, set or workdir that do not fit.
    NonFinite: a loss diverged; the last good checkpoint stays.
    Stopped: after SIGTERM or SIGINT, with everything saved.
  """
  began = time.perf_counter()
  workdir = pathlib.Path(workdir)
  run = _open(config, stage, workdir)
  optimizer, schedule = build.make_optimizer(run, run.total_steps)
  stream = iter(batches.training_stream(run))
  saved = checkpoint.Checkpoints(
    workdir,
    keep=config.train.keep,
    best=config.eval.best if stage == 'retrain' else '',
  )
  with contextlib.closing(saved), contextlib.closing(stream):
    begin = start.find_start(run, workdir, saved, optimizer, stream)
    clock = metrics_log.Clock(began, begin.training, begin.wall)
    log = metrics_log.MetricsLog(
      workdir,
      begin.done,
      config.train.tensorboard,
      write=processes.is_process_0(),
    )
    if processes.is_process_0():
      print(_describe_start(run, workdir, begin), flush=True)
    # The job inside of what is closed: closing waits for the other processes.
    with (
      contextlib.closing(log),
      signals.Signals() as received,
      processes.job(),
    ):
      loop = _Loop(run, begin, stream, saved, log, clock, received)
      loop.make_steps(optimizer, schedule)


def _open(config, stage, workdir):
  """The run, once the workdir is its own, with its config on record there."""

  def claim_and_prepare():
    workdir_lib.claim_workdir(workdir, config, stage)
    checkpoint.set_aside_damaged(workdir)
    return prepare.open_prepared(config)

  data = processes.on_process_0(f'{stage}: open', claim_and_prepare)
  run = build.build(config, stage, data or prepare.open_prepared(config))
  processes.on_process_0(
    f'{stage}: record',
    lambda: workdir_lib.record_config(workdir, run.config, stage),
  )
  return run


def dispatches(done: int, total: int, size: int) -> Iterator[int]:
  """The steps of each dispatch from `done` to `total`.

  Dispatches of `size` steps begin at multiples of it; what does not fit, at the
  end or after a resume, goes step by step.
  """
  while done < total:
    whole = done % size == 0 and done + size <= total
    yield size if whole else 1
    done += size if whole else 1


def crosses_multiple(step: int, size: int, every: int) -> bool:
  """Whether the `size` steps up to `step` hold a multiple of `every`, not 0."""
  return bool(every) and step // every > (step - size) // every


class _Loop:
  """A run between two dispatches: its state, and what is under way."""

  def __init__(
    self, run: Run, begin: start.Start, stream: Any,
    saved: checkpoint.Checkpoints, log: metrics_log.MetricsLog,
    clock: metrics_log.Clock, received: signals.Signals,
  ):  # fmt: skip
    self._run = run
    self._state = begin.state
    self._step = begin.done
    self._stream = stream
    self._saved = saved
    self._log = log
    self._clock = clock
    self._received = received
    self._trained_on = leakage.fingerprint(run.records)
    self._several = jax.process_count() > 1
    self._stop_requested = False  # by any process of several, once all know it
    self._pending = None  # (last step, metrics still on the device)
    self._images = self._validation_images = None
    self._eval_step = programs.compile_evaluation(run)
    self._programs = programs.Programs()
    self._interval = metrics_log.Interval(run.settings.batch_size)
    self._bar = tqdm.tqdm(
      total=run.total_steps,
      initial=begin.done,
      desc=run.stage,
      unit='step',
      disable=not (run.config.train.progress and processes.is_process_0()),
      file=sys.stderr,
      dynamic_ncols=True,
    )

  def make_steps(self, optimizer: Any, schedule: Any) -> None:
    """Makes the steps that are left.

    Raises:
      NonFinite, Stopped: as `train`.
    """
    settings, total = self._run.config.train, self._run.total_steps
    sizes = [*dispatches(self._step, total, settings.steps_per_dispatch)]
    validated = validation.validation_steps(
      total,
      self._run.config.eval.every,
      self._run.steps_per_epoch,
      settings.steps_per_dispatch,
    )
    self._clock.start()
    with contextlib.closing(self._bar), contextlib.closing(self._programs):
      if sizes:  # A finished run has no step to make.
        prefetched = self._compile(sizes, optimizer, schedule)
      self._interval.restart()
      for size, following in itertools.zip_longest(sizes, sizes[1:]):
        batch, data_state = prefetched
        metrics = self._dispatch(size, batch)
        if following:
          prefetched = self._prefetch(following)
        self._flush()
        self._pending = self._step, metrics
        stop = self._must_stop()
        validate = self._step in validated
        save = crosses_multiple(self._step, size, settings.save_every)
        if stop or validate or save:
          self._flush()
          self._clock.stop()
          scores = self._validate() if validate else None
          self._save(data_state, scores)
          if stop:
            break
          self._interval.restart()
          self._clock.start()
    self._saved.wait()
    self._raise_if_stopped()

  def _compile(self, sizes, optimizer, schedule):
    """Starts all compilations at once; returns the first dispatch's batch."""
    run = self._run
    self._images = batches.resident_images(run, run.records)
    host = self._read(sizes[0])
    prefetched = batches.place_dispatch(run, host), self._stream.get_state()
    # While Grain fills its queue.
    for size in {*sizes}:
      batch = prefetched[0]
      if size != sizes[0]:
        batch = batches.place_dispatch(run, host[:1] * size)
      step = programs.compile_training(run, optimizer, schedule, size)
      self._programs.begin(size, step, self._state, batch, self._images)
    split = run.data.splits.get('validation', ())
    if run.config.eval.every and len(split):
      images = batches.resident_images(run, split)
      batch = inference.first_batch(run, split, run.settings.batch_size, images)
      self._programs.begin(
        'validation', self._eval_step, self._state, batch, images
      )
      self._eval_step = self._programs['validation']
      self._validation_images = images
    return prefetched

  def _read(self, size):
    """The host batches of a dispatch."""
    host = [next(self._stream) for _ in range(size)]
    if not self._several:
      return host
    stop = np.float32(self._received.received is not None)
    return [{**b, 'stop': np.full(len(b['label']), stop)} for b in host]

  def _prefetch(self, size):
    """(batch on its way to the devices, the stream's state after it)."""
    batch = batches.place_dispatch(self._run, self._read(size))
    return batch, self._stream.get_state()

  def _dispatch(self, size, batch):
    """Sends off `size` steps; their metrics, still on the device."""
    program = self._programs[size]
    self._state, metrics = program(self._state, batch, self._images)
    self._step += size
    return metrics

  def _flush(self):
    """Reads the metrics of the dispatch before; raises NonFinite."""
    if self._pending is None:
      return
    last, metrics = self._pending
    self._pending = None
    metrics = {k: np.atleast_1d(v) for k, v in jax.device_get(metrics).items()}
    self._stop_requested |= bool(metrics.pop('stop', np.zeros(1)).any())
    size = len(metrics['loss'])
    for i in range(size):
      values = {name: float(value[i]) for name, value in metrics.items()}
      _check_finite(last - size + 1 + i, values, self._saved)
      self._interval.add(values)
    self._bar.update(size)
    every = self._run.config.train.log_every
    if crosses_multiple(last, size, every) or last == self._run.total_steps:
      means = self._interval.close()
      self._bar.set_postfix(loss=f'{means["loss"]:.3f}', refresh=False)
      self._write(last, 'train', means)

  def _must_stop(self):
    """Whether this process, or in a job of several all, stop here."""
    if self._several:
      return self._stop_requested
    return self._received.received is not None

  def _validate(self):
    """The scores of the state, logged; None where eval.every says never."""
    run = self._run
    if not run.config.eval.every:
      return None
    scores = validation.validate(
      run, self._eval_step, self._state, self._validation_images
    )
    # The one look at the state itself: step's loss is of the one before.
    loss = scores.get('loss', 0.0)
    if not math.isfinite(loss):
      raise _non_finite(self._step, {'validation loss': loss}, self._saved)
    self._write(self._step, 'validation', scores)
    if processes.is_process_0():
      epoch = self._step / run.steps_per_epoch
      self._bar.write(_describe_scores(run.stage, epoch, scores))
    return scores

  def _write(self, step, split, values):
    """A line of the log."""
    self._log.write(
      step,
      epoch=step / self._run.steps_per_epoch,
      split=split,
      **values,
      seconds_training=self._clock.training,
      seconds_wall=self._clock.wall,
    )

  def _save(self, data_state, scores):
    """Starts to save the state, with the stream's state after its batches."""
    record = {
      'training': self._clock.training,
      'wall': self._clock.wall,
      'trained_on': self._trained_on,
      'steps_per_dispatch': self._run.config.train.steps_per_dispatch,
    }
    self._saved.save(self._step, self._state, data_state, record, scores)

  def _raise_if_stopped(self):
    # At the last step too: a recipe would go on with its next stage.
    name = self._received.received
    if processes.any_process(self._stop_requested or name is not None):
      raise Stopped(
        f'stopped by {name or "another process"} and saved at step {self._step}'
        f' of {self._run.total_steps}; the same command goes on from there'
      )


def _check_finite(step, metrics, saved):
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    raise _non_finite(step, bad, saved)


def _non_finite(step, bad, saved):
  # A term names the culprit better than the sum it makes non-finite.
  first, *others = sorted(
    bad, key=lambda name: (not name.startswith('loss/'), name)
  )
  newest = saved.newest()
  kept = 'no checkpoint yet' if newest is None else f'step {newest} is kept'
  return NonFinite(
    f'step {step}: {first} is {bad[first]}'
    + (f' (also {", ".join(others)})' if others else '')
    + f'; the last good checkpoint: {kept}. Try a lower learning rate, or clip'
  )


def _describe_start(run, workdir, begin):
  return (
    f'{run.stage}: {workdir}, {begin.origin}, to step {run.total_steps}'
    f' ({run.settings.epochs:g} epochs of {len(run.records)} radiographs by'
    f' {run.settings.batch_size}), {_describe_devices(run)}'
  )


def _describe_devices(run):
  config = run.config
  kind = jax.devices()[0].device_kind
  parts = [
    f'{run.devices.mode} on {run.devices.count} x {kind}',
    config.model.dtype,
  ]
  if jax.process_count() > 1:
    parts.append(f'{jax.process_count()} processes')
  if config.train.steps_per_dispatch > 1:
    parts.append(f'{config.train.steps_per_dispatch} steps a dispatch')
  if config.data.placement == 'resident':
    parts.append('images in device memory')
  return ', '.join(parts)


def _describe_scores(stage, epoch, scores):
  text = ', '.join(
    f'{name} {value:.4g}' for name, value in scores.items() if value is not None
  )
  return f'{stage} epoch {epoch:.2f}, validation: {text or "no radiographs"}'
