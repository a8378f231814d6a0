"""Where a run starts: its own newest checkpoint, a backbone, or scratch."""

import dataclasses
import os
import pathlib
from typing import Any

import grain
import optax

from dpjax import leakage
from dpjax.distributed import processes
from dpjax.errors import UserError, one_line, warn
from dpjax.training import build, checkpoint, packed
from dpjax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Start:
  """A run at its first step, or at the one after its newest checkpoint.

  Attributes:
    state: on the devices, as the run's steps have it (packed.at_rest). As the
      modules know it, nobody holds it any more.
    done: steps behind it.
    origin: where the state comes from, in words.
    training: seconds trained before.
    wall: seconds since it was first begun, without those between its starts.
    manifest: digest of its training manifest (leakage.digest).
    interval: state of the log's metrics_log.Interval; None for a new one.
  """

  state: Any
  done: int = 0
  origin: str = 'from scratch'
  training: float = 0.0
  wall: float = 0.0
  manifest: str | None = None
  interval: dict[str, Any] | None = None


def find_start(
  run: Run, workdir: pathlib.Path, saved: checkpoint.Checkpoints,
  optimizer: optax.GradientTransformation, stream: grain.DatasetIterator,
) -> Start:  # fmt: skip
  """The state to go on from; sets the stream to the batch after it.

  A run that is new writes its training manifest.

  Args:
    run: to start.
    workdir: of the run.
    saved: its checkpoints.
    optimizer: of the run.
    stream: an iterator of batches.training_stream.

  Raises:
    UserError: one line: a backbone that is missing or does not fit, a set that
      the run was not trained on, or a manifest that was changed.
  """
  newest = saved.newest()
  if newest is None:
    return _begin(run, workdir, optimizer)
  state, data_state, record = saved.restore(
    newest, build.state_shapes(run, optimizer)
  )
  leakage.check_trained_on(record, run.records, run.data.path)
  processes.on_process_0(
    f'{run.stage}: manifest', lambda: leakage.check_manifest(workdir, record)
  )
  stream.set_state(data_state)
  _warn_of_dispatches(run, record)
  return Start(
    packed.at_rest(run, state),
    newest,
    f'resumed at step {newest}',
    record['training'],
    record['wall'],
    manifest=leakage.digest(workdir),
    interval=record.get('interval'),  # Earlier versions kept none.
  )


def _begin(run, workdir, optimizer):
  source = '' if run.stage == 'pretrain' else run.config.init.backbone or ''
  backbone = attention = None
  if run.stage == 'finetune':
    frozen = run.config.finetune.freeze
    backbone, attention = checkpoint.load_stage_two(
      source, classifier=not frozen
    )
    if attention is None and run.objective.attention is not None:
      raise UserError(
        f'config.init.backbone: {source} was trained without attention; give'
        ' both stages the same config.mgacr'
      )
  elif source:
    backbone = build.read_backbone(source, run)
  is_run = backbone is not None and os.path.isdir(source)

  def write_manifest():
    leakage.write(workdir, run.stage, run.records, source if is_run else None)
    _warn_of_seen(run, workdir)

  processes.on_process_0(f'{run.stage}: manifest', write_manifest)
  state = build.initial_state(run, optimizer, backbone, source, attention)
  origin = Start.origin if backbone is None else f'from {source}'
  return Start(
    packed.at_rest(run, state),
    origin=origin,
    manifest=leakage.digest(workdir),
  )


def _warn_of_dispatches(run, record):
  now = run.config.train.steps_per_dispatch
  before = record.get('steps_per_dispatch', 1)
  if before != now and processes.is_process_0():
    warn(
      f'config.train.steps_per_dispatch is {now} and was {before};'
      ' another rounding, so not to the bit the same run'
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
      except UserError as error:
        warn(one_line(error))
