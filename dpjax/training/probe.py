"""Whether stage I learns what the classes need: k-NN and a linear probe.

Both are fitted on the pooled features of the plain training images, as the
network is at that moment, and asked about the validation split. They change
nothing of the training, which sees no label.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from dpjax.data import vocabulary
from dpjax.distributed import processes
from dpjax.metrics import predictions, scores
from dpjax.training import inference, programs, steps
from dpjax.training.run import Run

_NEIGHBOURS = 20
_TEMPERATURE = 0.07  # of the votes: Wu et al. (2018)
_RIDGE = 1e-3  # beside features of variance 1
# Of the scores, those that a split of rare classes still says something of.
_SHOWN = ('balanced_accuracy', 'auroc_any_lesion')


def knn(
  features: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int
) -> np.ndarray:
  """Votes of the 20 nearest by cosine, each weighing exp(similarity / 0.07).

  Args:
    features: (N, D) of labelled images.
    labels: (N,) of 0..classes - 1.
    queries: (M, D).
    classes: their number, C.

  Returns:
    (M, C), rows summing to 1.

  Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance
  Discrimination, 2018, section 3.4.
  """
  similarity = _unit(queries) @ _unit(features).T  # (M, N)
  count = min(_NEIGHBOURS, len(features))
  nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
  near = np.take_along_axis(similarity, nearest, axis=1)
  weight = np.exp((near - near.max(axis=1, keepdims=True)) / _TEMPERATURE)
  votes = weight[:, :, None] * np.eye(classes)[labels[nearest]]
  return votes.sum(axis=1) / weight.sum(axis=1, keepdims=True)


def linear(
  features: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int
) -> np.ndarray:
  """Ridge regression on the one-hot labels, each class weighing the same.

  Its solution is closed, so no rate or number of steps says how good a network
  looks.

  Args:
    features, labels, queries, classes: as in `knn`.

  Returns:
    (M, C), the softmax of its answers.
  """
  mean, std = features.mean(axis=0), features.std(axis=0) + 1e-6
  x, q = (
    np.concatenate([(z - mean) / std, np.ones((len(z), 1))], axis=1)
    for z in (features.astype(np.float64), queries.astype(np.float64))
  )
  counts = np.bincount(labels, minlength=classes)
  weight = 1 / (counts[labels] * (counts > 0).sum())  # (N,), summing to 1
  penalty = _RIDGE * np.eye(x.shape[1])
  penalty[-1, -1] = 0  # The constant is free.
  weighted = x * weight[:, None]
  solution = np.linalg.solve(
    weighted.T @ x + penalty, weighted.T @ np.eye(classes)[labels]
  )
  return predictions.softmax(q @ solution)


def make(
  run: Run, compiled: programs.Programs, state: steps.TrainState,
  images: jax.Array | None, held_out: jax.Array | None,
) -> Callable[[steps.TrainState], dict[str, float]]:  # fmt: skip
  """f(state) -> {'knn/SCORE', 'linear/SCORE': on validation}.

  It returns when its programs are compiled: a validation waits for none, which
  a signal would end before what is there was saved.

  Args:
    run: of stage I, with a validation split. With pretrain.probe off f says
      nothing; without labels neither, which is said in a line.
    compiled: gets its programs.
    state: on the devices, as the modules know it.
    images: of run.records, if they are on the devices
      (batches.resident_images).
    held_out: likewise of the validation split.
  """
  if not (run.stage == 'pretrain' and run.config.pretrain.probe):
    return lambda state: {}
  names = ('train', 'validation')
  bare = [name for name in names if not _is_labelled(run.data, name)]
  if bare:
    if processes.is_process_0():
      print(
        f'pretrain.probe: not every image of {" and ".join(bare)} has a label,'
        ' so it says nothing',
        flush=True,
      )
    return lambda state: {}
  splits = {name: run.data.split(name) for name in names}
  plain = dataclasses.replace(run, stage='retrain')  # It is fed plain images.
  size = run.settings.batch_size
  # The training split comes first in run.records, so its rows are theirs.
  squares = {'train': images, 'validation': held_out}

  def title(name):
    # Images that come with the batch fit one program, whatever the split.
    return 'probe' if images is None else f'probe, {name}'

  step = programs.compile_embedding(run)
  for name in names[:1] if images is None else names:
    first = inference.first_batch(plain, splits[name], size, squares[name])
    compiled.begin(title(name), step, state, first, squares[name])
  ready = {name: compiled[title(name)] for name in names}

  def features(state, name):
    return inference.collect(
      plain, ready[name], state, splits[name], size, squares[name]
    )['pooled']

  def probe(state):
    return _scores(
      features(state, 'train'),
      splits['train'].labels,
      features(state, 'validation'),
      splits['validation'].labels,
      run.data.class_names,
    )

  return probe


def _is_labelled(data, name):
  split = data.splits.get(name, ())
  return len(split) > 0 and (split.labels >= 0).all()


def _scores(features, labels, queries, wanted, names):
  found: dict[str, float] = {}
  for title, of in (('knn', knn), ('linear', linear)):
    answers = of(features, labels, queries, len(names))
    summary = scores.summary(
      wanted, answers, any_lesion=vocabulary.is_normal(names[0])
    )
    found |= {
      f'{title}/{name}': value
      for name in _SHOWN
      if (value := summary[name]) is not None
    }
  return found


def _unit(z):
  z = z.astype(np.float64)
  return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
