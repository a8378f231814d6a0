"""Intervals over seeds and images hold the truth as often as they say."""

import numpy as np
import pytest

from benchmarks import coverage


@pytest.mark.parametrize('seeds', [3, 5])
def test_the_interval_of_both_covers_and_those_of_one_spread_do_not(seeds):
  setting = coverage.Setting((60, 20, 20), 0.3)
  found = coverage.coverage(setting, seeds, repeats=200)
  share = {name: covered for name, (covered, _) in found.items()}
  # The standard error of a share of .95 is .015.
  assert share['both'] > 0.92
  assert share['images'] < 0.92
  assert share['both'] > share['hierarchical']


def test_the_true_difference_is_that_of_very_many_networks_and_images():
  setting = coverage.Setting((40, 40), 0.4)
  rng = np.random.default_rng(0)
  found = []
  for _ in range(400):
    labels, right = coverage.study(setting, 4, rng)
    of_class = [right[:, :, labels == c].mean(axis=(1, 2)) for c in (0, 1)]
    a, b = np.mean(of_class, axis=0)
    found.append(a - b)
  error = np.std(found) / np.sqrt(len(found))
  assert np.mean(found) == pytest.approx(
    coverage.true_difference(setting), abs=4 * error
  )
