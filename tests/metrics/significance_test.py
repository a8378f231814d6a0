"""Tests of differences against SciPy's, and against theory."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from dpjax.metrics import significance
from tests.metrics.predicted import one_hot, random_set

# --- models -----------------------------------------------------------------


def test_mcnemar_is_the_exact_binomial_test_of_the_images_one_has_right():
  labels = np.zeros(20, int)
  a, b = np.zeros(20, int), np.zeros(20, int)
  a[:2] = 1  # b alone is right on 2 images
  b[2:11] = 1  # a alone on 9
  a[15] = b[15] = 1
  found = significance.mcnemar(labels, one_hot(a, 2), one_hot(b, 2))
  # 2 of 11 or fewer heads of a fair coin, on either side.
  p_value = 2 * (1 + 11 + 55) / 2**11
  assert found == {
    'only_a_right': 9,
    'only_b_right': 2,
    'p_value': pytest.approx(p_value),
  }
  turned = significance.mcnemar(labels, one_hot(b, 2), one_hot(a, 2))
  assert turned['p_value'] == found['p_value']


def test_mcnemar_of_models_that_are_right_together_is_one():
  labels, a = random_set(1, n=20)
  assert significance.mcnemar(labels, a, a) == {
    'only_a_right': 0,
    'only_b_right': 0,
    'p_value': 1.0,
  }


def test_mcnemar_of_models_that_are_no_pair_is_refused():
  labels, a = random_set(9, n=10)
  with pytest.raises(ValueError, match=r'^model b: image 0'):
    significance.mcnemar(labels, a, a + 1)


def answers(ahead):
  """Labels, and answers of two models: a alone is right at 1, b alone at -1."""
  ahead = np.asarray(ahead)
  return (
    np.zeros(len(ahead), int),
    one_hot((ahead < 0).astype(int), 2),
    one_hot((ahead > 0).astype(int), 2),
  )


def test_by_patient_it_is_the_share_of_all_ways_to_swap_the_models():
  rng = np.random.default_rng(3)
  owner = rng.integers(9, size=30)
  ahead = rng.choice([-1, 0, 1, 1], size=30)
  found = significance.mcnemar(*answers(ahead), owner)
  sums = np.bincount(owner, ahead)
  signs = np.array([*itertools.product([-1, 1], repeat=len(sums))])
  p_value = np.mean(np.abs(signs @ sums) >= abs(sums.sum()))
  assert found['p_value'] == pytest.approx(p_value, abs=1e-12)
  assert found['only_a_right'] == (ahead > 0).sum()
  assert found != significance.mcnemar(*answers(ahead))


def test_by_patient_images_that_stand_twice_say_no_more_than_once():
  ahead = np.array([1] * 9 + [-1] * 2 + [0] * 9)
  twice = np.repeat(np.arange(20), 2)
  once = significance.mcnemar(*answers(ahead))
  found = significance.mcnemar(*answers(ahead[twice]), twice)
  assert found['p_value'] == pytest.approx(once['p_value'], abs=1e-12)
  assert significance.mcnemar(*answers(ahead), np.arange(20)) == once
  none = significance.mcnemar(*answers(0 * ahead[twice]), twice)
  assert none['p_value'] == 1


# --- seeds ------------------------------------------------------------------


def test_the_interval_over_seeds_is_students():
  values = [0.61, 0.64, 0.58, 0.66]
  found = significance.over_seeds(values, level=0.9)
  interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
  assert found == {
    'mean': pytest.approx(np.mean(values)),
    'interval': pytest.approx(list(interval)),
    'num_runs': 4,
  }
  assert json.loads(json.dumps(found)) == found


def test_t_intervals_of_three_seeds_cover_the_mean_95_times_in_100():
  rng = np.random.default_rng(0)
  covered = 0
  for values in rng.normal(0.6, 0.02, size=(1000, 3)):
    low, high = significance.over_seeds(values.tolist())['interval']
    covered += low <= 0.6 <= high
  assert 0.93 <= covered / 1000 <= 0.97  # a standard error is 0.007


def test_one_seed_has_a_mean_and_no_interval():
  found = significance.over_seeds([0.5])
  assert found == {'mean': 0.5, 'interval': None, 'num_runs': 1}
  paired = significance.paired_over_seeds([0.5], [0.25])
  assert paired == {
    'mean': 0.25,
    'interval': None,
    'num_runs': 1,
    'p_value': None,
  }


def test_a_run_without_the_score_leaves_the_mean_undefined():
  nothing = {'mean': None, 'interval': None}
  assert significance.over_seeds([0.5, None]) == {**nothing, 'num_runs': 2}
  assert significance.over_seeds([]) == {**nothing, 'num_runs': 0}
  paired = significance.paired_over_seeds([0.5, 0.4], [0.3, None])
  assert paired == {**nothing, 'num_runs': 2, 'p_value': None}


def test_paired_seeds_give_the_paired_t_test():
  a, b = [0.61, 0.64, 0.58, 0.66], [0.60, 0.61, 0.57, 0.62]
  found = significance.paired_over_seeds(a, b)
  test = stats.ttest_rel(a, b)
  assert found == {
    'mean': pytest.approx(np.mean(a) - np.mean(b)),
    'interval': pytest.approx(list(test.confidence_interval(0.95))),
    'num_runs': 4,
    'p_value': pytest.approx(test.pvalue),
  }


def test_differences_without_a_spread_have_no_p_value():
  for a, b in (([0.5, 0.5], [0.5, 0.5]), ([0.3, 0.4, 0.9], [0.2, 0.3, 0.8])):
    found = significance.paired_over_seeds(a, b)
    assert found['p_value'] is None
    assert found['interval'] == pytest.approx([found['mean']] * 2, abs=1e-12)


def test_seeds_that_are_no_pairs_are_refused():
  with pytest.raises(ValueError, match='2 runs of a and 1 of b'):
    significance.paired_over_seeds([1, 2], [1])
  with pytest.raises(ValueError, match='level must lie between 0 and 1'):
    significance.over_seeds([1, 2], level=95)


def test_an_interval_over_seeds_and_images_adds_the_variances():
  values = [0.02, 0.05, 0.035, 0.01]
  low, high = significance.over_seeds_and_images(values, 0.0)
  assert [low, high] == pytest.approx(
    significance.over_seeds(values)['interval']
  )
  half = (high - low) / 2
  low, high = significance.over_seeds_and_images(values, 0.01**2, level=0.9)
  seeds = half / stats.t.ppf(0.975, 3)  # the standard error over the seeds
  halves = stats.t.ppf(0.95, 3) * seeds, stats.norm.ppf(0.95) * 0.01
  assert (high - low) / 2 == pytest.approx(np.hypot(*halves), rel=1e-12)
  assert (high + low) / 2 == pytest.approx(np.mean(values))


def test_of_runs_that_agree_it_is_the_normal_interval_over_the_images():
  low, high = significance.over_seeds_and_images([0.2, 0.2, 0.2], 0.01**2)
  assert [low, high] == pytest.approx([0.2 - 0.0195996, 0.2 + 0.0195996])


@pytest.mark.parametrize(
  ('values', 'variance'), [([0.1], 0.01), ([0.1, None], 0.01), ([1, 2], None)]
)
def test_without_two_runs_or_a_variance_there_is_no_interval_of_both(
  values, variance
):
  assert significance.over_seeds_and_images(values, variance) is None
