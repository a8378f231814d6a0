"""Answers under other shares of the classes."""

import numpy as np
import pytest

from dpjax.errors import UserError
from dpjax.metrics import prevalence

COUNTS = np.array([900, 90, 10])


def answers(n=50, seed=0):
  return np.random.default_rng(seed).dirichlet(np.ones(3), n)


def test_shifting_is_bayes_rule():
  p, shares = answers(), np.array([0.5, 0.3, 0.2])
  # Likelihoods by the shares of training, posteriors by the others.
  likelihood = p / (COUNTS / 1000)
  want = likelihood * shares
  want /= want.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    prevalence.shift(p, COUNTS, shares), want, rtol=1e-12
  )


def test_shifting_to_the_shares_of_training_changes_nothing():
  p = answers()
  np.testing.assert_allclose(
    prevalence.shift(p, COUNTS, COUNTS / 1000), p, rtol=1e-12
  )


def test_balanced_is_logit_adjustment_and_finds_the_best_balanced_answer():
  """Where the answers are the truth, no rule has more balanced accuracy."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=20_000)
  density = np.exp(-((x[:, None] - np.arange(3)) ** 2) / 2)
  p = density * COUNTS
  p /= p.sum(axis=1, keepdims=True)
  shares = prevalence.target('balanced', COUNTS)
  np.testing.assert_allclose(shares, 1 / 3)
  moved = prevalence.shift(p, COUNTS, shares)
  adjusted = np.log(p) - np.log(COUNTS / 1000)
  np.testing.assert_array_equal(moved.argmax(1), adjusted.argmax(1))
  np.testing.assert_array_equal(moved.argmax(1), density.argmax(1))


def test_a_class_without_training_images_gets_nothing():
  counts = np.array([9, 0, 1])
  shares = prevalence.target('balanced', counts)
  np.testing.assert_array_equal(shares, [0.5, 0, 0.5])
  moved = prevalence.shift(answers(), counts, shares)
  assert (moved[:, 1] == 0).all() and np.isfinite(moved).all()


def test_an_answer_that_was_rounded_to_zero_can_be_raised():
  moved = prevalence.shift(
    np.array([[1.0, 0.0, 0.0]]), COUNTS, np.array([0.0, 0.5, 0.5])
  )
  np.testing.assert_allclose(moved, [[0, 0.1, 0.9]], rtol=1e-6)


@pytest.mark.parametrize(
  ('text', 'shares'),
  [
    ('none', None),
    ('0.5,0.25,0.25', [0.5, 0.25, 0.25]),
    ('(0.5, 0.3, 0.2)', [0.5, 0.3, 0.2]),
  ],
)
def test_the_shares_asked_for(text, shares):
  assert prevalence.is_prevalence(text)
  found = prevalence.target(text, COUNTS)
  if shares is None:
    assert found is None
  else:
    np.testing.assert_allclose(found, shares)


@pytest.mark.parametrize('text', ['', 'even', '1', '0.5,0.6', '-1,2', 'nan,1'])
def test_what_is_no_prevalence(text):
  assert not prevalence.is_prevalence(text)


def test_shares_of_another_number_of_classes_are_refused():
  with pytest.raises(UserError, match='2 shares; the run tells 3 classes'):
    prevalence.target('0.5,0.5', COUNTS)


def test_shares_that_leave_nothing_to_the_trained_classes_are_refused():
  with pytest.raises(UserError, match='gives nothing to the classes'):
    prevalence.target('0,0,1', [10, 5, 0])
  prevalence.target('0.1,0,0.9', [10, 5, 0])
