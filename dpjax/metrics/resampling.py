"""How sure the scores are: intervals, differences of models, seeds.

The bootstrap does not call scikit-learn: it computes the same scores for a
block of resamples at once, each resample being a row of counts that says how
often every image was drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dpjax.metrics import calibration, predictions, titles

# What is scored during training.
_VALIDATED = ('accuracy', 'balanced_accuracy', 'balanced_accuracy_0_2',
              'macro_f1', 'auroc_any_lesion')  # fmt: skip
# A class of fewer images takes an exact interval for its recall.
_FEW = 10
# Resamples are scored in blocks of so many (resample, image) pairs: 1 MiB,
# which the processor's cache holds.
_BLOCK = 2**17


def bootstrap(
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str] | None,
  *,
  resamples: int = 2000,
  seed: int,
  stratified: bool = True,
  level: float = 0.95,
  any_lesion: bool = True,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> dict[str, list[float] | None]:
  """Percentile bootstrap intervals of every score.

  Images are drawn with replacement, N of N, `resamples` times; an interval
  runs from the (1 - level)/2 to the (1 + level)/2 quantile of a score over
  the resamples. It holds the model fixed, and its threshold and temperature:
  the spread over training seeds is not in it.

  A resample that leaves a score undefined is left out of that score's
  interval.

  Where a class has fewer than 10 images, its recall takes the exact binomial
  interval instead: the bootstrap of 0 of 2 is [0, 0], as if that were sure.
  With k of n images right and B_q(a, b) the q quantile of a beta distribution,

      low = B_{(1 - level)/2}(k, n - k + 1)
      high = B_{(1 + level)/2}(k + 1, n - k)

  and low = 0 at k = 0, high = 1 at k = n. Means over classes keep the
  bootstrap.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names; None: no scores of the single classes.
    resamples: how many resamples are drawn.
    seed: of the draws; equal seeds give equal intervals.
    stratified: draw within each class, so that every resample has the class
      sizes of `labels`. Otherwise draw over all images.
    level: the share of the resamples that an interval covers.
    any_lesion, ordinal, threshold, temperature: as in `scores.scores`.

  Returns:
    flat name -> [low, high], or None where `scores.scores` gives None. A class
    of one image adds no spread: but for its recall, its intervals are too
    short, not wide. The calibration error is a sum of absolute values, which
    drawing again can but raise where it is small: the interval of a good model
    may lie above it.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, 13.3;
  Clopper and Pearson (1934), Biometrika 26, 404-413.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  _check_resampling(resamples, level)
  score = scorer(
    labels,
    probabilities,
    class_names,
    any_lesion=any_lesion,
    ordinal=ordinal,
    threshold=threshold,
    temperature=temperature,
  )
  (values,) = resampled([score], labels, resamples, seed, stratified)
  found = {name: interval(value, level) for name, value in values.items()}
  right = probabilities.argmax(axis=1) == labels
  for c, name in enumerate(class_names or ()):
    of_class = right[labels == c]
    if 0 < len(of_class) < _FEW:
      found[f'recall/{name}'] = _binomial_interval(of_class, level)
  return found


def paired_bootstrap(
  labels: np.ndarray,
  probabilities_a: np.ndarray,
  probabilities_b: np.ndarray,
  class_names: Sequence[str] | None,
  *,
  resamples: int = 2000,
  seed: int,
  stratified: bool = True,
  level: float = 0.95,
  any_lesion: bool = True,
  ordinal: bool = False,
  threshold: tuple[float | None, float | None] = (None, None),
  temperature: tuple[float | None, float | None] = (None, None),
) -> dict[str, dict[str, Any]]:
  """Differences a - b of two models on the same images, with intervals.

  Both models are scored on the same resamples, so what makes an image hard
  for both cancels: these intervals are shorter than two separate ones suggest.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities_a: (N, C) of model a, rows in the order of `labels`.
    probabilities_b: (N, C) of model b, likewise.
    class_names: as in `bootstrap`.
    resamples: as in `bootstrap`.
    seed: as in `bootstrap`; an equal seed draws the same resamples there.
    stratified: as in `bootstrap`.
    level: as in `bootstrap`.
    any_lesion, ordinal: as in `scores.scores`.
    threshold: those of a and of b.
    temperature: likewise.

  Returns:
    flat name -> {'difference': a - b on `labels`, 'interval': [low, high]},
    both None where either model has no such score.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: as `bootstrap`.
  """
  checked_labels, *models = _checked_pair(
    labels, probabilities_a, probabilities_b
  )
  _check_resampling(resamples, level)
  scorers = [
    scorer(
      checked_labels,
      probabilities,
      class_names,
      any_lesion=any_lesion,
      ordinal=ordinal,
      threshold=threshold[i],
      temperature=temperature[i],
    )
    for i, probabilities in enumerate(models)
  ]
  point_a, point_b = (
    score(np.ones((1, len(checked_labels)))) for score in scorers
  )
  values_a, values_b = resampled(
    scorers, checked_labels, resamples, seed, stratified
  )
  return {
    name: {
      'difference': _number(point_a[name][0] - point_b[name][0]),
      'interval': interval(values_a[name] - values_b[name], level),
    }
    for name in point_a
  }


def mcnemar(
  labels: np.ndarray,
  probabilities_a: np.ndarray,
  probabilities_b: np.ndarray,
) -> dict[str, Any]:
  """Exact McNemar test of whether two models are right equally often.

  Of the images that one model alone has right, each is as likely to be a's as
  b's if they are: the two-sided p value is a binomial's with 1/2.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities_a: (N, C) of model a, rows in the order of `labels`.
    probabilities_b: (N, C) of model b, likewise.

  Returns:
    {'only_a_right', 'only_b_right': numbers of images, 'p_value': 1.0 where
    both are 0}.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: McNemar (1947), Psychometrika 12, 153-157.
  """
  from scipy import stats  # Here, so that training never imports it.

  labels, a, b = _checked_pair(labels, probabilities_a, probabilities_b)
  right_a, right_b = (p.argmax(axis=1) == labels for p in (a, b))
  only_a = int((right_a & ~right_b).sum())
  only_b = int((right_b & ~right_a).sum())
  p_value = 1.0
  if only_a + only_b:
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
  return {'only_a_right': only_a, 'only_b_right': only_b, 'p_value': p_value}


def over_seeds(
  values: Sequence[float | None], *, level: float = 0.95
) -> dict[str, Any]:
  """Mean of a score over runs that differ in their seed, with a t interval.

      mean +- t_{n-1, (1 + level) / 2} s / sqrt(n)

  Args:
    values: of n runs; None where a run has no such score.
    level: of the interval.

  Returns:
    {'mean', 'interval': [low, high], 'num_runs': n}. The mean is None if a
    value is, or there is none; the interval also if there is one run only.

  Raises:
    ValueError: if `level` does not lie between 0 and 1.

  Source: Student (1908).
  """
  from scipy import stats  # Here, so that training never imports it.

  _check_level(level)
  values = list(values)
  result = {'mean': None, 'interval': None, 'num_runs': len(values)}
  if not values or None in values:
    return result
  mean = float(np.mean(values))
  result['mean'] = mean
  if len(values) > 1:
    quantile = stats.t.ppf((1 + level) / 2, len(values) - 1)
    half = float(quantile * _standard_error(values))
    result['interval'] = [mean - half, mean + half]
  return result


def paired_over_seeds(
  a: Sequence[float | None],
  b: Sequence[float | None],
  *,
  level: float = 0.95,
) -> dict[str, Any]:
  """`over_seeds` of the differences a - b of runs with the same seeds.

  Args:
    a: a score of n runs.
    b: the same of the n other runs, in the same order of seeds.
    level: of the interval.

  Returns:
    What `over_seeds` returns, and 'p_value' of the paired t test, two-sided:
    None with fewer than two runs, or if the differences are all the same.

  Raises:
    ValueError: if the lengths differ, or `level` does not lie between 0 and 1.

  Source: Student (1908).
  """
  from scipy import stats  # Here, so that training never imports it.

  if len(a) != len(b):
    raise ValueError(f'{len(a)} runs of a and {len(b)} of b are no pairs')
  differences = [
    None if None in (x, y) else x - y for x, y in zip(a, b, strict=True)
  ]
  result = {**over_seeds(differences, level=level), 'p_value': None}
  # Equal differences of scores differ in their last bits.
  if result['interval'] is not None and np.ptp(differences) > 1e-12:
    t = result['mean'] / _standard_error(differences)
    result['p_value'] = float(2 * stats.t.sf(abs(t), len(differences) - 1))
  return result


def scorer(
  labels: np.ndarray,  # (N,)
  probabilities: np.ndarray,  # (N, C)
  class_names: Sequence[str] | None,
  *,
  any_lesion: bool,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
  """A function that scores resamples, without scikit-learn.

  It takes counts (R, N), float64, how often each of R resamples holds an image,
  and returns flat name -> (R,), NaN where undefined. The arguments here are
  those of `scores.scores`, checked; without names no class is scored.

  What does not depend on the counts is computed once. All but the scores of
  rankings are functions of sums over images, so one product of matrices.
  """
  num_classes = probabilities.shape[1]
  if class_names is not None:
    class_names = predictions.check_names(class_names, num_classes)
  lesion = labels > 0  # (N,)
  called = np.zeros(len(labels), bool)
  if threshold is not None:
    called = calibration.lesion_score(probabilities) >= threshold

  parts = {
    # One column for each cell (true, predicted) of the confusion matrix.
    'confusion': np.eye(num_classes**2)[
      labels * num_classes + probabilities.argmax(axis=1)
    ],
    'lesion': np.stack(
      [lesion, ~lesion, lesion & called, ~lesion & ~called], axis=1
    ),
    **_calibration_sums(labels, probabilities, ''),
  }
  if temperature is not None:
    scaled = calibration.scale(probabilities, temperature)
    parts |= _calibration_sums(labels, scaled, '_scaled')
  sums = np.concatenate(list(parts.values()), axis=1)  # (N, sum of widths)
  ends = np.cumsum([part.shape[1] for part in parts.values()])[:-1]

  rankings = {}
  if any_lesion:
    # -p_0 ranks as 1 - p_0 does, without the ties that rounding 1 - p_0 makes.
    rankings['any_lesion'] = _ranking(lesion, -probabilities[:, 0])
  for c, name in enumerate(class_names or ()):
    rankings[name] = _ranking(labels == c, probabilities[:, c])

  def score(counts: np.ndarray) -> dict[str, np.ndarray]:
    # Sums of whole numbers below 2**53 are exact in any order.
    found = dict(zip(parts, np.split(counts @ sums, ends, axis=1), strict=True))
    undefined = np.full(len(counts), np.nan)
    total = counts.sum(axis=1)
    confusion = found['confusion'].reshape(-1, num_classes, num_classes)
    right = np.einsum('rcc->rc', confusion)  # (R, C)
    true = confusion.sum(axis=2)  # (R, C)
    predicted = confusion.sum(axis=1)  # (R, C)
    recall = _ratio(right, true)
    lesions, others, found_lesions, spared = found['lesion'].T

    values = dict.fromkeys(titles.SUMMARY, undefined)
    values['accuracy'] = right.sum(axis=1) / total
    values['balanced_accuracy'] = _mean_defined(recall)
    if num_classes > 3:
      values['balanced_accuracy_0_2'] = _mean_defined(recall[:, :3])
    values['macro_f1'] = _mean_defined(
      _ratio(2 * right, np.where(true > 0, true + predicted, 0))
    )
    if any_lesion:
      auroc, precision = _ranked(counts, *rankings['any_lesion'])
      values['auroc_any_lesion'] = auroc
      values['average_precision_any_lesion'] = precision
      if threshold is not None:
        values['sensitivity_any_lesion'] = _ratio(found_lesions, lesions)
        values['specificity_any_lesion'] = _ratio(spared, others)
    if ordinal:
      values['quadratic_kappa'] = _quadratic_kappa(confusion, true, predicted)
    for suffix in ('',) if temperature is None else ('', '_scaled'):
      gaps = np.abs(found[f'gaps{suffix}']).sum(axis=1)
      brier, nll = found[f'losses{suffix}'].T
      values[f'ece{suffix}'] = gaps / total
      values[f'brier{suffix}'] = brier / total
      values[f'nll{suffix}'] = nll / total

    negatives = total[:, None] - true
    false_alarms = predicted - right
    columns = {
      'precision': _ratio(right, predicted),
      'recall': recall,
      'specificity': _ratio(negatives - false_alarms, negatives),
      'f1': _ratio(2 * right, true + predicted),
    }
    for c, name in enumerate(class_names or ()):
      values |= {
        f'{key}/{name}': column[:, c] for key, column in columns.items()
      }
      auroc, precision = _ranked(counts, *rankings[name])
      values[f'auroc/{name}'] = auroc
      values[f'average_precision/{name}'] = precision
    return values

  return score


def summary(
  labels: np.ndarray, probabilities: np.ndarray, *, any_lesion: bool = True
) -> dict[str, float | None]:
  """Five of the scores of `scores.scores`, without scikit-learn.

  For validation during training, which is not to import it.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    any_lesion: whether class 0 means "no lesion".

  Returns:
    {name: float, or None where undefined}: accuracy, balanced_accuracy,
    balanced_accuracy_0_2, macro_f1, auroc_any_lesion.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  score = scorer(labels, probabilities, None, any_lesion=any_lesion)
  values = score(np.ones((1, len(labels))))
  return {name: _number(values[name][0]) for name in _VALIDATED}


def _checked_pair(labels, probabilities_a, probabilities_b):
  models = []
  for name, probabilities in ('a', probabilities_a), ('b', probabilities_b):
    try:
      checked, probabilities = predictions.check(labels, probabilities)
    except ValueError as error:
      raise ValueError(f'model {name}: {error}') from None
    models.append(probabilities)
  if models[0].shape != models[1].shape:
    raise ValueError(
      f'probabilities of model a have the shape {models[0].shape}, of model b '
      f'{models[1].shape}: both need the same classes'
    )
  return checked, *models


def _check_resampling(resamples: int, level: float) -> None:
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, not {resamples}')
  _check_level(level)


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise ValueError(f'level must lie between 0 and 1, not {level}')


def _standard_error(values: Sequence[float]) -> float:
  return np.std(values, ddof=1) / np.sqrt(len(values))


def resampled(
  scorers: Sequence[Callable],
  labels: np.ndarray,  # (N,)
  resamples: int,
  seed: int,
  stratified: bool,
) -> list[dict[str, np.ndarray]]:
  """Values of every score over the same resamples.

  Args:
    scorers: of `scorer`, for the same labels.
    labels: (N,) true classes.
    resamples, seed, stratified: as in `bootstrap`.

  Returns:
    For each scorer, flat name -> (resamples,), NaN where undefined.
  """
  blocks = [[] for _ in scorers]
  for counts in draws(labels, resamples, seed, stratified):
    for values, score in zip(blocks, scorers, strict=True):
      values.append(score(counts))
  return [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in blocks
  ]


def draws(
  labels: np.ndarray, resamples: int, seed: int, stratified: bool
) -> Iterator[np.ndarray]:
  """Yields (R', N) float64 blocks: how often a resample drew each image.

  Args:
    labels: (N,) true classes.
    resamples, seed, stratified: as in `bootstrap`.
  """
  rng = np.random.default_rng(seed)
  n = len(labels)
  if stratified:
    strata = [np.flatnonzero(labels == c) for c in np.unique(labels)]
  else:
    strata = [np.arange(n)]
  block = max(1, _BLOCK // n)
  for start in range(0, resamples, block):
    size = min(block, resamples - start)
    drawn = [s[rng.integers(len(s), size=(size, len(s)))] for s in strata]
    cells = np.concatenate(drawn, axis=1) + n * np.arange(size)[:, None]
    counts = np.bincount(cells.ravel(), minlength=size * n)
    yield counts.reshape(size, n).astype(np.float64)


def _calibration_sums(labels, probabilities, suffix):
  """(N, .) columns whose sums give ECE, Brier score and log loss."""
  losses = [
    calibration.squared_error(labels, probabilities),
    calibration.log_loss(labels, probabilities),
  ]
  return {
    f'gaps{suffix}': calibration.confidence_gaps(labels, probabilities),
    f'losses{suffix}': np.stack(losses, axis=1),
  }


def _quadratic_kappa(confusion, true, predicted):
  """(R,) Cohen's kappa of squared distances between classes.

      1 - sum_ij w_ij O_ij / sum_ij w_ij E_ij,   w_ij = (i - j)^2

  with O the confusion matrix and E the one of the same margins by chance.
  NaN where E weighs nothing: one class only, on both sides.

  Source: Cohen (1968), Psychological Bulletin 70, 213-220.
  """
  classes = np.arange(confusion.shape[-1])
  weights = (classes[:, None] - classes) ** 2.0
  observed = np.einsum('ij,rij->r', weights, confusion)
  chance = np.einsum('ij,ri,rj->r', weights, true, predicted)
  return 1 - _ratio(observed * true.sum(axis=1), chance)


def _ranking(positive: np.ndarray, score: np.ndarray):
  """What `_ranked` needs: order by falling score, positives, starts of ties."""
  order = np.argsort(-score, kind='stable')
  starts = np.flatnonzero(np.diff(-score[order], prepend=-np.inf))
  return order, positive[order].astype(np.float64), starts


def _ranked(
  counts: np.ndarray,  # (R, N)
  order: np.ndarray,  # (N,)
  positive: np.ndarray,  # (N,) of `order`
  starts: np.ndarray,  # (S,) of the groups of equal scores
) -> tuple[np.ndarray, np.ndarray]:
  """AUROC and average precision of R resamples, NaN where one side is empty.

  The AUROC is the share of (positive, negative) pairs that the score puts in
  order, ties counting one half (Hanley and McNeil, 1982). Average precision
  is the sum over falling scores of precision times the gain in recall. With
  P_s and M_s the positives and all images of score s, and sums of those of s
  and above,

      AUROC = sum_s P_s (N - N_{>=s} + N_s / 2) / (P N),   N_s = M_s - P_s
      AP = sum_s P_s / P  P_{>=s} / M_{>=s}
  """
  images = counts[:, order]
  positives = images * positive
  if len(starts) < len(order):
    images = np.add.reduceat(images, starts, axis=1)  # (R, S)
    positives = np.add.reduceat(positives, starts, axis=1)  # (R, S)
  images_upto = images.cumsum(axis=1)
  positives_upto = positives.cumsum(axis=1)
  total_positive = positives_upto[:, -1].copy()  # It is divided in place below.
  total_negative = images_upto[:, -1] - total_positive
  # N_{>=s} - N_s / 2, of negatives = images - positives.
  above = images_upto - positives_upto - (images - positives) / 2
  misordered = np.einsum('rs,rs->r', positives, above)
  pairs = total_positive * total_negative
  auroc = _ratio(pairs - misordered, pairs)
  # Before the first drawn image nothing is counted: 0 of 0, worth 0.
  np.maximum(images_upto, 1, out=images_upto)
  positives_upto /= images_upto
  gained = np.einsum('rs,rs->r', positives, positives_upto)
  precision = _ratio(gained, np.where(pairs > 0, total_positive, 0))
  return auroc, precision


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  """top / bottom, NaN where bottom is 0."""
  nan = np.full(bottom.shape, np.nan)
  return np.divide(top, bottom, out=nan, where=bottom > 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
  """(R, C) -> (R,) the mean of the values that are not NaN, NaN if none is."""
  return _ratio(
    np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1).astype(float)
  )


def interval(values: np.ndarray, level: float) -> list[float] | None:
  """Quantiles (1 - level)/2 and (1 + level)/2 of resamples; None of none.

  Args:
    values: (R,) of one score, NaN where undefined.
    level: the share of the values that lie between.
  """
  values = values[~np.isnan(values)]
  if not values.size:
    return None
  return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _binomial_interval(right: np.ndarray, level: float) -> list[float]:
  """Clopper and Pearson's, of the share of `right` that is set."""
  from scipy import stats  # Here, so that training never imports it.

  test = stats.binomtest(int(right.sum()), len(right))
  return [float(bound) for bound in test.proportion_ci(level, method='exact')]


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
