"""Networks that were never trained, in which nothing is trivial."""

import pathlib
from typing import Any

import jax
import numpy as np

from dpjax.config import record as record_lib
from dpjax.models import heads
from dpjax.serving import network as network_lib
from dpjax.training import build, objectives, steps
from tests import fakes

CLASSES = ('0', '1', '2')


def make_network(
  seed: int = 0, *, root: pathlib.Path | None = None,
  temperature: float | None = 1.7, attention: bool = True, **changes: Any,
) -> network_lib.Network:  # fmt: skip
  """What network.restore makes of a run; `changes` are fields of its config.

  With `root` its workdir is in there, and has a config.json.
  """
  config = fakes.make_config(
    **{'data__store_size': 64, 'data__image_size': 48, 'model__dtype':
       'float32', **changes}
  )  # fmt: skip
  heads_ = heads.AttentionHeads(
    stages=config.mgacr.stages, use_batch_norm=config.mgacr.batch_norm
  )
  objective = objectives.Retraining(
    backbone=build.make_backbone(
      config.model, num_classes=len(CLASSES), axis_name=None
    ),
    attention=heads_ if attention else None,
    pixels=objectives.Pixels(
      config.data.image_size, config.data.mean, config.data.std
    ),
    classification=None,
    weights={},
    mgacr={},
  )
  shapes = jax.eval_shape(objective.init, jax.random.key(0))
  variables = fakes.filled_like(shapes, seed)
  state = steps.TrainState(3, variables['params'], variables['batch_stats'], ())
  workdir = (root or pathlib.Path('runs')) / f'run{seed}'
  if root is not None:
    workdir.mkdir(exist_ok=True)
    config.stage = 'retrain'
    record_lib.save(config, workdir / 'config.json')
  return network_lib.Network(
    workdir, config, CLASSES, 3, objective, state,
    temperature, None, None, (),
  )  # fmt: skip


def squares(count: int = 3, side: int = 64) -> np.ndarray:
  """(count, side, side) uint8: noise on noise."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 200, (count, side // 8, side // 8))
  return (
    coarse.repeat(8, 1).repeat(8, 2) + rng.integers(0, 55, (count, side, side))
  ).astype(np.uint8)
