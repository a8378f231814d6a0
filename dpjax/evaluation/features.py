"""What evaluation keeps of training's features (metrics.unlike)."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dpjax import signals
from dpjax.data.prepare import guards
from dpjax.evaluation import explain, files
from dpjax.metrics import unlike
from dpjax.training import inference, objectives, programs, steps

KEPT = 1024  # images of training, and of validation, at most


def embed_step(
  state: steps.TrainState,
  batch: objectives.Batch,
  *,
  objective: objectives.Retraining,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """The answers to one device's share of plain images, and their features.

  Args:
    state: of stage II.
    batch: as steps.eval_step takes it; labels are not needed.
    objective: the networks.
    axis_name: unused; rows do not depend on each other.

  Returns:
    {'logits': (b, C), 'pooled': (b, K)} float32.
  """
  del axis_name
  images = objective.pixels.views(batch)[:, 0]
  seen = state.network
  variables = {
    'params': seen['params']['backbone'],
    'batch_stats': seen['batch_stats']['backbone'],
  }
  logits, features = objective.backbone.apply(variables, images, train=False)
  found = {'logits': logits, 'pooled': features['pooled']}
  return {name: value.astype('float32') for name, value in found.items()}


def write(restored: Any, workdir: pathlib.Path) -> None:
  """Writes features.npz of a restored run (evaluate.RestoredRun).

  Seeded images stand for a set that is larger than KEPT. Without a validation
  split only plain facts will be looked at.
  """
  run, settings = restored.run, restored.run.config.evaluate
  rng = np.random.default_rng(settings.seed)
  step = programs.compile_step(
    run, functools.partial(embed_step, objective=run.objective), gather=True
  )
  infer = functools.partial(inference.collect, run, step, restored.state)
  known = _features(run.data.split('train'), rng, infer, settings.batch_size)
  validation = run.data.splits.get('validation', ())
  seen = None
  if len(validation):
    seen = _features(validation, rng, infer, settings.batch_size)
  unlike.write(
    workdir / files.FEATURES,
    unlike.fit(*known, run.data.info.get('aspects'), seen),
  )


def _features(
  split: Any, rng: np.random.Generator, infer: Callable, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pooled features (n, K) and grey levels (n, 3) of some images of a split."""
  rows = np.sort(rng.permutation(len(split))[:KEPT])
  signals.check()
  pooled = infer(explain.Rows(split, rows), batch_size)['pooled']
  histograms = [
    guards.histogram(image)
    for i in range(0, len(rows), 64)
    for image in split.images(rows[i : i + 64])
  ]
  return pooled, guards.tones(histograms)
