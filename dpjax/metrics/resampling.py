"""How sure the scores of one set of images are: the bootstrap over images.

A resample is a row of counts that says how often every image was drawn; a block
of them is scored at once. Images of one patient are alike: where it is known
whose they are, patients are drawn, each with all images.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np

from dpjax.metrics import predictions, scores

# A class of fewer images takes an exact interval for its recall.
_FEW = 10
# Resamples are scored in blocks of so many (resample, image) pairs: 1 MiB,
# which the processor's cache holds.
_BLOCK = 2**17


class Draws(TypedDict):
  """How `bootstrap_intervals` draws; the arguments there."""

  resamples: int
  seed: int
  patients: np.ndarray | None


def bootstrap_intervals(
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str] | None,
  *,
  resamples: int = 2000,
  seed: int,
  stratified: bool = True,
  level: float = 0.95,
  patients: np.ndarray | None = None,
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

  With `patients` these are drawn, M of M, and bring all their images along: a
  resample then holds more or fewer images than N. Strata are of patients by
  their rarest class. Without any, or with one image of each, all is as if there
  were none.

  A resample that leaves a score undefined is left out of that score's
  interval.

  Where a class has fewer than 10 images, its recall takes the exact binomial
  interval instead: the bootstrap of 0 of 2 is [0, 0], as if that were sure.
  With k of n images right and B_q(a, b) the q quantile of a beta distribution,

      low = B_{(1 - level)/2}(k, n - k + 1)
      high = B_{(1 + level)/2}(k + 1, n - k)

  and low = 0 at k = 0, high = 1 at k = n. Means over classes keep the
  bootstrap. Where a class has fewer than 10 patients, n is their number and k
  the recall times n: as if the images of one were right or wrong together,
  which is the widest that it can come to.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names; None: no scores of the single classes.
    resamples: how many resamples are drawn.
    seed: of the draws; equal seeds give equal intervals.
    stratified: draw within each class, so that every resample has the class
      sizes of `labels`. Otherwise draw over all images.
    level: the share of the resamples that an interval covers.
    patients: (N,) whose each image is, by numbers or names; None: unknown.
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
  patients, Davison and Hinkley (1997), Bootstrap Methods and their Application,
  3.8; Clopper and Pearson (1934), Biometrika 26, 404-413, and with fewer
  patients than images Korn and Graubard (1998), Survey Methodology 24, 193-201.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  check_resamples(resamples)
  check_level(level)
  owner = clusters(patients, len(labels))
  score = scores.scorer(
    labels,
    probabilities,
    class_names,
    any_lesion=any_lesion,
    ordinal=ordinal,
    threshold=threshold,
    temperature=temperature,
  )
  (values,) = resampled([score], labels, resamples, seed, stratified, patients)
  found = {
    name: percentile_interval(value, level) for name, value in values.items()
  }
  right = probabilities.argmax(axis=1) == labels
  for c, name in enumerate(class_names or ()):
    of_class = right[labels == c]
    count = len(of_class if owner is None else np.unique(owner[labels == c]))
    if 0 < count < _FEW:
      found[f'recall/{name}'] = _binomial_interval(of_class, count, level)
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
  patients: np.ndarray | None = None,
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
    class_names: as in `bootstrap_intervals`.
    resamples: as in `bootstrap_intervals`.
    seed: as in `bootstrap_intervals`; an equal seed draws the same resamples
      there.
    stratified: as in `bootstrap_intervals`.
    level: as in `bootstrap_intervals`.
    patients: as in `bootstrap_intervals`.
    any_lesion, ordinal: as in `scores.scores`.
    threshold: those of a and of b.
    temperature: likewise.

  Returns:
    flat name -> {'difference': a - b on `labels`, 'interval': [low, high]},
    both None where either model has no such score.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: as `bootstrap_intervals`.
  """
  checked_labels, *models = checked_pair(
    labels, probabilities_a, probabilities_b
  )
  check_resamples(resamples)
  check_level(level)
  scorers = [
    scores.scorer(
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
    scores.of_all(score, len(checked_labels)) for score in scorers
  )
  values_a, values_b = resampled(
    scorers, checked_labels, resamples, seed, stratified, patients
  )
  return {
    name: {
      'difference': difference(point_a[name], point_b[name]),
      'interval': percentile_interval(values_a[name] - values_b[name], level),
    }
    for name in point_a
  }


def difference(a: float | None, b: float | None) -> float | None:
  """a - b; None where one of them is."""
  return None if a is None or b is None else a - b


def checked_pair(
  labels: np.ndarray, probabilities_a: np.ndarray, probabilities_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """predictions.check of two models on the same images; their classes, too."""
  models = []
  for name, probabilities in ('a', probabilities_a), ('b', probabilities_b):
    try:
      checked, probabilities = predictions.check(labels, probabilities)
    except ValueError as error:
      raise ValueError(f'model {name}: {error}') from None
    models.append(probabilities)
  a, b = models
  if a.shape != b.shape:
    raise ValueError(
      f'probabilities of model a have the shape {a.shape}, of model b '
      f'{b.shape}: both need the same classes'
    )
  return checked, a, b


def check_resamples(resamples: int) -> None:
  """Raises ValueError if there is none."""
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, not {resamples}')


def check_level(level: float) -> None:
  """Raises ValueError if it is no share."""
  if not 0 < level < 1:
    raise ValueError(f'level must lie between 0 and 1, not {level}')


def resampled(
  scorers: Sequence[Callable],
  labels: np.ndarray,  # (N,)
  resamples: int,
  seed: int,
  stratified: bool,
  patients: np.ndarray | None = None,
) -> list[dict[str, np.ndarray]]:
  """Values of every score over the same resamples.

  Args:
    scorers: of `scores.scorer`, for the same labels.
    labels: (N,) true classes.
    resamples, seed, stratified, patients: as in `bootstrap_intervals`.

  Returns:
    For each scorer, flat name -> (resamples,), NaN where undefined.
  """
  blocks: list[list[dict[str, np.ndarray]]] = [[] for _ in scorers]
  for counts in draws(labels, resamples, seed, stratified, patients):
    for values, score in zip(blocks, scorers, strict=True):
      values.append(score(counts))
  return [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in blocks
  ]


def draws(
  labels: np.ndarray,
  resamples: int,
  seed: int,
  stratified: bool,
  patients: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
  """Yields (R', N) float64 blocks: how often a resample drew each image.

  Args:
    labels: (N,) true classes.
    resamples, seed, stratified, patients: as in `bootstrap_intervals`.
  """
  rng = np.random.default_rng(seed)
  owner = clusters(patients, len(labels))
  kinds = labels if owner is None else _rarest_class(labels, owner)
  n = len(kinds)  # of what is drawn: images, or patients
  if stratified:
    strata = [np.flatnonzero(kinds == c) for c in np.unique(kinds)]
  else:
    strata = [np.arange(n)]
  block = max(1, _BLOCK // len(labels))
  for start in range(0, resamples, block):
    size = min(block, resamples - start)
    drawn = [s[rng.integers(len(s), size=(size, len(s)))] for s in strata]
    cells = np.concatenate(drawn, axis=1) + n * np.arange(size)[:, None]
    counts = np.bincount(cells.ravel(), minlength=size * n)
    counts = counts.reshape(size, n).astype(np.float64)
    yield counts if owner is None else counts[:, owner]


def clusters(patients: np.ndarray | None, num_images: int) -> np.ndarray | None:
  """(N,) the number of each image's patient, 0..M-1.

  None where no patient has two images, or they are unknown: there a patient is
  an image.

  Raises:
    ValueError: `patients` is not (N,).
  """
  if patients is None:
    return None
  patients = np.asarray(patients)
  if patients.shape != (num_images,):
    raise ValueError(
      f'patients of shape {patients.shape} for {num_images} images'
    )
  names, owner = np.unique(patients, return_inverse=True)
  return owner if len(names) < num_images else None


def _rarest_class(labels, owner):
  """(M,) of each patient, the class of fewest images; of equal ones the lowest.

  As data.prepare.splits has it: else the few of a rare class that a patient
  brings would come and go with the many of a common one.
  """
  counts = np.bincount(labels)
  order = np.argsort(counts, kind='stable')  # the classes, the rarest first
  rank = np.argsort(order)
  rarest = np.full(owner.max() + 1, len(order))
  np.minimum.at(rarest, owner, rank[labels])
  return order[rarest]


def percentile_interval(values: np.ndarray, level: float) -> list[float] | None:
  """Quantiles (1 - level)/2 and (1 + level)/2 of resamples; None of none.

  Args:
    values: (R,) of one score, NaN where undefined.
    level: the share of the values that lie between.
  """
  values = values[~np.isnan(values)]
  if not values.size:
    return None
  return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _binomial_interval(
  right: np.ndarray, count: int, level: float
) -> list[float]:
  """Clopper and Pearson's, of the share of `right` that is set.

  Args:
    right: (n,) bool, of each image.
    count: of independent ones among them: n, or fewer patients.
    level: as in `bootstrap_intervals`.
  """
  from scipy import stats  # Here, so that training never imports it.

  if count < len(right):
    k, tail = count * right.mean(), (1 - level) / 2
    low = stats.beta.ppf(tail, k, count - k + 1) if k > 0 else 0.0
    high = stats.beta.ppf(1 - tail, k + 1, count - k) if k < count else 1.0
    return [float(low), float(high)]
  test = stats.binomtest(int(right.sum()), len(right))
  return [float(bound) for bound in test.proportion_ci(level, method='exact')]
