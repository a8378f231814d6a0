"""The table of scores: what each is called, what it needs, how it is computed.

A new score is a new row of SUMMARY or PER_CLASS. The scores of a run, their
bootstrap, the printed tables and the report go by these rows.

A row's function scores many resamples of the images at once, without a loop
over them: each resample is a row of counts that says how often it holds every
image. All scores are functions of sums of these counts over groups of images
that do not depend on the resample: the cells of the confusion matrix, and the
stretches of a ranking. So nothing is sorted or ranked again in a resample.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dpjax.metrics import calibration


class Ranking(NamedTuple):
  """Images in the order of a score, cut where the positives stand.

  Both measures of a ranking are sums over the scores that a positive image
  has. For the k-th highest of these, three stretches are told apart: 3k the
  negatives between it and the one before, 3k + 1 its positives, 3k + 2 its
  negatives. The last one, 3K, is of the negatives below them all.

  Attributes:
    stretches: (N,) the stretch of each image, 0..3K.
    num_scores: K.
  """

  stretches: np.ndarray
  num_scores: int


class Ranked(NamedTuple):
  """What a ranking is worth, in each of R resamples."""

  auroc: np.ndarray
  average_precision: np.ndarray


class Losses(NamedTuple):
  """What calibration takes of each image, (N,) each.

  Attributes:
    bins: of its confidence (calibration.confidence_gaps).
    gaps: whether it is right, less its confidence.
    brier: its squared error.
    nll: its log loss.
  """

  bins: np.ndarray
  gaps: np.ndarray
  brier: np.ndarray
  nll: np.ndarray


class Calibrated(NamedTuple):
  """What probabilities are worth, (R,) each."""

  ece: np.ndarray
  brier: np.ndarray
  nll: np.ndarray


class Images:
  """N scored images, and what does not depend on the resample.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    threshold: an image is called a lesion if 1 - p_0 is at least this.
    temperature: to scale the probabilities by.
  """

  def __init__(
    self,
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    threshold: float | None = None,
    temperature: float | None = None,
  ):
    self.labels, self.probabilities = labels, probabilities
    self.num_classes = probabilities.shape[1]
    called = np.zeros(len(labels), bool)
    if threshold is not None:
      called = calibration.lesion_score(probabilities) >= threshold
    cell = labels * self.num_classes + probabilities.argmax(axis=1)
    self._cells = 2 * cell + called
    self.raw = _losses(labels, probabilities)
    if temperature is not None:
      scaled = calibration.scale(probabilities, temperature)
      self.scaled = _losses(labels, scaled)

  def cells(self, counts: np.ndarray) -> np.ndarray:
    """(R, C, C, 2) images drawn by true class, predicted class, called."""
    c = self.num_classes
    return _grouped(counts, self._cells, 2 * c**2).reshape(-1, c, c, 2)

  @functools.cached_property
  def lesion_ranking(self) -> Ranking:
    """By the probability of any lesion."""
    # -p_0 ranks as 1 - p_0 does, without the ties that rounding 1 - p_0 makes.
    return _ranking(self.labels > 0, -self.probabilities[:, 0])

  @functools.cached_property
  def class_rankings(self) -> list[Ranking]:
    """Of each class against the rest, by its probability."""
    return [
      _ranking(self.labels == c, self.probabilities[:, c])
      for c in range(self.num_classes)
    ]


class Drawn:
  """R resamples of images, and what several scores need of them.

  Args:
    images: that were drawn.
    counts: (R, N) float64, how often each resample holds each image.
  """

  def __init__(self, images: Images, counts: np.ndarray):
    self._images, self._counts = images, counts
    self.total = counts.sum(axis=1)  # (R,)
    cells = images.cells(counts)
    self.confusion = cells.sum(axis=3)  # (R, C, C), rows the true class
    self.right = np.einsum('rcc->rc', self.confusion)  # (R, C)
    self.true = self.confusion.sum(axis=2)  # (R, C)
    self.predicted = self.confusion.sum(axis=1)  # (R, C)
    self.negatives = self.total[:, None] - self.true  # (R, C)
    self.recall = _ratio(self.right, self.true)  # (R, C)
    # (R,) lesions and others; lesions called one, and others that are not.
    self.lesions = self.true[:, 1:].sum(axis=1)
    self.others = self.true[:, 0]
    self.found = cells[:, 1:, :, 1].sum(axis=(1, 2))
    self.spared = cells[:, 0, :, 0].sum(axis=1)

  @functools.cached_property
  def any_lesion(self) -> Ranked:
    """(R,) of lesions against none."""
    return _ranked(self._counts, self._images.lesion_ranking)

  @functools.cached_property
  def each_class(self) -> Ranked:
    """(R, C) of each class against the rest."""
    found = [_ranked(self._counts, r) for r in self._images.class_rankings]
    return Ranked(
      *(np.stack(part, axis=1) for part in zip(*found, strict=True))
    )

  @functools.cached_property
  def raw(self) -> Calibrated:
    """Of the probabilities as they came."""
    return self._calibrated(self._images.raw)

  @functools.cached_property
  def scaled(self) -> Calibrated:
    """Of the probabilities at the temperature."""
    return self._calibrated(self._images.scaled)

  def _calibrated(self, losses):
    counts = self._counts
    gaps = _grouped(counts * losses.gaps, losses.bins, calibration.BINS)
    sums = [np.abs(gaps).sum(axis=1)]
    # Not as a product of matrices: its threads wait for each other, and its
    # last digits hang on how many there are.
    sums += [
      np.einsum('rn,n->r', counts, x) for x in (losses.brier, losses.nll)
    ]
    return Calibrated(*(value / self.total for value in sums))


class Score(NamedTuple):
  """A row of the table.

  Attributes:
    long: its title, for a line or a chart of its own.
    short: its title in the head of a narrow column, at most 10 letters.
    of: the score of R resamples, (R,) or, of each class, (R, C); NaN where a
      resample leaves it undefined.
    needs: without all of these it is undefined: 'any_lesion' (class 0 means
      "no lesion"), 'ordinal' (the classes are counts), 'four_classes' or more,
      a 'threshold', a 'temperature'.
    lower_is_better: as of a loss.
  """

  long: str
  short: str
  of: Callable[[Drawn], np.ndarray]
  needs: frozenset[str] = frozenset()
  lower_is_better: bool = False


def _accuracy(drawn):
  return drawn.right.sum(axis=1) / drawn.total


def _macro_f1(drawn):
  """Of the classes that occur: a class that is never true enters it not."""
  both = np.where(drawn.true > 0, drawn.true + drawn.predicted, 0)
  return _mean_defined(_ratio(2 * drawn.right, both))


def _sensitivity(drawn):
  return _ratio(drawn.found, drawn.lesions)


def _specificity(drawn):
  return _ratio(drawn.spared, drawn.others)


def _quadratic_kappa(drawn):
  """Cohen's kappa of squared distances between classes.

      1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij,   w_ij = (i - j)^2

  with O the confusion matrix and E the one of the same margins by chance.
  NaN where E weighs nothing: one class only, on both sides.

  Source: Cohen (1968), Psychological Bulletin 70, 213-220.
  """
  classes = np.arange(drawn.confusion.shape[-1])
  weights = (classes[:, None] - classes) ** 2.0
  observed = np.einsum('ij,rij->r', weights, drawn.confusion)
  chance = np.einsum('ij,ri,rj->r', weights, drawn.true, drawn.predicted)
  return 1 - _ratio(observed * drawn.total, chance)


def _class_specificity(drawn):
  false_alarms = drawn.predicted - drawn.right
  return _ratio(drawn.negatives - false_alarms, drawn.negatives)


_LESION = frozenset({'any_lesion'})
_CALLED = frozenset({'any_lesion', 'threshold'})
_SCALED = frozenset({'temperature'})
# By their names in evaluation.json, in the order in which they are shown.
SUMMARY = {
  'accuracy': Score('accuracy', 'accuracy', _accuracy),
  'balanced_accuracy': Score(
    'balanced accuracy', 'balanced', lambda drawn: _mean_defined(drawn.recall)
  ),
  'balanced_accuracy_0_2': Score(
    'balanced accuracy, classes 0 to 2', 'bal. 0-2',
    lambda drawn: _mean_defined(drawn.recall[:, :3]),
    frozenset({'four_classes'}),
  ),
  'macro_f1': Score('macro F1', 'macro F1', _macro_f1),
  'auroc_any_lesion': Score(
    'AUROC, any lesion', 'AUROC', lambda drawn: drawn.any_lesion.auroc, _LESION
  ),
  'average_precision_any_lesion': Score(
    'average precision, any lesion', 'AP',
    lambda drawn: drawn.any_lesion.average_precision, _LESION,
  ),
  'sensitivity_any_lesion': Score(
    'sensitivity, any lesion', 'sensit.', _sensitivity, _CALLED
  ),
  'specificity_any_lesion': Score(
    'specificity, any lesion', 'specif.', _specificity, _CALLED
  ),
  'quadratic_kappa': Score(
    'quadratic kappa', 'kappa', _quadratic_kappa, frozenset({'ordinal'})
  ),
  'ece': Score(
    f'calibration error, {calibration.BINS} bins', 'ECE',
    lambda drawn: drawn.raw.ece, lower_is_better=True,
  ),
  'brier': Score(
    'Brier score', 'Brier', lambda drawn: drawn.raw.brier, lower_is_better=True
  ),
  'nll': Score(
    'log loss, nats', 'log loss', lambda drawn: drawn.raw.nll,
    lower_is_better=True,
  ),
  'ece_scaled': Score(
    'calibration error, scaled', 'ECE sc.', lambda drawn: drawn.scaled.ece,
    _SCALED, lower_is_better=True,
  ),
  'brier_scaled': Score(
    'Brier score, scaled', 'Brier sc.', lambda drawn: drawn.scaled.brier,
    _SCALED, lower_is_better=True,
  ),
  'nll_scaled': Score(
    'log loss, scaled', 'loss sc.', lambda drawn: drawn.scaled.nll,
    _SCALED, lower_is_better=True,
  ),
}  # fmt: skip
# Of each class against the rest; in evaluation.json NAME/CLASS.
PER_CLASS = {
  'precision': Score(
    'precision', 'precision', lambda drawn: _ratio(drawn.right, drawn.predicted)
  ),
  'recall': Score('recall', 'recall', lambda drawn: drawn.recall),
  'specificity': Score('specificity', 'specif.', _class_specificity),
  'f1': Score(
    'F1', 'F1',
    lambda drawn: _ratio(2 * drawn.right, drawn.true + drawn.predicted),
  ),
  'auroc': Score('AUROC', 'AUROC', lambda drawn: drawn.each_class.auroc),
  'average_precision': Score(
    'average precision', 'AP', lambda drawn: drawn.each_class.average_precision
  ),
}  # fmt: skip


def _losses(labels, probabilities):
  return Losses(
    *calibration.confidence_gaps(labels, probabilities),
    calibration.squared_error(labels, probabilities),
    calibration.log_loss(labels, probabilities),
  )


def _grouped(values, groups, num_groups):
  """(R, num_groups) sums of values (R, N) over the images of each group."""
  # Sums of whole numbers below 2**53 are exact in any order.
  return np.stack([np.bincount(groups, row, num_groups) for row in values])


def _ranking(positive: np.ndarray, score: np.ndarray) -> Ranking:
  scores = np.unique(-score[positive])  # (K,) rising: the highest comes first
  place = np.searchsorted(scores, -score)
  same = np.append(scores, np.nan)[place] == -score  # as a positive's
  return Ranking(3 * place + np.where(positive, 1, 2 * same), len(scores))


def _ranked(counts: np.ndarray, ranking: Ranking) -> Ranked:
  """AUROC and average precision of counts (R, N), NaN where a side is empty.

  The AUROC is the share of (positive, negative) pairs that the score puts in
  order, ties counting one half (Hanley and McNeil, 1982). Average precision
  is the sum over falling scores of precision times the gain in recall. With
  P_s and N_s the positives and negatives of score s, and sums of those of s
  and above,

      AUROC = sum_s P_s (N - N_{>=s} + N_s / 2) / (P N)
      AP = sum_s P_s / P  P_{>=s} / (P_{>=s} + N_{>=s})

  where only the scores that a positive image has add anything.
  """
  k = ranking.num_scores
  sums = _grouped(counts, ranking.stretches, 3 * k + 1)
  between, positives, tied = (sums[:, i : 3 * k : 3] for i in range(3))
  positives_upto = positives.cumsum(axis=1)
  negatives_upto = (between + tied).cumsum(axis=1)
  total_positive = positives.sum(axis=1)
  total_negative = sums.sum(axis=1) - total_positive
  pairs = total_positive * total_negative
  misordered = np.einsum('rs,rs->r', positives, negatives_upto - tied / 2)
  auroc = _ratio(pairs - misordered, pairs)
  # Before the first drawn image nothing is counted: 0 of 0, worth 0.
  images_upto = np.maximum(positives_upto + negatives_upto, 1)
  gained = np.einsum('rs,rs->r', positives, positives_upto / images_upto)
  precision = _ratio(gained, np.where(pairs > 0, total_positive, 0))
  return Ranked(auroc, precision)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  """top / bottom, NaN where bottom is 0."""
  nan = np.full(bottom.shape, np.nan)
  return np.divide(top, bottom, out=nan, where=bottom > 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
  """(R, C) -> (R,) the mean of the values that are not NaN, NaN if none is."""
  return _ratio(
    np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1).astype(float)
  )
