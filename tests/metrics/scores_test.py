"""Scores against scikit-learn and hand counts."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dpjax.evaluation import text
from dpjax.metrics import resampling, score_table, scores
from tests.metrics.predicted import (
  NAMES,
  assert_same,
  expected,
  one_hot,
  random_set,
)

OPTIONS = {'ordinal': True, 'threshold': 0.6, 'temperature': 1.7}


@pytest.mark.parametrize('tenths', [False, True])
def test_scores_are_those_of_scikit_learn(tenths):
  labels, probabilities = random_set(0, tenths=tenths)
  result = scores.scores(labels, probabilities, NAMES, **OPTIONS)
  assert_same(
    result['scores'], expected(labels, probabilities, NAMES, 0.6, 1.7)
  )
  for name, row in result['per_class'].items():
    support = row.pop('support')
    assert support == (labels == NAMES.index(name)).sum()
    assert row == {
      key: result['scores'][f'{key}/{name}'] for key in score_table.PER_CLASS
    }


def test_scores_are_those_counted_by_hand():
  # True class:        0    0    0    0    1    1    2    2    2    3
  p0 = np.array([0.7, 0.6, 0.5, 0.1, 0.5, 0.1, 0.6, 0.1, 0.0, 0.2])
  labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
  predictions = np.array([0, 0, 0, 1, 0, 1, 0, 2, 2, 2])
  probabilities = np.zeros((10, 4))
  probabilities[:, 0] = p0
  second = np.where(predictions > 0, predictions, 3)
  # A tie of 0.5 goes to class 0, the lower one.
  probabilities[np.arange(10), second] = 1 - p0
  result = scores.scores(
    labels, probabilities, NAMES[:4], ordinal=True, threshold=0.45
  )
  flat = result['scores']

  assert result['confusion_matrix'] == [
    [3, 1, 0, 0],
    [1, 1, 0, 0],
    [1, 0, 2, 0],
    [0, 0, 1, 0],
  ]
  assert result['num_images'] == 10
  assert flat['accuracy'] == pytest.approx(6 / 10)
  assert result['majority_accuracy'] == pytest.approx(4 / 10)
  recalls = [3 / 4, 1 / 2, 2 / 3, 0]
  assert flat['balanced_accuracy'] == pytest.approx(np.mean(recalls))
  assert flat['balanced_accuracy_0_2'] == pytest.approx(np.mean(recalls[:3]))
  f1s = [6 / 9, 2 / 4, 4 / 6, 0]
  assert flat['macro_f1'] == pytest.approx(np.mean(f1s))
  # Lesions have p_0 .5 .1 .6 .1 0 .2. Below .7: 6; below .6: 5 and one tie;
  # below .5: 4 and one tie; below .1: 1 and two ties.
  in_order = 6 + 5.5 + 4.5 + 2
  assert flat['auroc_any_lesion'] == pytest.approx(in_order / (4 * 6))
  # From p_0 = 0 up: 1 of 1, then 3 of 4, 4 of 5, 5 of 7 and 6 of 9 are lesions.
  gains = 1 * 1 + 2 * 3 / 4 + 1 * 4 / 5 + 1 * 5 / 7 + 1 * 6 / 9
  assert flat['average_precision_any_lesion'] == pytest.approx(gains / 6)
  # 1 - p_0 >= .45 takes p_0 of .5 and below: 5 of 6 lesions, 2 of 4 others.
  assert flat['sensitivity_any_lesion'] == pytest.approx(5 / 6)
  assert flat['specificity_any_lesion'] == pytest.approx(2 / 4)
  # Misses: two by 1, one by 2 and one by 1, squared 1 1 4 1. By chance, with
  # 5 2 3 0 predictions for 4 2 3 1: (2*1+3*4)*4 + (5*1+3*1)*2 + (5*4+2*1)*3 +
  # (5*9+2*4+3*1)*1, over 10.
  chance = (14 * 4 + 8 * 2 + 22 * 3 + 56) / 10
  assert flat['quadratic_kappa'] == pytest.approx(1 - 7 / chance)
  # The distance of the true class from 1, squared, and as much on the other;
  # three images give the true class nothing and two others something.
  true = np.array([0.7, 0.6, 0.5, 0.1, 0, 0.9, 0, 0.9, 1, 0])
  brier = (1 - true) ** 2 + np.where(true > 0, (1 - true) ** 2, 0)
  brier[[4, 6, 9]] += [0.5**2 + 0.5**2, 0.6**2 + 0.4**2, 0.2**2 + 0.8**2]
  assert flat['brier'] == pytest.approx(brier.mean())
  nll = -np.log(np.where(true > 0, true, 2.0**-52))
  assert flat['nll'] == pytest.approx(nll.mean())
  assert result['per_class']['three'] == {
    'precision': None,  # never predicted
    'recall': 0.0,
    'specificity': 1.0,
    'f1': 0.0,
    # p_3 of the true one is 0, as it is of 4 others; 5 have more.
    'auroc': pytest.approx(4 / 2 / 9),
    'average_precision': pytest.approx(1 / 10),
    'support': 1,
  }


def test_scores_survive_json_unchanged():
  labels, probabilities = random_set(1)
  result = scores.scores(labels, probabilities, NAMES, **OPTIONS)
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_class_predicted_but_never_true_enters_no_mean():
  result = scores.scores(np.array([0, 0, 1]), one_hot([0, 2, 1], 3), NAMES[:3])
  assert result['scores']['balanced_accuracy'] == pytest.approx((1 / 2 + 1) / 2)
  assert result['scores']['macro_f1'] == pytest.approx((2 / 3 + 1) / 2)
  row = result['per_class']['two']
  assert (row['precision'], row['recall'], row['f1']) == (0.0, None, 0.0)
  assert row['specificity'] == pytest.approx(2 / 3)
  assert row['auroc'] is None
  assert row['average_precision'] is None


def test_a_class_neither_true_nor_predicted_has_no_scores():
  result = scores.scores(np.array([0, 1]), one_hot([0, 1], 3), NAMES[:3])
  assert result['per_class']['two'] == {
    'precision': None,
    'recall': None,
    'specificity': 1.0,  # of the others, none is called it
    'f1': None,
    'auroc': None,
    'average_precision': None,
    'support': 0,
  }
  flat = result['scores']
  assert flat['macro_f1'] == flat['balanced_accuracy'] == 1.0


@pytest.mark.parametrize('n', [1, 4])
@pytest.mark.parametrize('label', [0, 4])
def test_images_of_a_single_class_leave_rankings_undefined(n, label):
  labels = np.full(n, label)
  probabilities = one_hot(labels, 5)  # exactly 0 and 1
  result = scores.scores(labels, probabilities, NAMES, **OPTIONS)
  flat = result['scores']
  assert_same(flat, expected(labels, probabilities, NAMES, 0.6, 1.7))
  assert flat['accuracy'] == result['majority_accuracy'] == 1.0
  assert flat['ece'] == flat['brier'] == flat['nll'] == 0.0
  for name in (
    'auroc_any_lesion',
    'average_precision_any_lesion',
    'quadratic_kappa',
  ):
    assert flat[name] is None
  assert (flat['sensitivity_any_lesion'] is None) == (label == 0)
  assert (flat['specificity_any_lesion'] is None) == (label == 4)

  intervals = resampling.bootstrap_intervals(
    labels, probabilities, NAMES, resamples=5, seed=0, **OPTIONS
  )
  for name, interval in intervals.items():
    value = flat[name]
    if value is not None and name.startswith('recall/') and n < 10:
      assert interval[0] < 1 == interval[1]  # the exact one
      continue
    assert interval == (value if value is None else pytest.approx([value] * 2))
  table = text.format_table({**result, 'intervals': intervals})
  assert '\n-: undefined' in table


def test_scores_that_do_not_apply_are_none():
  labels, probabilities = random_set(2, num_classes=3)
  result = scores.scores(
    labels, probabilities, NAMES[:3], any_lesion=False, threshold=0.5
  )
  intervals = resampling.bootstrap_intervals(
    labels,
    probabilities,
    NAMES[:3],
    resamples=5,
    seed=0,
    any_lesion=False,
    threshold=0.5,
  )
  for values in result['scores'], intervals:
    undefined = {name for name, value in values.items() if value is None}
    assert undefined == {
      'balanced_accuracy_0_2',
      'auroc_any_lesion',
      'average_precision_any_lesion',
      'sensitivity_any_lesion',
      'specificity_any_lesion',
      'quadratic_kappa',
      'ece_scaled',
      'brier_scaled',
      'nll_scaled',
    }
  assert result['reliability_scaled'] is None


def test_auroc_tells_lesion_probabilities_below_rounding_apart():
  # 1 - 1e-17 is 1 in float64: ranked by 1 - p_0 these two would tie.
  probabilities = np.array([[1e-17, 1.0], [1e-18, 1.0]])
  result = scores.scores(np.array([0, 1]), probabilities, ['no', 'yes'])
  assert result['scores']['auroc_any_lesion'] == 1.0


def test_a_score_upon_the_threshold_is_a_lesion():
  result = scores.scores(
    [0, 1], [[0.75, 0.25], [0.25, 0.75]], ['no', 'yes'], threshold=0.75
  )
  assert result['scores']['sensitivity_any_lesion'] == 1.0
  assert result['scores']['specificity_any_lesion'] == 1.0


# --- validation ---------------------------------------------------------------


def test_the_summary_is_that_of_scores():
  labels, probabilities = random_set(3)
  full = scores.scores(labels, probabilities, NAMES)['scores']
  found = scores.summary(labels, probabilities)
  assert list(found) == [
    'accuracy',
    'balanced_accuracy',
    'balanced_accuracy_0_2',
    'macro_f1',
    'auroc_any_lesion',
  ]
  for name, value in found.items():
    assert value == pytest.approx(full[name], abs=1e-12)
  without = scores.summary(labels, probabilities, any_lesion=False)
  assert without == {**found, 'auroc_any_lesion': None}


def test_the_summary_of_training_needs_neither_scikit_learn_nor_scipy():
  program = (
    'import sys; from dpjax.metrics import scores;'
    'scores.summary([0, 1], [[0.5, 0.5], [0.1, 0.9]]);'
    "print({'sklearn', 'scipy', 'matplotlib'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'set()\n'
