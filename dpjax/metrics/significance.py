"""Tests of a difference: of two models on the same images, and over seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from dpjax.metrics import resampling

# Equal scores, and equal differences of scores, differ in their last bits.
_EQUAL = 1e-12


def mcnemar(
  labels: np.ndarray,
  probabilities_a: np.ndarray,
  probabilities_b: np.ndarray,
  patients: np.ndarray | None = None,
) -> dict[str, Any]:
  """Exact McNemar test of whether two models are right equally often.

  Of the images that one model alone has right, each is as likely to be a's as
  b's if they are: the two-sided p value is a binomial's with 1/2.

  Images of one patient are not independent. With `patients` it is as likely
  that the models' answers to all images of one were the other way round: with
  d_j the images of patient j that a alone has right less those that b has,

      p = P(|sum_j s_j d_j| >= |sum_j d_j|),   s_j = +-1, each with 1/2

  exactly. With one image a patient that is McNemar's test.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities_a: (N, C) of model a, rows in the order of `labels`.
    probabilities_b: (N, C) of model b, likewise.
    patients: (N,) whose each image is; None: unknown.

  Returns:
    {'only_a_right', 'only_b_right': numbers of images, 'p_value': 1.0 where
    both are 0}.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: McNemar (1947), Psychometrika 12, 153-157; by patient it is Fisher's
  randomisation of signs (1935), The Design of Experiments, section 21.
  """
  labels, a, b = resampling.checked_pair(
    labels, probabilities_a, probabilities_b
  )
  right_a, right_b = (p.argmax(axis=1) == labels for p in (a, b))
  only_a = int((right_a & ~right_b).sum())
  only_b = int((right_b & ~right_a).sum())
  p_value = 1.0
  owner = resampling.clusters(patients, len(labels))
  if owner is not None:
    ahead = np.bincount(owner, right_a.astype(int) - right_b.astype(int))
    p_value = _sign_test(np.rint(ahead).astype(int))
  elif only_a + only_b:
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue)
  return {'only_a_right': only_a, 'only_b_right': only_b, 'p_value': p_value}


def _sign_test(values: np.ndarray) -> float:
  """P(|sum of +-values| >= |sum of values|), the signs fair coins; exact.

  Args:
    values: (n,) whole numbers.
  """
  # From the k patients of one size: size * (2 heads - k).
  sums = np.ones(1)  # of -total, -total + 2, ..., total by its probability
  total = 0
  for size, count in zip(
    *np.unique(np.abs(values[values != 0]), return_counts=True), strict=True
  ):
    part = np.zeros(size * count + 1)
    part[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
    sums = np.convolve(sums, part)
    total += size * count
  far = np.abs(np.arange(-total, total + 1, 2)) >= abs(values.sum())
  return float(min(1.0, sums[far].sum()))


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
  found = _t_test(values, level)
  del found['p_value']  # Whether a score is 0 is nobody's question.
  return found


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
  if len(a) != len(b):
    raise ValueError(f'{len(a)} runs of a and {len(b)} of b are no pairs')
  return _t_test([*map(resampling.difference, a, b)], level)


def over_seeds_and_images(
  values: Sequence[float | None],
  image_variance: float | None,
  *,
  level: float = 0.95,
) -> list[float] | None:
  """An interval that holds both spreads: over seeds, and over images.

      mean +- sqrt(t_{n-1, q}^2 s^2 / n + z_q^2 v),   q = (1 + level) / 2

  The n runs are scored on the same images, so what these make of a score, v,
  does not become less with n; s^2 / n is what training again would change. Each
  has its own quantile, Student's t and the normal z, and the squares of the two
  halves are added: the interval is longer than either alone.

  A part of the spread between runs is of the images too and counted twice, so
  it covers rather more than it says. A bootstrap that draws runs and images
  alike draws three runs from three, and the spread comes out a third too small;
  Satterthwaite's degrees of freedom of the sum are too many where s is small by
  chance (benchmarks/coverage.py).

  Args:
    values: of n runs, of a score or of a difference.
    image_variance: v, of their mean over resamples of the images.
    level: of the interval.

  Returns:
    [low, high]; None with fewer than two runs, or where a value or the variance
    is None.

  Raises:
    ValueError: if `level` does not lie between 0 and 1.

  Source: Zou and Donner (2008), Statistics in Medicine 27, 1693-1702, of limits
  for a sum; runs by images as in Obuchowski and Rockette (1995), Communications
  in Statistics 24, 285-308.
  """
  resampling.check_level(level)
  known = [value for value in values if value is not None]
  n = len(values)
  if n < 2 or len(known) < n or image_variance is None:
    return None
  quantile = (1 + level) / 2
  seeds = stats.t.ppf(quantile, n - 1) ** 2 * np.var(known, ddof=1) / n
  images = stats.norm.ppf(quantile) ** 2 * image_variance
  half = float(np.sqrt(seeds + images))
  mean = float(np.mean(known))
  return [mean - half, mean + half]


def _t_test(values: Sequence[float | None], level: float) -> dict[str, Any]:
  """'mean', 'interval' and 'num_runs' of `over_seeds`, 'p_value' of mean 0."""
  resampling.check_level(level)
  known = [value for value in values if value is not None]
  found: dict[str, Any] = {
    'mean': None,
    'interval': None,
    'num_runs': len(values),
    'p_value': None,
  }
  if not known or len(known) < len(values):
    return found
  mean = found['mean'] = float(np.mean(known))
  if len(known) == 1:
    return found
  if np.ptp(known) <= _EQUAL:  # SciPy warns of them.
    return found | {'interval': [mean, mean]}
  test = stats.ttest_1samp(known, 0)
  return found | {
    'interval': [float(end) for end in test.confidence_interval(level)],
    'p_value': float(test.pvalue),
  }
