"""Which stages a config runs, in which order, and where stage II starts."""

import pathlib
import time

import jax
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.config import record as record_lib
from dpjax.distributed import processes
from dpjax.errors import UserError
from dpjax.evaluation import files
from dpjax.training import checkpoint, loop

PRETRAINED = pathlib.Path('runs/pretrain')  # where configs/pretrain.py trains


def run(
  config: ConfigDict, workdir: str | pathlib.Path, extend: bool = False
) -> None:
  """Runs config.stage: one stage, or the whole 'recipe'.

  The recipe trains in workdir/pretrain, workdir/retrain and, where
  `finetune.epochs` is above 0, workdir/finetune, and then evaluates the last
  of them. It skips stage I where `init.backbone` is None or names weights:
  stage II would not use it.

  Args:
    config: as resolved (dpjax.config.resolve).
    workdir: of the run.
    extend: see loop.train; of a recipe, of its last stage.

  Raises:
    What loop.train and evaluate.evaluate raise.
  """
  workdir = pathlib.Path(workdir)
  if config.data.source is not None:
    # First: what 'auto' stands for in a source is known when it was read.
    processes.on_process_0('prepare', lambda: prepare.prepare_missing(config))
  config = prepare.as_made(config)  # a copy: the caller's stays as it is
  run_stage = {
    'pretrain': _pretrain,
    'retrain': _retrain,
    'finetune': _finetune,
    'recipe': _recipe,
  }
  run_stage[config.stage](config, workdir, extend)


def _pretrain(config, workdir, extend=False):
  if config.init.backbone not in (None, 'auto'):
    raise UserError(
      f'config.init.backbone is {config.init.backbone!r}; it must be left out'
      ' for stage=pretrain, which starts from scratch'
    )
  config.init.backbone = None
  loop.train(config, 'pretrain', workdir, extend)


def _retrain(config, workdir, extend=False):
  if config.init.backbone == 'auto':
    config.init.backbone = _found_backbone(workdir)
  if config.retrain.freeze and config.init.backbone is None:
    raise UserError(
      f'config.retrain.freeze is True and there is no {PRETRAINED} to start'
      ' from; name a stage I workdir in config.init.backbone'
    )
  loop.train(config, 'retrain', workdir, extend)


def _finetune(config, workdir, extend=False):
  loop.train(config, 'finetune', workdir, extend)


def _recipe(config, workdir, extend=False):
  # Where the others look for its classifier (files.workdir_of).
  tuned = workdir / 'finetune'
  if not config.finetune.epochs and files.workdir_of(workdir) == tuned:
    raise UserError(
      f'config.finetune.epochs is 0, and {tuned} holds a run, which evaluate'
      ' and predict would take; name another --workdir, or remove it'
    )
  seconds = {}
  begun = any(
    checkpoint.has_checkpoint(workdir / stage)
    for stage in ('pretrain', 'retrain', 'finetune')
  )

  def timed(name, function, *arguments):
    began = time.perf_counter()
    result = function(*arguments)
    seconds[name] = time.perf_counter() - began
    return result

  if config.init.backbone == 'auto':
    timed('pretrain', _pretrain, config, workdir / 'pretrain')
    config.init.backbone = str(workdir / 'pretrain')
  last, more = workdir / 'retrain', config.finetune.epochs
  timed('retrain', _retrain, config, last, extend and not more)
  if more:
    config.init.backbone, last = str(last), workdir / 'finetune'
    timed('finetune', _finetune, config, last, extend)

  if jax.process_count() > 1:
    # One process of the job scores by itself, on one of its devices.
    processes.leave_job()
    if not processes.is_process_0():
      return
    config.parallel.mode, config.parallel.devices = 'jit', 1
  from dpjax.evaluation import evaluate, text

  result = timed('evaluation', evaluate.evaluate, config, last)
  print(text.format_table(result))
  parts = ', '.join(f'{name} {spent:.1f} s' for name, spent in seconds.items())
  print(
    f'recipe: {processes.seconds_alive():.1f} s since the process was started'
    f' ({parts})'
    + (', not the whole: it went on from an earlier one' if begun else ''),
    flush=True,
  )


def _found_backbone(workdir):
  """What 'auto' stands for: as when the run began, or what is there now."""
  record = workdir / 'config.json'
  if record.is_file() and checkpoint.has_checkpoint(workdir):
    return record_lib.load(record).init.backbone
  if checkpoint.has_checkpoint(PRETRAINED):
    return str(PRETRAINED)
  if processes.is_process_0():
    print(f'init.backbone: no {PRETRAINED} to start from, so from scratch')
  return None
