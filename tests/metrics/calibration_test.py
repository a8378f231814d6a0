"""Calibration against loops, scikit-learn and conditions of the optimum."""

import json
import math

import numpy as np
import pytest
from scipy import special
from sklearn import metrics

from dpjax.metrics import calibration
from tests.metrics.predicted import binned_error, one_hot, random_set


def drawn_from(logits, temperature, seed=0):
  """Labels that softmax(logits / T) draws, and softmax(logits)."""
  rng = np.random.default_rng(seed)
  truth = special.softmax(logits / temperature, axis=1)
  labels = np.array([rng.choice(len(p), p=p) for p in truth])
  return labels, special.softmax(logits, axis=1)


def expected_error(labels, probabilities, **kwargs):
  """Of one of each image, by the equation in `confidence_gaps`."""
  places, of_image = calibration.confidence_gaps(
    labels, probabilities, **kwargs
  )
  gaps = np.bincount(places, of_image)
  return np.abs(gaps).sum() / len(labels)


# --- reliability ------------------------------------------------------------


@pytest.mark.parametrize('tenths', [False, True])
def test_calibration_error_is_that_of_a_loop_over_bins(tenths):
  labels, probabilities = random_set(0, tenths=tenths)
  rows = calibration.reliability(labels, probabilities)
  error = binned_error(labels, probabilities)
  of_rows = sum(
    row['count'] * abs(row['accuracy'] - row['confidence'])
    for row in rows
    if row['count']
  ) / len(labels)
  assert of_rows == pytest.approx(error, abs=1e-12)
  found = expected_error(labels, probabilities)
  assert found == pytest.approx(error, abs=1e-12)
  assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_reliability_counted_by_hand():
  probabilities = np.array([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [1.0, 0.0]])
  labels = np.array([0, 1, 0, 0])
  rows = calibration.reliability(labels, probabilities, bins=5)
  # .6 is in (.4, .6]; .7 and .8 in (.6, .8]; 1 in (.8, 1].
  assert [row['count'] for row in rows] == [0, 0, 1, 2, 1]
  assert rows[0] == {
    'low': 0.0, 'high': 0.2, 'count': 0, 'confidence': None, 'accuracy': None,
  }  # fmt: skip
  assert rows[3]['confidence'] == pytest.approx(0.75)
  assert rows[3]['accuracy'] == 0.5
  error = (1 * 0.4 + 2 * 0.25 + 1 * 0) / 4
  found = expected_error(labels, probabilities, bins=5)
  assert found == pytest.approx(error)


def test_a_calibrated_model_has_little_error_and_a_bold_one_much():
  logits = np.random.default_rng(0).normal(size=(4000, 3)) * 2
  labels, probabilities = drawn_from(logits, 1.0)
  bold = special.softmax(3 * logits, axis=1)
  assert expected_error(labels, probabilities) < 0.03
  assert expected_error(labels, bold) > 0.1


def test_brier_score_and_log_loss_are_scikit_learns():
  labels, probabilities = random_set(1, tenths=True)  # 0 is among them
  brier = sum(
    metrics.brier_score_loss(labels == c, probabilities[:, c]) for c in range(5)
  )
  found = calibration.squared_error(labels, probabilities)
  assert found.mean() == pytest.approx(brier, abs=1e-12)
  loss = metrics.log_loss(labels, probabilities)
  found = calibration.log_loss(labels, probabilities)
  assert found.mean() == pytest.approx(loss, abs=1e-12)


def test_a_true_class_given_nothing_costs_36_nats_and_a_sure_one_none():
  sure = one_hot([0, 1], 2)
  loss = calibration.log_loss(np.array([0, 0]), sure)
  np.testing.assert_allclose(loss, [0, 52 * math.log(2)])
  assert calibration.squared_error(np.array([0, 0]), sure).tolist() == [0, 2]


def test_bins_there_must_be():
  with pytest.raises(ValueError, match='bins must be at least 1'):
    calibration.reliability([0], [[0.5, 0.5]], bins=0)


# --- temperature ------------------------------------------------------------


@pytest.mark.parametrize('t', [0.3, 1.0, 4.0])
def test_scaling_is_the_softmax_of_logits_over_t(t):
  logits = np.random.default_rng(0).normal(size=(50, 4)) * 3
  found = calibration.scale(special.softmax(logits, axis=1), t)
  wanted = special.softmax(logits / t, axis=1)
  np.testing.assert_allclose(found, wanted, rtol=1e-10)


def test_scaling_keeps_every_prediction_and_exact_zeros_are_raised():
  _, probabilities = random_set(2, tenths=True)
  scaled = calibration.scale(probabilities, 1.9)
  ties = np.sort(probabilities, axis=1)[:, -2] == probabilities.max(axis=1)
  assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1))[~ties].all()
  np.testing.assert_allclose(scaled.sum(axis=1), 1)
  sure = calibration.scale(one_hot([0], 2), 2.0)[0, 1]
  assert sure == pytest.approx(math.sqrt(2.0**-52), rel=1e-6)


@pytest.mark.parametrize('t', [0.4, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(t):
  logits = np.random.default_rng(3).normal(size=(4000, 4)) * 2
  labels, probabilities = drawn_from(logits, t)
  found = calibration.fit_temperature(labels, probabilities)
  assert found == pytest.approx(t, rel=0.1)
  # At the optimum the mean logit of the truth is the one that the model
  # expects: the derivative of the loss by 1 / T.
  scaled = special.softmax(logits / found, axis=1)
  true = logits[np.arange(len(labels)), labels].mean()
  assert true == pytest.approx((scaled * logits).sum(axis=1).mean(), abs=1e-4)


def test_no_temperature_of_a_grid_does_better():
  for seed in range(5):
    labels, probabilities = random_set(seed, n=40, skill=0.3, tenths=seed > 2)
    found = calibration.fit_temperature(labels, probabilities)

    def loss(t, labels=labels, probabilities=probabilities):
      scaled = calibration.scale(probabilities, t)
      return metrics.log_loss(labels, scaled, labels=np.arange(5))

    grid = np.geomspace(0.05, 20, 100)
    assert loss(found) <= min(map(loss, grid)) + 1e-9


@pytest.mark.parametrize(
  ('labels', 'probabilities', 'wanted'),
  [
    ([0, 1, 1], one_hot([0, 1, 1], 2), 0.05),  # perfect, and certain of it
    ([0, 1], [[0.9, 0.1], [0.4, 0.6]], 0.05),  # perfect
    ([0, 0], [[0.9, 0.1], [0.6, 0.4]], 0.05),  # one class only
    ([0], [[0.9, 0.1]], 0.05),  # a single image
    ([1, 0], [[0.9, 0.1], [0.4, 0.6]], 20.0),  # always wrong
    ([1], one_hot([0], 2), 20.0),  # wrong, and certain
    ([0, 1], [[0.5, 0.5], [0.5, 0.5]], 1.0),  # no temperature matters
  ],
)
def test_a_fit_without_an_optimum_ends_at_a_bound(
  labels, probabilities, wanted
):
  found = calibration.fit_temperature(labels, probabilities)
  assert found == pytest.approx(wanted)
  assert 0.05 <= found <= 20
  scaled = calibration.scale(probabilities, found)
  assert np.isfinite(scaled).all()


@pytest.mark.parametrize('t', [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(t):
  with pytest.raises(ValueError, match='temperature must be above 0'):
    calibration.scale([[0.5, 0.5]], t)


# --- threshold --------------------------------------------------------------


def youden(labels, lesion, threshold):
  called = lesion >= threshold
  return called[labels > 0].mean() - called[labels == 0].mean()


@pytest.mark.parametrize('tenths', [False, True])
def test_the_threshold_has_the_largest_youden_index(tenths):
  for seed in range(5):
    labels, probabilities = random_set(seed, n=60, tenths=tenths)
    lesion = 1 - probabilities[:, 0]
    found = calibration.choose_threshold(labels, probabilities)
    fpr, tpr, _ = metrics.roc_curve(labels > 0, lesion, drop_intermediate=False)
    best = (tpr - fpr).max()
    assert youden(labels, lesion, found) == pytest.approx(best, abs=1e-12)
    # Midway between two scores, and so on none of them.
    below, above = lesion[lesion < found].max(), lesion[lesion >= found].min()
    assert found == pytest.approx((below + above) / 2)


def two_class(lesion):
  return np.stack([1 - np.array(lesion), lesion], axis=1)


@pytest.mark.parametrize(
  ('labels', 'lesion', 'threshold'),
  [
    ([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], 0.4),  # parts them
    # J = 1/2 below .3 and below .9: the lower cut finds both lesions.
    ([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.9], 0.2),
    ([1, 0], [0.2, 0.8], 0.1),  # nothing is better than calling all
    ([1, 0], [0.5, 0.5], 0.25),  # nothing can be told apart
    ([0, 1], [0.0, 1.0], 0.5),
    ([0, 0], [0.3, 0.4], None),
    ([1, 1], [0.3, 0.4], None),
    ([1], [0.3], None),
  ],
)
def test_thresholds_counted_by_hand(labels, lesion, threshold):
  found = calibration.choose_threshold(labels, two_class(lesion))
  assert found == (None if threshold is None else pytest.approx(threshold))


def test_neighbouring_numbers_are_parted_too():
  low = 0.5
  high = np.nextafter(low, 1)
  probabilities = np.array([[low, 1 - low], [1 - high, high]])
  found = calibration.choose_threshold([0, 1], probabilities)
  lesion = calibration.lesion_score(probabilities)
  assert (lesion >= found).tolist() == [False, True]
