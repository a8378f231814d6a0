"""Each row of the table against scikit-learn, resample by resample."""

import numpy as np
import pytest

from dpjax.evaluation import text
from dpjax.metrics import resampling, score_table, scores
from tests.metrics.predicted import (
  KINDS,
  NAMES,
  OPTIONS,
  assert_same,
  expected_of,
  one_hot,
  random_set,
  some_set,
)


def every_score(labels, probabilities, counts, names=NAMES):
  score = scores.scorer(
    labels, probabilities, names, any_lesion=True, ordinal=True, **OPTIONS
  )
  values = score(np.asarray(counts, np.float64))
  return [
    {name: value[r] for name, value in values.items()}
    for r in range(len(counts))
  ]


@pytest.mark.parametrize('kind', KINDS)
def test_each_resample_scores_what_scikit_learn_scores_on_it(kind):
  labels, probabilities = some_set(kind)
  # Unstratified: some resamples lack the class of one image.
  counts = np.random.default_rng(0).integers(0, 4, size=(12, len(labels)))
  for count, found in zip(
    counts, every_score(labels, probabilities, counts), strict=True
  ):
    assert_same(found, expected_of(labels, probabilities, count))


@pytest.mark.parametrize('kind', KINDS)
def test_a_resample_scores_the_same_to_the_bit_in_whatever_company(kind):
  labels, probabilities = some_set(kind)
  counts = np.random.default_rng(1).integers(0, 4, size=(7, len(labels)))
  together = every_score(labels, probabilities, counts)
  alone = [every_score(labels, probabilities, [row])[0] for row in counts]
  np.testing.assert_equal(together, alone)


def test_resamples_that_leave_a_score_undefined_give_nan_and_no_warning():
  labels = np.array([0, 0, 2, 2, 3])  # class 1 is never true
  probabilities = one_hot([0, 1, 2, 1, 0], 4)  # class 3 never predicted
  counts = [[1, 1, 1, 1, 1], [5, 0, 0, 0, 0], [0, 0, 5, 0, 0], [2, 3, 0, 0, 0]]
  for count, found in zip(
    counts, every_score(labels, probabilities, counts, NAMES[:4]), strict=True
  ):
    assert_same(found, expected_of(labels, probabilities, count, NAMES[:4]))


def test_a_new_score_is_one_row(monkeypatch):
  row = score_table.Score(
    'share of misses',
    'misses',
    lambda drawn: 1 - drawn.right.sum(1) / drawn.total,
    lower_is_better=True,
  )
  monkeypatch.setitem(score_table.SUMMARY, 'misses', row)
  labels, p = random_set(5)
  result = scores.scores(labels, p, NAMES)
  misses = np.mean(p.argmax(axis=1) != labels)
  assert result['scores']['misses'] == pytest.approx(misses, abs=1e-12)
  options = {'resamples': 50, 'seed': 0}
  intervals = resampling.bootstrap_intervals(labels, p, NAMES, **options)
  low, high = intervals['misses']
  assert low < misses < high
  table = text.format_table({**result, 'intervals': intervals})
  assert 'share of misses' in table
  assert f'  {misses:.3f}  {low:.3f} to {high:.3f}' in table
  paired = resampling.paired_bootstrap(labels, p, p[:, ::-1], NAMES, **options)
  said = text.format_comparison({'a': 'a', 'b': 'b', 'scores': paired})
  assert 'share of misses ' in said
  assert said.endswith('log loss, share of misses')


@pytest.mark.parametrize('name', score_table.SUMMARY)
def test_a_score_is_defined_where_what_it_needs_is_given(name):
  labels, probabilities = random_set(6, num_classes=4)
  given = {
    'any_lesion': True,
    'ordinal': True,
    'threshold': 0.6,
    'temperature': 1.7,
  }
  nothing = {'any_lesion': False, 'ordinal': False}
  needs = score_table.SUMMARY[name].needs

  def value(classes, **options):
    part = labels < classes
    p = probabilities[part][:, :classes]
    p = p / p.sum(axis=1, keepdims=True)
    score = scores.scorer(labels[part], p, None, **options)
    return score(np.ones((1, part.sum())))[name][0]

  assert needs <= {*given, 'four_classes'}
  enough = {key: given[key] for key in needs & set(given)}
  fewest = 4 if 'four_classes' in needs else 2
  assert np.isfinite(value(fewest, **{**nothing, **enough}))
  for lacking in needs & set(given):
    without = {key: v for key, v in given.items() if key != lacking}
    assert np.isnan(value(4, **{**nothing, **without})), lacking
  if 'four_classes' in needs:
    assert np.isnan(value(3, **given))
