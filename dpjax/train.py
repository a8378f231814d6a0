"""The training loop: data, step, metrics, validation, checkpoints.

The loop dispatches step n and then reads the metrics of step n - 1, so that
the device never waits for the host. Nothing is saved before its loss and
gradient norm are known to be finite.
"""

import contextlib
import functools
import json
import math
import os
import pathlib
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm

from dpjax import atomic, checkpoint, manifest, steps
from dpjax import config as config_lib
from dpjax import experiment as experiment_lib
from dpjax.data import labels, prepare
from dpjax.evaluation import bootstrap


class Stopped(Exception):
  """A signal asked the run to stop; it has been saved."""


class NonFinite(Exception):
  """A loss or gradient norm is not finite; the message says which and where."""


def train(config: Any, stage: str, workdir: str | pathlib.Path) -> None:
  """Trains one stage to the end, from wherever `workdir` left off.

  Writes into `workdir`: config.json, metrics.jsonl, checkpoints/, and with
  train.tensorboard its events.

  Args:
    config: as resolved (dpjax.config.resolve).
    stage: 'pretrain' or 'retrain'.
    workdir: of this stage.

  Raises:
    ValueError: one line, for a config, set or workdir that do not fit.
    NonFinite: a loss diverged; the last good checkpoint stays.
    Stopped: after SIGTERM or SIGINT, with everything saved.
  """
  began = time.perf_counter()
  workdir = pathlib.Path(workdir)
  _claim(workdir, config, stage)
  data = prepare.open_prepared(config)
  run = experiment_lib.build(config, stage, data)
  settings = run.settings
  steps_per_epoch = len(run.training_records) / settings.batch_size
  total = max(1, round(settings.epochs * steps_per_epoch))
  optimizer, schedule = run.optimizer(total)
  stream = iter(run.training_stream())

  saved = checkpoint.Checkpoints(
    workdir,
    keep=config.train.keep,
    best=config.eval.best if stage == 'retrain' else '',
  )
  with contextlib.closing(saved), contextlib.closing(stream):
    newest = saved.newest()
    backbone = None
    source = config.init.backbone
    if newest is None and stage == 'retrain' and source:
      backbone = experiment_lib.read_backbone(source, run)
    if newest is None:
      manifest.write(
        workdir,
        stage,
        run.training_records,
        source if backbone is not None and os.path.isdir(source) else None,
      )
      _warn_of_seen(run, workdir)
    state = experiment_lib.initial_state(run, optimizer, backbone, source)
    record = {'training': 0.0, 'wall': 0.0}  # seconds
    start = 'from scratch' if backbone is None else f'from {source}'
    if newest is not None:
      state, data_state, record = saved.restore(newest, state)
      run.check_trained_on(record)
      stream.set_state(data_state)
      start = f'resumed at step {newest}'
    done = newest or 0
    log = MetricsLog(workdir, done, config.train.tensorboard)
    print(
      f'{stage}: {workdir}, {start}, to step {total} ({settings.epochs:g}'
      f' epochs of {len(run.training_records)} radiographs by'
      f' {settings.batch_size}), {_devices(config)}',
      flush=True,
    )
    with contextlib.closing(log), _Signals() as signals:
      _loop(
        run, optimizer, schedule, stream, state, saved, log, signals,
        done=done, total=total, steps_per_epoch=steps_per_epoch,
        trained=record['training'], began=began - record['wall'],
      )  # fmt: skip


def _warn_of_seen(run, workdir):
  """Says now what evaluation will refuse when the training is done."""
  for name in ('validation', 'test'):
    if name in run.data.splits:
      try:
        manifest.check_unseen(
          workdir,
          run.data.split(name),
          f'{name} of {run.data.path}',
          run.config.split.near,
        )
      except ValueError as error:
        print(f'warning: {error}', file=sys.stderr, flush=True)


def _loop(
  run, optimizer, schedule, stream, state, saved, log, signals, *,
  done, total, steps_per_epoch, trained, began,
):  # fmt: skip
  config = run.config
  train_step = run.compile(
    functools.partial(
      steps.train_step, stage=run.model, optimizer=optimizer, schedule=schedule
    ),
    donate=True,
  )
  eval_step = run.compile(
    functools.partial(steps.eval_step, stage=run.model), gather=True
  )
  every = config.eval.every * steps_per_epoch
  evaluations = {total}
  if every:
    every = max(every, 1.0)
    count = math.ceil(total / every)
    evaluations |= {min(total, round(i * every)) for i in range(1, count + 1)}
  interval = Interval(run.settings.batch_size)
  pending = None  # (step, metrics still on the device)
  clock = time.perf_counter()

  def settle():
    """Reads the metrics of the step before; raises NonFinite."""
    nonlocal pending
    if pending is None:
      return
    step, metrics = pending
    pending = None
    metrics = {k: float(v) for k, v in jax.device_get(metrics).items()}
    _check_finite(step, metrics, saved)
    interval.add(metrics)
    bar.update(1)
    if step % config.train.log_every == 0 or step == total:
      now = time.perf_counter()
      means = interval.close()
      bar.set_postfix(loss=f'{means["loss"]:.3f}', refresh=False)
      log.write(
        step,
        epoch=step / steps_per_epoch,
        split='train',
        **means,
        seconds_training=trained + now - clock,
        seconds_wall=now - began,
      )

  bar = tqdm.tqdm(
    total=total,
    initial=done,
    desc=run.stage,
    unit='step',
    disable=not config.train.progress,
    file=sys.stderr,
    dynamic_ncols=True,
  )
  step = done  # a finished run has no step to make
  with contextlib.closing(bar):
    for step in range(done + 1, total + 1):
      batch = next(stream)
      batch = {k: v for k, v in batch.items() if k not in ('index', 'valid')}
      state, metrics = train_step(state, run.place(batch))
      settle()
      pending = (step, metrics)
      stop = signals.received
      evaluate = step in evaluations
      save_every = config.train.save_every
      if not (evaluate or stop or (save_every and step % save_every == 0)):
        continue
      settle()
      now = time.perf_counter()
      trained += now - clock
      scores = None
      if evaluate and config.eval.every:
        scores = validate(run, eval_step, state)
        # The one look at the state itself: step's loss is of the one before.
        if not math.isfinite(scores.get('loss', 0.0)):
          raise _non_finite(step, {'validation loss': scores['loss']}, saved)
        log.write(
          step,
          epoch=step / steps_per_epoch,
          split='validation',
          **scores,
          seconds_training=trained,
          seconds_wall=time.perf_counter() - began,
        )
        bar.write(_describe(run.stage, step / steps_per_epoch, scores))
      saved.save(
        step,
        state,
        stream.get_state(),
        {
          'training': trained,
          'wall': time.perf_counter() - began,
          'trained_on': run.fingerprint,
        },
        scores,
      )
      if stop:
        break
      interval.restart()
      clock = time.perf_counter()
  saved.wait()
  # At the last step too: a recipe would go on with its next stage.
  if signals.received:
    raise Stopped(
      f'stopped by {signals.received} and saved at step {step} of {total};'
      ' the same command goes on from there'
    )


def validate(run: Any, eval_step: Any, state: Any) -> dict[str, float | None]:
  """Scores the whole validation split; {} where the set has none.

  Stage I: the loss and accuracy among the views of each batch, by the running
  statistics. Stage II: the loss and evaluation.bootstrap.summary.
  """
  if 'validation' not in run.data.splits:
    return {}
  split = run.data.split('validation')
  outputs = run.collect(eval_step, state, split, run.settings.batch_size)
  loss = float(outputs['loss'].mean())
  if run.stage == 'pretrain':
    accuracy = float(outputs['contrastive_accuracy'].mean())
    return {'loss': loss, 'contrastive_accuracy': accuracy}
  if not math.isfinite(loss):
    return {'loss': loss}  # Nothing else is defined, and the loop stops.
  summary = bootstrap.summary(
    split.labels,
    probabilities(outputs['logits']),
    any_lesion=labels.is_normal(run.data.class_names[0]),
  )
  return {'loss': loss, **summary}


def probabilities(logits: np.ndarray) -> np.ndarray:
  """Softmax of logits (N, C), in float64."""
  logits = np.asarray(logits, np.float64)
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exp / exp.sum(axis=-1, keepdims=True)


class Interval:
  """Means of the metrics, and images/s, since the last line of the log."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self.restart()

  def restart(self) -> None:
    """Starts a new interval now; what was collected counts no more."""
    self._sums: dict[str, float] = {}
    self._count = 0
    self._clock = time.perf_counter()

  def add(self, metrics: dict[str, float]) -> None:
    """Adds one step's metrics."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def close(self) -> dict[str, float]:
    """Returns the means with 'images_per_second', and restarts."""
    means = {name: total / self._count for name, total in self._sums.items()}
    seconds = time.perf_counter() - self._clock
    means['images_per_second'] = self._count * self._batch_size / seconds
    self.restart()
    return means


class MetricsLog:
  """metrics.jsonl, a line an entry, and TensorBoard events if wanted."""

  def __init__(self, workdir: pathlib.Path, done: int, tensorboard: bool):
    """Opens the log of a run that has `done` steps behind it.

    Lines of later steps stem from before a kill and are dropped: these steps
    are made again.
    """
    path = workdir / 'metrics.jsonl'
    if path.exists():
      kept = [
        line
        for line in path.read_text().splitlines()
        # The last line may be torn.
        if line.endswith('}') and json.loads(line)['step'] <= done
      ]
      atomic.write_text(path, ''.join(line + '\n' for line in kept))
    self._file = path.open('a')
    self._events = None
    if tensorboard:
      try:
        import tensorboardX
      except ImportError as error:
        raise ValueError(
          'config.train.tensorboard needs the extra: pip install -e'
          " '.[tensorboard]'"
        ) from error
      self._events = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=done + 1
      )

  def write(self, step: int, *, split: str, **values: Any) -> None:
    """Appends one entry; numbers that are not finite are written as null."""
    entry = {'step': step, 'split': split}
    for name, value in values.items():
      finite = value is not None and math.isfinite(value)
      entry[name] = float(f'{value:.6g}') if finite else None
      if finite and self._events:
        self._events.add_scalar(f'{split}/{name}', value, step)
    self._file.write(json.dumps(entry) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._events:
      self._events.close()


class _Signals:
  """SIGTERM and SIGINT ask the loop to stop; a second SIGINT interrupts."""

  def __init__(self):
    self.received = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    if self.received and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number).name


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


def _claim(workdir, config, stage):
  """Makes the workdir this config's own, or refuses another run's."""
  record = config.copy_and_resolve_references()
  record.stage = stage
  path = workdir / 'config.json'
  # Without a checkpoint nothing of the other config's is there yet: it was
  # refused, or stopped at once.
  if path.exists() and checkpoint.has_checkpoint(workdir):
    changed = config_lib.differences(config_lib.load(path), record)
    if changed:
      raise ValueError(
        f'--workdir={workdir} holds a run of another config'
        f' ({"; ".join(changed[:4])}); repeat its flags or name another workdir'
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    config_lib.save(record, path)
  except OSError as error:
    raise ValueError(
      f'--workdir={workdir} cannot be written ({error.strerror}); name another'
    ) from error


def _devices(config):
  kind = jax.devices()[0].device_kind
  count = config.parallel.devices
  return f'{config.parallel.mode} on {count} x {kind}, {config.model.dtype}'


def _describe(stage, epoch, scores):
  text = ', '.join(
    f'{name} {value:.4g}' for name, value in scores.items() if value is not None
  )
  return f'{stage} epoch {epoch:.2f}, validation: {text or "no radiographs"}'
