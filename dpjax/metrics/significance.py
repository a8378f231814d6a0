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
  labels, a, b = resampling.checked_pair(
    labels, probabilities_a, probabilities_b
  )
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
  differences = [
    None if None in (x, y) else x - y for x, y in zip(a, b, strict=True)
  ]
  return _t_test(differences, level)


def _t_test(values: Sequence[float | None], level: float) -> dict[str, Any]:
  """'mean', 'interval' and 'num_runs' of `over_seeds`, 'p_value' of mean 0."""
  resampling.check_level(level)
  values = list(values)
  found = {
    'mean': None,
    'interval': None,
    'num_runs': len(values),
    'p_value': None,
  }
  if not values or None in values:
    return found
  mean = found['mean'] = float(np.mean(values))
  if len(values) == 1:
    return found
  if np.ptp(values) <= _EQUAL:  # SciPy warns of them.
    return found | {'interval': [mean, mean]}
  test = stats.ttest_1samp(values, 0)
  return found | {
    'interval': [float(end) for end in test.confidence_interval(level)],
    'p_value': float(test.pvalue),
  }
