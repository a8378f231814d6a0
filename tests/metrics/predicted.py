"""Made predictions, and their scores by plain calls and loops."""

import numpy as np
from scipy import special
from sklearn import metrics

NAMES = ['normal', 'one', 'two', 'three', 'four']
OPTIONS = {'threshold': 0.6, 'temperature': 1.7}
KINDS = ['no ties', 'ties', 'a class of one image', 'exact 0 and 1']
PAPER_SIZES = [1600, 213, 433, 21, 3]  # the competition's test split


def predict(rng, labels, num_classes, skill=1.0, tenths=False):
  """Random probabilities that lean to the label; whole tenths make ties."""
  logits = rng.normal(size=(len(labels), num_classes))
  logits[np.arange(len(labels)), labels] += skill
  p = np.exp(logits)
  p /= p.sum(axis=1, keepdims=True)
  return rng.multinomial(10, p) / 10 if tenths else p


def random_set(seed, n=300, num_classes=5, **kwargs):
  rng = np.random.default_rng(seed)
  labels = rng.integers(num_classes, size=n)
  return labels, predict(rng, labels, num_classes, **kwargs)


def some_set(kind):
  """Labels and probabilities of 120 images, of one of KINDS."""
  rng = np.random.default_rng(3)
  if kind == 'a class of one image':
    labels = np.repeat(np.arange(5), [70, 30, 15, 4, 1])
    return labels, predict(rng, labels, 5)
  if kind == 'exact 0 and 1':
    labels = rng.integers(5, size=120)
    wrong = (labels + rng.integers(5, size=120)) % 5
    return labels, one_hot(np.where(rng.random(120) < 0.6, labels, wrong), 5)
  return random_set(3, n=120, tenths=kind == 'ties')


def one_hot(predictions, num_classes):
  return np.eye(num_classes)[predictions]


def ranked(positive, score):
  """AUROC and average precision, None without both sides."""
  if positive.all() or not positive.any():
    return None, None
  return (
    metrics.roc_auc_score(positive, score),
    metrics.average_precision_score(positive, score),
  )


def binned_error(labels, probabilities, bins=15):
  """Guo et al. (2017), Eq. 3, bin by bin."""
  top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
  error = 0.0
  for m in range(1, bins + 1):
    inside = [i for i in range(len(top)) if (m - 1) / bins < top[i] <= m / bins]
    if inside:
      gap = abs(np.mean(right[inside]) - np.mean(top[inside]))
      error += len(inside) / len(top) * gap
  return error


def proper(labels, probabilities):
  """ECE, Brier score and log loss."""
  truth = np.equal.outer(labels, np.arange(probabilities.shape[1]))
  return {
    'ece': binned_error(labels, probabilities),
    'brier': sum(
      metrics.mean_squared_error(truth[:, c], probabilities[:, c])
      for c in range(probabilities.shape[1])
    ),
    'nll': metrics.log_loss(
      labels, probabilities, labels=np.arange(probabilities.shape[1])
    ),
  }


def expected(labels, probabilities, names=NAMES, threshold=None, t=None):
  """Every flat score by the plainest way there is, None where undefined."""
  num_classes = len(names)
  said = probabilities.argmax(axis=1)
  present = np.unique(labels)
  recalls = {c: np.mean(said[labels == c] == c) for c in present}
  low = [recalls[c] for c in present if c <= 2]
  lesion = labels > 0
  flat = {
    'accuracy': metrics.accuracy_score(labels, said),
    'balanced_accuracy': np.mean(list(recalls.values())),
    'balanced_accuracy_0_2': (
      np.mean(low) if num_classes > 3 and low else None
    ),
    'macro_f1': np.mean(
      [metrics.f1_score(labels == c, said == c) for c in present]
    ),
  }
  flat['auroc_any_lesion'], flat['average_precision_any_lesion'] = ranked(
    lesion, -probabilities[:, 0]
  )
  called = 1 - probabilities[:, 0] >= (2 if threshold is None else threshold)
  for name, side in (('sensitivity', lesion), ('specificity', ~lesion)):
    known = threshold is not None and side.any()
    flat[f'{name}_any_lesion'] = (
      np.mean(called[side] == lesion[side]) if known else None
    )
  flat['quadratic_kappa'] = (
    metrics.cohen_kappa_score(
      labels, said, labels=range(num_classes), weights='quadratic'
    )
    if len(np.unique([labels, said])) > 1
    else None
  )
  flat |= proper(labels, probabilities)
  scaled = dict.fromkeys(('ece', 'brier', 'nll'))
  if t is not None:
    logits = np.log(np.maximum(probabilities, np.finfo(float).eps))
    scaled = proper(labels, special.softmax(logits / t, axis=1))
  flat |= {f'{name}_scaled': value for name, value in scaled.items()}
  for c, name in enumerate(names):
    true, positive = labels == c, said == c
    both = int((true & positive).sum())
    tops = {
      'precision': (both, positive.sum()),
      'recall': (both, true.sum()),
      'specificity': ((~true & ~positive).sum(), (~true).sum()),
      'f1': (2 * both, true.sum() + positive.sum()),
    }
    for key, (top, bottom) in tops.items():
      flat[f'{key}/{name}'] = top / bottom if bottom else None
    auroc, precision = ranked(true, probabilities[:, c])
    flat[f'auroc/{name}'] = auroc
    flat[f'average_precision/{name}'] = precision
  return flat


def expected_of(labels, probabilities, count, names=NAMES):
  """Of a resample, with the threshold and temperature of OPTIONS."""
  drawn = np.repeat(np.arange(len(labels)), np.asarray(count, int))
  return expected(labels[drawn], probabilities[drawn], names, 0.6, 1.7)


def assert_same(found, wanted, atol=1e-12):
  """Two dicts of flat scores are equal, in order too, within rounding."""
  assert list(found) == list(wanted)
  for name, value in wanted.items():
    if value is None:
      assert found[name] is None or np.isnan(found[name]), name
    else:
      assert abs(found[name] - value) <= atol, (name, found[name], value)
