"""The training loop: data, step, metrics, validation, checkpoints.

A dispatch is train.steps_per_dispatch steps. The loop sends off dispatch n,
starts the transfer of the next one's batch, and then reads the metrics of
dispatch n - 1, so that the device never waits for the host. Nothing is saved
before its loss and gradient norm are known to be finite.

In a job of several processes all go through the same loop on the same numbers;
the first one writes the log and speaks, and all save.
"""

import contextlib
import functools
import itertools
import math
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from dpjax import leakage, prepare, signals
from dpjax.distributed import processes
from dpjax.errors import NonFinite, Stopped, UserError
from dpjax.training import (
  batches,
  build,
  checkpoint,
  describe,
  inference,
  metrics_log,
  packed,
  probe,
  programs,
  start,
  trace,
  validation,
)
from dpjax.training import workdir as workdir_lib
from dpjax.training.run import Run


def train(
  config: ConfigDict,
  stage: str,
  workdir: str | pathlib.Path,
  extend: bool = False,
) -> None:
  """Trains one stage to the end, from wherever `workdir` left off.

  Writes into `workdir`: config.json, metrics.jsonl, checkpoints/, with
  train.tensorboard its events, and with train.trace a profile in trace/.

  Args:
    config: as resolved (dpjax.config.resolve).
    stage: 'pretrain', 'retrain' or 'finetune'.
    workdir: of this stage.
    extend: go on from the end of a finished run, where `epochs` is larger than
      it was; the schedule is drawn anew over the steps that are left.

  Raises:
    UserError: one line, for a config, set or workdir that do not fit, or
      where another process trains in it.
    NonFinite: a loss diverged; the last good checkpoint stays.
    Stopped: after SIGTERM or SIGINT, with everything saved.
    KeyboardInterrupt: after SIGINT, where there was nothing to save yet.
  """
  with signals.noted(), contextlib.ExitStack() as held:
    _train(config, stage, pathlib.Path(workdir), extend, held)


def _check_signals():
  if jax.process_count() == 1:  # Several stop together, at a step.
    signals.check()


def _train(config, stage, workdir, extend, held):
  began = time.perf_counter()
  _check_signals()
  run = _open(config, stage, workdir, extend, held)
  _check_signals()
  optimizer, schedule = build.make_optimizer(run, run.total_steps)
  stream = iter(batches.training_stream(run))
  saved = checkpoint.Checkpoints(
    workdir,
    keep=config.train.keep,
    best=config.eval.best if stage != 'pretrain' else '',
  )
  with contextlib.closing(saved), contextlib.closing(stream):
    begin = start.find_start(run, workdir, saved, optimizer, stream)
    _check_signals()
    clock = metrics_log.Clock(began, begin.training, begin.wall)
    log = metrics_log.MetricsLog(
      workdir,
      begin.done,
      config.train.tensorboard,
      write=processes.is_process_0(),
    )
    if processes.is_process_0():
      print(describe.start(run, workdir, begin), flush=True)
    steps = config.train.trace if processes.is_process_0() else 0
    traced = contextlib.closing(trace.Trace(workdir / 'trace', steps))
    # The job inside of what is closed: closing waits for the other processes.
    with contextlib.closing(log), traced as profile, processes.job():
      _loop(
        run, begin, optimizer, schedule,
        stream=stream, saved=saved, log=log, clock=clock, profile=profile,
      )  # fmt: skip


def _open(config, stage, workdir, extend, held):
  """The run, once the workdir is its own, with its config on record there.

  `held` then holds the workdir's lock, for all processes of a job.
  """
  config, epochs = workdir_lib.extended(workdir, config, stage, extend)

  def claim_and_prepare():
    workdir_lib.claim_workdir(workdir, config, stage, epochs)
    held.enter_context(workdir_lib.locked(workdir))
    checkpoint.set_aside_damaged(workdir)
    return prepare.open_prepared(config)

  data = processes.on_process_0(f'{stage}: open', claim_and_prepare)
  config = workdir_lib.as_begun(workdir, config)
  run = build.build(config, stage, data or prepare.open_prepared(config))
  if epochs is not None:
    _check_finished(run, workdir, epochs)
  processes.on_process_0(
    f'{stage}: record',
    lambda: workdir_lib.record_config(workdir, run.config, stage),
  )
  return run


def _check_finished(run, workdir, epochs):
  """Refuses to extend a run before it has ended as it was begun."""
  # What was damaged is set aside by now, so this may be an earlier step.
  newest = checkpoint.newest_step(workdir)
  end = max(1, round(epochs * run.steps_per_epoch))
  if newest < end:
    raise UserError(
      f'--extend: {workdir} is at step {newest} of {end};'
      f' finish it first, by the same command with epochs={epochs:g}'
    )


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


def _loop(
  run, begin, optimizer, schedule, *, stream, saved, log, clock, profile
):
  """Makes the steps that are left; raises as `train`."""
  settings, total = run.config.train, run.total_steps
  several = jax.process_count() > 1
  sizes = [*dispatches(begin.done, total, settings.steps_per_dispatch)]
  validated = validation.validation_steps(
    total,
    run.config.eval.every,
    run.steps_per_epoch,
    settings.steps_per_dispatch,
  )
  write = functools.partial(_write, run, log, clock)
  seen = {
    'trained_on': leakage.fingerprint(run.records),
    'manifest': begin.manifest,
    **_classes(run),
  }
  state, step = begin.state, begin.done
  with (
    _progress_bar(run, step) as bar,
    contextlib.closing(programs.Programs()) as compiled,
  ):
    clock.start()
    if sizes:  # A finished run has no step to make.
      host = _read(stream, sizes[0])
      prefetched = _send(run, stream, host)
      images, validate = _compile(
        compiled, run, optimizer, schedule, sizes, state, host, prefetched[0]
      )
      if several:
        _meet(run, compiled, sizes)
    interval = metrics_log.Interval(
      run.settings.batch_size, clock, begin.interval
    )
    metrics = _LateMetrics(run, saved, write, bar, interval)
    for size, following in itertools.zip_longest(sizes, sizes[1:]):
      batch, data_state = prefetched
      with profile.dispatch(step):
        state, sent = compiled[size](state, batch, images)
      profile.sent(size, sent)
      step += size
      if following:
        host = _read(stream, following)
        prefetched = _send(run, stream, host)
      metrics.flush()
      metrics.put(step, sent)
      stop = metrics.stop_requested if several else signals.received()
      save = crosses_multiple(step, size, settings.save_every)
      if not (stop or save or step in validated):
        continue
      metrics.flush()
      clock.stop()
      scores = None
      if step in validated and run.config.eval.every:
        scores = validate(state)
        _check_scores(step, scores, saved)
        write(step, 'validation', scores)
        if processes.is_process_0():
          bar.write(describe.scores(run, step, scores))
      if run.config.data.placement != 'resident':  # Else all was read at first.
        run.records.check_unchanged()
      record = _record(run, clock, interval, seen)
      # Unpacked for this call only: nothing of it stays on the devices.
      saved.save(
        step, packed.as_modules_know(state), data_state, record, scores
      )
      if stop:
        break
      clock.start()
  saved.wait()
  # At the last step too: a recipe would go on with its next stage.
  name = signals.received()
  if processes.any_process(bool(metrics.stop_requested or name)):
    raise _stopped(step, total, name)


def _read(stream, size):
  """The host batches of a dispatch."""
  host = [next(stream) for _ in range(size)]
  if jax.process_count() == 1:
    return host
  # That one process was asked to stop, all must know at the same step.
  stop = np.float32(signals.received() is not None)
  return [{**b, 'stop': np.full(len(b['label']), stop)} for b in host]


def _send(run, stream, host):
  """(batch on its way to the devices, the stream's state after it)."""
  return batches.place_dispatch(run, host), stream.get_state()


def _compile(compiled, run, optimizer, schedule, sizes, state, host, batch):
  """Starts all compilations at once, while Grain fills its queue.

  Args:
    compiled: programs.Programs, which gets one for each of the sizes.
    run, optimizer, schedule: what is compiled.
    sizes: of the dispatches.
    state: on the devices.
    host: batches of the first dispatch.
    batch: the same on the devices.

  Returns:
    the training images on the devices or None, and f(state) -> scores, of a
    state as the steps have it.
  """
  images = batches.resident_images(run, run.records)
  for size in {*sizes}:
    own = batch
    if size != len(host):
      own = batches.place_dispatch(run, host[:1] * size)
    step = programs.compile_training(run, optimizer, schedule, size)
    compiled.begin(size, step, state, own, images)
  split = run.data.splits.get('validation', ())
  if not (run.config.eval.every and len(split)):
    return images, lambda state: {}
  held_out = batches.resident_images(run, split)
  first = inference.first_batch(run, split, run.settings.batch_size, held_out)
  known = packed.as_modules_know(state)
  compiled.begin(
    'validation', programs.compile_evaluation(run), known, first, held_out
  )
  probed = probe.make(run, compiled, known, images, held_out)
  eval_step = compiled['validation']

  def validate(state):
    state = packed.as_modules_know(state)
    scores = validation.validate(run, eval_step, state, held_out)
    loss = scores.get('loss')
    if loss is None or math.isfinite(loss):  # Else the loop stops.
      scores |= probed(state)
    return scores

  return images, validate


def _meet(run, compiled, sizes):
  """Waits for the compilers of all processes."""
  for size in {*sizes}:
    compiled[size]
  processes.meet(f'{run.stage}: compiled')


class _LateMetrics:
  """Metrics of the dispatches, each read after the next one is sent.

  Attributes:
    stop_requested: by a process of several, as all of them have read.
  """

  def __init__(
    self,
    run: Run,
    saved: checkpoint.Checkpoints,
    write: Callable[[int, str, dict[str, float]], None],
    bar: tqdm.tqdm,
    interval: metrics_log.Interval,
  ):
    self.stop_requested = False
    self._run = run
    self._saved = saved
    self._write = write
    self._bar = bar
    self._interval = interval
    # (last step, metrics still on the device)
    self._pending: tuple[int, dict[str, jax.Array]] | None = None

  def put(self, step: int, metrics: Any) -> None:
    """Holds the metrics of the dispatch that ends with `step`."""
    self._pending = step, metrics

  def flush(self) -> None:
    """Reads what is held, if there is any; a line of the log, if it is due.

    Raises:
      NonFinite: a loss or a gradient norm is not finite.
    """
    if self._pending is None:
      return
    last, sent = self._pending
    self._pending = None
    metrics = {k: np.atleast_1d(v) for k, v in jax.device_get(sent).items()}
    self.stop_requested |= bool(metrics.pop('stop', np.zeros(1)).any())
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


def _progress_bar(run, done):
  return tqdm.tqdm(
    total=run.total_steps,
    initial=done,
    desc=run.stage,
    unit='step',
    disable=not (run.config.train.progress and processes.is_process_0()),
    file=sys.stderr,
    dynamic_ncols=True,
  )


def _write(run, log, clock, step, split, values):
  """A line of the log."""
  log.write(
    step,
    epoch=step / run.steps_per_epoch,
    split=split,
    **values,
    seconds_training=clock.training,
    seconds_wall=clock.wall,
  )


def _record(run, clock, interval, seen):
  """What a checkpoint says of the run, for the start that finds it."""
  return {
    'training': clock.training,
    'wall': clock.wall,
    'interval': interval.state,
    **seen,
    'steps_per_dispatch': run.config.train.steps_per_dispatch,
  }


def _classes(run):
  """What a classifier's answers are called, and how many of each it sees."""
  if run.stage == 'pretrain':
    return {}
  counts = build.class_counts(run.data.split('train'), run.data.num_classes)
  return {
    'class_names': [*run.data.class_names],
    'class_counts': counts.tolist(),
  }


def _stopped(step, total, signal):
  return Stopped(
    f'stopped by {signal or "another process"} and saved at step {step} of'
    f' {total}; the same command goes on from there'
  )


def _check_scores(step, scores, saved):
  # The one look at the state itself: a step's loss is of the state before.
  loss = scores.get('loss', 0.0)
  if not math.isfinite(loss):
    raise _non_finite(step, {'validation loss': loss}, saved)


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
