"""Classifiers without a network, by scikit-learn: standard settings, seeded.

They see an image as a row of numbers: its pixels, made small, or what a
backbone makes of it.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from sklearn import calibration as sklearn_calibration
from sklearn import ensemble, neighbors, svm, tree

from dpjax import leakage, signals
from dpjax.config import record as record_lib
from dpjax.data import store
from dpjax.data.feed import pipeline
from dpjax.errors import UserError
from dpjax.evaluation import evaluate
from dpjax.studies import runs
from dpjax.studies import tasks as tasks_lib
from dpjax.training import auto, checkpoint, inference
from dpjax.training import build as build_lib

_BATCH = 256  # images read at a time


def _knn(labels, seed):
  del labels, seed  # Nothing is drawn.
  return neighbors.KNeighborsClassifier()


def _tree(labels, seed):
  del labels
  return tree.DecisionTreeClassifier(random_state=seed)


def _adaboost(labels, seed):
  del labels
  return ensemble.AdaBoostClassifier(random_state=seed)


def _forest(labels, seed):
  del labels
  return ensemble.RandomForestClassifier(random_state=seed)


def _svm(labels, seed):
  """A polynomial kernel; sigmoids fitted on held-out folds give probabilities.

  Source: Platt (1999), for one class against the rest.
  """
  folds = min(5, np.unique(labels, return_counts=True)[1].min())
  return sklearn_calibration.CalibratedClassifierCV(
    svm.SVC(kernel='poly', random_state=seed), cv=int(folds), ensemble=False
  )


# name -> (what the table calls it, (labels, seed) -> an unfitted classifier).
METHODS: dict[str, tuple[str, Callable[[np.ndarray, int], Any]]] = {
  'knn': ('KNN', _knn),
  'tree': ('decision tree', _tree),
  'adaboost': ('AdaBoost', _adaboost),
  'forest': ('random forest', _forest),
  'svm': ('SVM', _svm),
}


def fit(method: str, inputs: np.ndarray, labels: np.ndarray, seed: int) -> Any:
  """Fits one of METHODS.

  The SVM leaves out classes of a single image: its probabilities need every
  class on both sides of a fold.

  Args:
    method: a key of METHODS.
    inputs: (N, D) float32.
    labels: (N,) classes.
    seed: of whatever the method draws.

  Raises:
    UserError: one line: there are not two classes to tell apart.
  """
  if method == 'svm':
    found, counts = np.unique(labels, return_counts=True)
    kept = np.isin(labels, found[counts > 1])
    inputs, labels = inputs[kept], labels[kept]
  if len(np.unique(labels)) < 2:
    raise UserError(
      f'compare: {METHODS[method][0]} needs two classes in the training split'
      + (' with two images each' if method == 'svm' else '')
    )
  unfitted = METHODS[method][1](labels, seed)
  return signals.interruptible(unfitted.fit, inputs, labels)


def predict(fitted: Any, inputs: np.ndarray, num_classes: int) -> np.ndarray:
  """Class probabilities (N, C) float64; 0 for a class that it never saw.

  Args:
    fitted: by `fit`.
    inputs: (N, D) float32.
    num_classes: C.
  """
  probabilities = np.zeros((len(inputs), num_classes))
  probabilities[:, fitted.classes_] = fitted.predict_proba(inputs)
  return probabilities


def pixels(split: store.Rows, side: int) -> np.ndarray:
  """Every image of a split as a row of grey levels in 0..1.

  Args:
    split: of a prepared set, (N, S, S) uint8.
    side: of the shrunken image (area-averaged), pixels.

  Returns:
    (N, side * side) float32.
  """
  rows = np.empty((len(split), side * side), np.float32)
  for start in range(0, len(split), _BATCH):
    indices = np.arange(start, min(start + _BATCH, len(split)))
    for row, image in zip(indices, split.images(indices), strict=True):
      small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
      rows[row] = small.ravel() / np.float32(255)
  return rows


class Features:
  """Pooled features of a backbone, computed in float32 on one device."""

  def __init__(self, config: ConfigDict, data: store.Store, source: str):
    """Reads the backbone.

    Args:
      config: as resolved; its network, image size and reading count.
      data: the prepared set.
      source: workdir of stage I, or a file of torch weights.

    Raises:
      UserError: it is missing, or another network's.
    """
    config = config.copy_and_resolve_references()
    config.model.dtype = 'float32'
    config.parallel.mode, config.parallel.devices = 'jit', 1
    self._run = build_lib.build(config, 'retrain', data)
    backbone = build_lib.read_backbone(source, self._run)
    # Only compared: Flax would leave out what it has too much.
    wanted = jax.eval_shape(self._run.objective.init, jax.random.key(0))
    checkpoint.merge_backbone(wanted, backbone, source)
    self._variables = jax.tree.map(jnp.asarray, backbone)
    network = self._run.objective.backbone.clone(num_classes=0)
    views = self._run.objective.pixels.views

    def pooled(variables, batch, images):
      del images  # They come with the batch.
      found, _ = network.apply(variables, views(batch)[:, 0], train=False)
      return {'pooled': found}

    self._pooled = jax.jit(pooled)

  def __call__(self, split: store.Rows) -> np.ndarray:
    """Of every image of a split, plain: (N, D) float32."""
    batch_size = self._run.config.evaluate.batch_size
    found = inference.collect(
      self._run, self._pooled, self._variables, split, batch_size
    )
    return found['pooled']


class Inputs:
  """What the methods see of each split: computed once, and how long it took."""

  def __init__(self, make: Callable[[store.Rows], np.ndarray]):
    """Args: make: split -> (N, D) float32."""
    self._make = make
    self._made: dict[int, tuple[Any, np.ndarray, float]] = {}

  def __call__(self, split: store.Rows) -> tuple[np.ndarray, float]:
    """(N, D) float32, and seconds."""
    if id(split) not in self._made:
      start = time.perf_counter()
      rows = self._make(split)
      # The split is kept so that its id stays its own.
      self._made[id(split)] = split, rows, time.perf_counter() - start
    return self._made[id(split)][1:]


def train(
  task: tasks_lib.Task, method: str, data: store.Store, inputs: Inputs
) -> None:
  """Fits a method and evaluates it; leaves what evaluate.evaluate does.

  Writes config.json, predictions.csv, predictions_validation.csv and
  evaluation.json, whose 'seconds' has 'pretraining' and 'training' too.

  Args:
    task: of the method.
    method: a key of METHODS.
    data: the prepared set.
    inputs: what the method sees.

  Raises:
    UserError: one line: a split that cannot be trained on or scored.
  """
  settings = task.config.evaluate
  training = data.split('train')
  build_lib.class_counts(training, data.num_classes)  # All have a label.
  images = evaluate.images_to_score(settings, data)
  task.workdir.mkdir(parents=True, exist_ok=True)
  records = pipeline.Records((training,))
  record_lib.save(
    auto.resolve(task.config, 'retrain', data, records),
    task.workdir / 'config.json',
  )
  # The features come from it: what it has seen counts, and its time.
  source = task.config.init.backbone
  before = source if source and os.path.isdir(source) else None
  leakage.write(task.workdir, method, records, before)
  leakage.check_unseen(
    task.workdir,
    images.split,
    f'{settings.split} of {images.path}',
    task.config.split.near,
  )
  rows, made = inputs(training)
  start = time.perf_counter()
  fitted = fit(method, rows, training.labels, task.config.seed)
  fitting = time.perf_counter() - start
  pretraining = runs.trained(before) if before else 0.0

  def probabilities_of(part):
    rows, seconds = inputs(part)
    start = time.perf_counter()
    found = predict(fitted, rows, data.num_classes)
    seconds += time.perf_counter() - start
    return found, {
      'inference': seconds,
      'images_per_second': len(part) / seconds,
    }

  result = evaluate.score_classifier(
    task.workdir, settings, data.class_names, images, probabilities_of
  )
  result |= {
    'checkpoint': None,
    'step': None,
    'device': jax.devices('cpu')[0].device_kind,
    **evaluate.NO_MAPS,
  }
  result['seconds'] |= {
    'pretraining': pretraining,
    'training': pretraining + made + fitting,
  }
  evaluate.write(task.workdir, result)
