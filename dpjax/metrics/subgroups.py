"""Scores of the images that share a value: a sex, an age, a scanner.

Differences between subgroups are looked for here, not tested for: with many
columns some differ by chance, and the intervals say how much that can be.
"""

import collections
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dpjax.metrics import predictions, resampling, scores

SCORES = (
  'accuracy',
  'balanced_accuracy',
  'macro_f1',
  'auroc_any_lesion',
  'sensitivity_any_lesion',
  'specificity_any_lesion',
  'quadratic_kappa',
  'ece',
  'nll',
  'ece_scaled',
  'nll_scaled',
)
MOST = 8  # groups of a column, but for the unknown
UNKNOWN = 'unknown'
OTHER = 'other'

_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?', re.ASCII | re.I)
# DICOM's age strings: 057Y, 018M.
_AGE = re.compile(r'(\d{1,3})([YMWD])', re.ASCII)
_DAYS = {'Y': 365.25, 'M': 365.25 / 12, 'W': 7.0, 'D': 1.0}


def subgroups(
  metadata: Mapping[str, np.ndarray],
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  *,
  resamples: int = 2000,
  seed: int,
  level: float = 0.95,
  stratified: bool = True,
  patients: np.ndarray | None = None,
  any_lesion: bool = True,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
  """Scores the images of each value of each column.

  The groups of a column are those of `groups`. A mean over classes is over
  those that occur in the group, which need not be the same in all groups.

  Args:
    metadata: column -> (N,) str, '' where unknown.
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names.
    resamples, seed, level, stratified, patients: as in
      `resampling.bootstrap_intervals`.
    any_lesion, ordinal, threshold, temperature: as in `scores.scores`.

  Returns:
    column -> group -> {'num_images', 'scores', 'intervals'}, the latter two by
    the names of SCORES, None where the group leaves a score undefined. A
    column of one group only is left out.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  predictions.check_names(class_names, probabilities.shape[1])
  options: scores.Options = {
    'any_lesion': any_lesion,
    'ordinal': ordinal,
    'threshold': threshold,
    'temperature': temperature,
  }
  result: dict[str, dict[str, dict[str, Any]]] = {}
  for column, values in metadata.items():
    if len(values) != len(labels):
      raise ValueError(
        f'metadata {column!r}: {len(values)} values for {len(labels)} labels'
      )
    members = groups(values)
    if len(members) < 2:
      continue
    result[column] = {}
    for name, rows in members.items():
      own, answers = labels[rows], probabilities[rows]
      scorer = scores.scorer(own, answers, None, **options)
      point = scores.of_all(scorer, len(rows))
      intervals = resampling.bootstrap_intervals(
        own,
        answers,
        None,
        resamples=resamples,
        seed=seed,
        level=level,
        stratified=stratified,
        patients=None if patients is None else np.asarray(patients)[rows],
        **options,
      )
      result[column][name] = {
        'num_images': len(rows),
        'scores': {score: point[score] for score in SCORES},
        'intervals': {score: intervals[score] for score in SCORES},
      }
  return result


def groups(values: np.ndarray) -> dict[str, np.ndarray]:
  """Sorts images into the groups of one column.

  Each value is a group, numbers in order of size, then texts. More than 8
  numbers are cut at their quartiles ('<= 41', '41 to 57', which is above 41
  and up to 57, '57 to 66', '> 66'); an age of DICOM's form, such as 018M, is a
  number of years (1.5). Of more than 8 values that are not all numbers the 7
  commonest are groups and the rest is 'other'; where most images have a value
  of their own there are no groups. '' is 'unknown' and not counted among them,
  and so is nan, as pandas writes what is missing. A number counts as one value
  in all its spellings (1, 01, 1.0).

  Args:
    values: (N,) str.

  Returns:
    group -> (n,) the places of its images in `values`. No group is empty.
  """
  texts = [str(value).strip() for value in values]
  texts = [
    '' if text == UNKNOWN or text.lower() == 'nan' else text for text in texts
  ]
  texts = _spelled_alike(texts)
  counts = collections.Counter(text for text in texts if text)
  numbers = {text: _as_number(text) for text in counts}
  distinct = set(numbers.values())
  if None not in distinct and len(distinct) > MOST:
    column = np.array([numbers.get(text, np.nan) for text in texts])
    named = _quarters(column)
  else:
    shown = list(counts)
    if len(shown) > MOST and 2 * len(shown) > counts.total():
      return {}  # Names of the images, and no groups of them.
    if len(shown) > MOST:
      # Of equally common ones the first in the alphabet stay.
      shown.sort(key=lambda text: (-counts[text], text))
      shown = [text for text in shown[: MOST - 1] if text != OTHER]
    # Numbers by size, then the texts by the alphabet.
    shown.sort(
      key=lambda text: (numbers[text] is None, numbers[text] or 0.0, text)
    )
    places: dict[str, list[int]] = {text: [] for text in [*shown, OTHER]}
    for i, text in enumerate(texts):
      if text:
        places[text if text in places else OTHER].append(i)
    named = {text: np.array(rows, int) for text, rows in places.items()}
  named[UNKNOWN] = np.flatnonzero([not text for text in texts])
  return {name: rows for name, rows in named.items() if rows.size}


def _spelled_alike(texts: Sequence[str]) -> list[str]:
  """The texts, each number by the shortest of its spellings here."""
  shortest: dict[float, str] = {}
  spelled: dict[str, str] = {}
  for text in sorted({*texts}, key=lambda text: (len(text), text)):
    number = _as_number(text)
    spelled[text] = (
      text if number is None else shortest.setdefault(number, text)
    )
  return [spelled[text] for text in texts]


def _as_number(text: str) -> float | None:
  if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
    return float(text)
  if age := _AGE.fullmatch(text.upper()):
    days = int(age[1]) * _DAYS[age[2]]
    return round(days / _DAYS['Y'], 2)  # years
  return None


def _quarters(column: np.ndarray) -> dict[str, np.ndarray]:
  """Name -> places of the numbers in each quarter; NaN is in none."""
  known = column[~np.isnan(column)]
  # Quartiles that are values themselves print as these do.
  cuts = np.quantile(known, [0.25, 0.5, 0.75], method='inverted_cdf')
  cuts = np.unique(cuts)
  texts = [str(cut).removesuffix('.0') for cut in cuts.tolist()]
  names = [
    f'<= {texts[0]}',
    *(f'{a} to {b}' for a, b in itertools.pairwise(texts)),
    f'> {texts[-1]}',
  ]
  place = np.searchsorted(cuts, column, side='left')
  place[np.isnan(column)] = -1
  return {name: np.flatnonzero(place == k) for k, name in enumerate(names)}
