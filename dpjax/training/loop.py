"""The training loop: data, step, metrics, validation, checkpoints.

A dispatch is train.steps_per_dispatch steps. The loop sends off dispatch n,
starts the transfer of the next one's batch, and then reads the metrics of
dispatch n - 1, so that the device never waits for the host. Nothing is saved
before its loss and gradient norm are known to be finite.

In a job of several processes all go through the same loop on the same numbers;
the first one writes the log and speaks, and all save.
"""

import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from dpjax import atomic, leakage, prepare
from dpjax.config import record as record_lib
from dpjax.data import vocabulary
from dpjax.distributed import parallel, processes
from dpjax.errors import UserError
from dpjax.metrics import predictions
from dpjax.metrics import scores as scores_lib
from dpjax.training import build as build_lib
from dpjax.training import checkpoint


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
    UserError: one line, for a config, set or workdir that do not fit.
    NonFinite: a loss diverged; the last good checkpoint stays.
    Stopped: after SIGTERM or SIGINT, with everything saved.
  """
  began = time.perf_counter()
  workdir = pathlib.Path(workdir)

  def claim_and_prepare():
    _claim(workdir, config, stage)
    return prepare.open_prepared(config)

  data = processes.first_does(f'{stage}: open', claim_and_prepare)
  data = data or prepare.open_prepared(config)
  run = build_lib.build(config, stage, data)
  settings = run.settings
  total = run.total_steps
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
      backbone = build_lib.read_backbone(source, run)
    if newest is None:
      is_run = backbone is not None and os.path.isdir(source)

      def write_manifest():
        leakage.write(
          workdir, stage, run.training_records, source if is_run else None
        )
        _warn_of_seen(run, workdir)

      processes.first_does(f'{stage}: manifest', write_manifest)
    state = build_lib.initial_state(run, optimizer, backbone, source)
    record = {'training': 0.0, 'wall': 0.0}  # seconds
    start = 'from scratch' if backbone is None else f'from {source}'
    if newest is not None:
      state, data_state, record = saved.restore(newest, state)
      run.check_trained_on(record)
      stream.set_state(data_state)
      start = f'resumed at step {newest}'
      _warn_of_dispatches(run, record)
    done = newest or 0
    log = MetricsLog(
      workdir, done, config.train.tensorboard, write=parallel.is_first()
    )
    _say(
      f'{stage}: {workdir}, {start}, to step {total} ({settings.epochs:g}'
      f' epochs of {len(run.training_records)} radiographs by'
      f' {settings.batch_size}), {_devices(run)}'
    )
    # The job inside of what is closed: closing waits for the other processes.
    with contextlib.closing(log), _Signals() as signals, processes.job():
      _loop(
        run, optimizer, schedule, stream, state, saved, log, signals,
        done=done, total=total, trained=record['training'],
        began=began - record['wall'],
      )  # fmt: skip


def _say(line):
  if parallel.is_first():
    print(line, flush=True)


def _warn_of_dispatches(run, record):
  before = record.get('steps_per_dispatch', 1)
  if before != run.steps_per_dispatch and parallel.is_first():
    print(
      f'warning: config.train.steps_per_dispatch is {run.steps_per_dispatch}'
      f' and was {before}; another rounding, so not to the bit the same run',
      file=sys.stderr,
      flush=True,
    )


def _warn_of_seen(run, workdir):
  """Says now what evaluation will refuse when the training is done."""
  for name in ('validation', 'test'):
    if name in run.data.splits:
      try:
        leakage.check_unseen(
          workdir,
          run.data.split(name),
          f'{name} of {run.data.path}',
          run.config.split.near,
        )
      except ValueError as error:
        print(f'warning: {error}', file=sys.stderr, flush=True)


def dispatches(done: int, total: int, size: int) -> Iterator[int]:
  """The steps of each dispatch from `done` to `total`.

  Dispatches of `size` steps begin at multiples of it; what does not fit, at the
  end or after a resume, goes step by step.
  """
  while done < total:
    whole = done % size == 0 and done + size <= total
    yield size if whole else 1
    done += size if whole else 1


def evaluations(
  total: int, every: float, steps_per_epoch: float, size: int
) -> set[int]:
  """The steps after which there is a validation: the last, and by eval.every.

  Args:
    total: steps of the run.
    every: epochs between validations; 0 for the last step only.
    steps_per_epoch: may be a fraction.
    size: steps of a dispatch; all but the last are multiples of it.
  """
  found = {total}
  if every:
    apart = max(every * steps_per_epoch, 1.0)
    for i in range(1, math.ceil(total / apart) + 1):
      found.add(min(total, size * max(1, round(i * apart / size))))
  return found


class _Programs:
  """Steps compiled ahead, at the same time, each known by a name."""

  def __init__(self):
    self._futures: dict[Any, concurrent.futures.Future] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor(thread_name_prefix='xla')

  def begin(self, name: Any, step: Any, *arguments: Any) -> None:
    """Starts the compilation of a step for arguments of these shapes."""
    self._futures[name] = self._pool.submit(step.lower(*arguments).compile)

  def __getitem__(self, name: Any) -> Any:
    """The program; waits for the compiler."""
    return self._futures[name].result()

  def close(self) -> None:
    """Waits for what is being compiled."""
    self._pool.shutdown()


def _loop(
  run, optimizer, schedule, stream, state, saved, log, signals, *,
  done, total, trained, began,
):  # fmt: skip
  config = run.config
  steps_per_epoch = run.steps_per_epoch
  eval_step = run.compile_evaluation()
  sizes = [*dispatches(done, total, run.steps_per_dispatch)]
  validated = evaluations(
    total, config.eval.every, steps_per_epoch, run.steps_per_dispatch
  )
  programs = _Programs()
  several = jax.process_count() > 1
  asked = False  # to stop: in a job of several, once all know it
  pending = None  # (last step, metrics still on the device)

  def read(size):
    """The host batches of a dispatch."""
    batches = [next(stream) for _ in range(size)]
    if not several:
      return batches
    stop = np.float32(signals.received is not None)
    return [{**b, 'stop': np.full(len(b['label']), stop)} for b in batches]

  def settle():
    """Reads the metrics of the dispatch before; raises NonFinite."""
    nonlocal pending, asked
    if pending is None:
      return
    last, metrics = pending
    pending = None
    metrics = {k: np.atleast_1d(v) for k, v in jax.device_get(metrics).items()}
    asked |= bool(metrics.pop('stop', np.zeros(1)).any())
    size = len(metrics['loss'])
    for i in range(size):
      values = {name: float(value[i]) for name, value in metrics.items()}
      _check_finite(last - size + 1 + i, values, saved)
      interval.add(values)
    bar.update(size)
    if _passes(last, size, config.train.log_every) or last == total:
      now = time.perf_counter()
      means = interval.close()
      bar.set_postfix(loss=f'{means["loss"]:.3f}', refresh=False)
      log.write(
        last,
        epoch=last / steps_per_epoch,
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
    disable=not (config.train.progress and parallel.is_first()),
    file=sys.stderr,
    dynamic_ncols=True,
  )
  clock = time.perf_counter()
  images = validation_images = ahead = None
  if sizes:  # A finished run has no step to make.
    images = run.images(run.training_records)
    batches = read(sizes[0])
    ahead = run.place_dispatch(batches), stream.get_state()
    # All at once, while Grain fills its queue.
    for size in {*sizes}:
      batch = ahead[0]
      if size != sizes[0]:
        batch = run.place_dispatch(batches[:1] * size)
      step = run.compile_training(optimizer, schedule, size)
      programs.begin(size, step, state, batch, images)
    validation = run.data.splits.get('validation', ())
    if config.eval.every and len(validation):
      validation_images = run.images(validation)
      batch = run.first_batch(
        validation, run.settings.batch_size, validation_images
      )
      programs.begin('validation', eval_step, state, batch, validation_images)
      eval_step = programs['validation']
  interval = Interval(run.settings.batch_size)
  step = done
  with contextlib.closing(bar), contextlib.closing(programs):
    for size, following in itertools.zip_longest(sizes, sizes[1:]):
      batch, data_state = ahead
      state, metrics = programs[size](state, batch, images)
      step += size
      if following:
        ahead = run.place_dispatch(read(following)), stream.get_state()
      settle()
      pending = (step, metrics)
      stop = asked if several else signals.received
      evaluate = step in validated
      if not (evaluate or stop or _passes(step, size, config.train.save_every)):
        continue
      settle()
      now = time.perf_counter()
      trained += now - clock
      scores = None
      if evaluate and config.eval.every:
        scores = validate(run, eval_step, state, validation_images)
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
        if parallel.is_first():
          bar.write(_describe(run.stage, step / steps_per_epoch, scores))
      saved.save(
        step,
        state,
        data_state,
        {
          'training': trained,
          'wall': time.perf_counter() - began,
          'trained_on': run.fingerprint,
          'steps_per_dispatch': run.steps_per_dispatch,
        },
        scores,
      )
      if stop:
        break
      interval.restart()
      clock = time.perf_counter()
  saved.wait()
  # At the last step too: a recipe would go on with its next stage.
  if processes.any_says(asked or signals.received is not None):
    raise Stopped(
      f'stopped by {signals.received or "another process"} and saved at step'
      f' {step} of {total}; the same command goes on from there'
    )


def _passes(step, size, every):
  """Whether the `size` steps up to `step` hold a multiple of `every`, not 0."""
  return every and step // every > (step - size) // every


def validate(
  run: Any, eval_step: Any, state: Any, images: Any = None
) -> dict[str, float | None]:
  """Scores the whole validation split; {} where the set has none.

  Stage I: the loss and accuracy among the views of each batch, by the running
  statistics. Stage II: the loss and metrics.scores.summary.

  Args:
    run: an experiment.Experiment.
    eval_step: compiled steps.eval_step.
    state: a steps.TrainState.
    images: of the split, if they are on the devices (run.images).
  """
  if 'validation' not in run.data.splits:
    return {}
  split = run.data.split('validation')
  outputs = run.collect(
    eval_step, state, split, run.settings.batch_size, images
  )
  loss = float(outputs['loss'].mean())
  if run.stage == 'pretrain':
    accuracy = float(outputs['contrastive_accuracy'].mean())
    return {'loss': loss, 'contrastive_accuracy': accuracy}
  if not math.isfinite(loss):
    return {'loss': loss}  # Nothing else is defined, and the loop stops.
  summary = scores_lib.summary(
    split.labels,
    predictions.softmax(outputs['logits']),
    any_lesion=vocabulary.is_normal(run.data.class_names[0]),
  )
  return {'loss': loss, **summary}


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

  def __init__(
    self,
    workdir: pathlib.Path,
    done: int,
    tensorboard: bool,
    write: bool = True,
  ):
    """Opens the log of a run that has `done` steps behind it.

    Lines of later steps stem from before a kill and are dropped: these steps
    are made again. Without `write` nothing is written.
    """
    path = workdir / 'metrics.jsonl'
    if not write:
      path, tensorboard = pathlib.Path(os.devnull), False
    elif path.exists():
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
        raise UserError(
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
    changed = record_lib.differences(record_lib.load(path), record)
    if changed:
      raise UserError(
        f'--workdir={workdir} holds a run of another config'
        f' ({"; ".join(changed[:4])}); repeat its flags or name another workdir'
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    record_lib.save(record, path)
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be written ({error.strerror}); name another'
    ) from error


def _devices(run):
  config = run.config
  kind = jax.devices()[0].device_kind
  parts = [
    f'{config.parallel.mode} on {config.parallel.devices} x {kind}',
    config.model.dtype,
  ]
  if jax.process_count() > 1:
    parts.append(f'{jax.process_count()} processes')
  if run.steps_per_dispatch > 1:
    parts.append(f'{run.steps_per_dispatch} steps a dispatch')
  if run.resident:
    parts.append('images in device memory')
  return ', '.join(parts)


def _describe(stage, epoch, scores):
  text = ', '.join(
    f'{name} {value:.4g}' for name, value in scores.items() if value is not None
  )
  return f'{stage} epoch {epoch:.2f}, validation: {text or "no radiographs"}'
