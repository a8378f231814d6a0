"""What evaluation keeps of training's features (metrics.unlike)."""

import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dpjax import signals
from dpjax.data import store
from dpjax.data.prepare import guards
from dpjax.evaluation import explain, files
from dpjax.metrics import unlike
from dpjax.training import inference, programs

if TYPE_CHECKING:
  from dpjax.evaluation.evaluate import RestoredRun

KEPT = 1024  # images of training, and of validation, at most


def write(restored: 'RestoredRun', workdir: pathlib.Path) -> None:
  """Writes features.npz of a restored run (evaluate.RestoredRun).

  Seeded images stand for a set that is larger than KEPT. Without a validation
  split only plain facts will be looked at.
  """
  run, settings = restored.run, restored.run.config.evaluate
  rng = np.random.default_rng(settings.seed)
  step = programs.compile_embedding(run)
  infer = functools.partial(inference.collect, run, step, restored.state)
  known = _features(run.data.split('train'), rng, infer, settings.batch_size)
  validation = run.data.splits.get('validation')
  seen = None
  if validation is not None:
    seen = _features(validation, rng, infer, settings.batch_size)
  unlike.write(
    workdir / files.FEATURES,
    unlike.fit(*known, run.data.info.get('aspects'), seen),
  )


def _features(
  split: store.Split, rng: np.random.Generator, infer: Callable, batch_size: int
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
