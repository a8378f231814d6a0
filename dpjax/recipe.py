"""Which stages a config runs, in which order, and where stage II starts."""

import pathlib
from typing import Any

from dpjax import checkpoint, train
from dpjax import config as config_lib
from dpjax.data import prepare

PRETRAINED = pathlib.Path('runs/pretrain')  # where configs/pretrain.py trains


def run(config: Any, workdir: str | pathlib.Path) -> None:
  """Runs config.stage: 'pretrain', 'retrain', or the whole 'recipe'.

  The recipe trains in workdir/pretrain and workdir/retrain and then evaluates
  the latter. It skips stage I where `init.backbone` is None or names weights:
  stage II would not use it.

  Args:
    config: as resolved (dpjax.config.resolve).
    workdir: of the run.

  Raises:
    What train.train and evaluation.evaluate raise.
  """
  workdir = pathlib.Path(workdir)
  config = prepare.as_made(config)  # a copy: the caller's stays as it is
  if config.stage == 'pretrain':
    train.train(config, 'pretrain', workdir)
    return
  if config.stage == 'retrain':
    if config.init.backbone == 'auto':
      config.init.backbone = _found_backbone(workdir)
    if config.retrain.freeze and config.init.backbone is None:
      raise ValueError(
        f'config.retrain.freeze is True and there is no {PRETRAINED} to start'
        ' from; name a stage I workdir in config.init.backbone'
      )
    train.train(config, 'retrain', workdir)
    return
  if config.init.backbone == 'auto':
    train.train(
      config.copy_and_resolve_references(), 'pretrain', workdir / 'pretrain'
    )
    config.init.backbone = str(workdir / 'pretrain')
  train.train(config, 'retrain', workdir / 'retrain')

  from dpjax.evaluation import evaluate, text

  result = evaluate.evaluate(config, workdir / 'retrain')
  print(text.format_table(result))


def _found_backbone(workdir):
  """What 'auto' stands for: as when the run began, or what is there now."""
  record = workdir / 'config.json'
  if record.is_file() and checkpoint.has_checkpoint(workdir):
    return config_lib.load(record).init.backbone
  if checkpoint.has_checkpoint(PRETRAINED):
    return str(PRETRAINED)
  print(f'init.backbone: no {PRETRAINED} to start from, so from scratch')
  return None
