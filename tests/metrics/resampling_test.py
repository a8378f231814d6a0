"""Intervals over images against scikit-learn on each resample, and theory."""

import json

import numpy as np
import pytest
from scipy import stats

from dpjax.metrics import resampling, score_table, scores
from tests.metrics.predicted import (
  KINDS,
  NAMES,
  OPTIONS,
  PAPER_SIZES,
  expected,
  expected_of,
  one_hot,
  predict,
  random_set,
  some_set,
)

# --- the bootstrap ----------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_intervals_are_quantiles_of_scikit_learns_scores(kind):
  labels, probabilities = some_set(kind)
  (counts,) = resampling.draws(labels, 12, seed=7, stratified=True)
  values = [expected_of(labels, probabilities, row) for row in counts]
  intervals = resampling.bootstrap_intervals(
    labels,
    probabilities,
    NAMES,
    resamples=12,
    seed=7,
    level=0.8,
    ordinal=True,
    **OPTIONS,
  )
  assert list(intervals) == list(values[0])
  few = {f'recall/{NAMES[c]}' for c in range(5) if 0 < (labels == c).sum() < 10}
  assert len(few) == (2 if kind == 'a class of one image' else 0)
  for name, interval in intervals.items():
    if name in few:
      continue
    defined = [v[name] for v in values if v[name] is not None]
    quantiles = np.quantile(defined, [0.1, 0.9]).tolist()
    assert interval == pytest.approx(quantiles, abs=1e-12), name


@pytest.mark.parametrize('right', range(10))
@pytest.mark.parametrize('level', [0.95, 0.8])
def test_the_recall_of_a_small_class_has_the_exact_interval(right, level):
  labels = np.repeat([0, 1], [10, 9])
  # Of each class so many; they are found by the second column.
  said = np.where(np.arange(19) < 10, np.arange(19) >= right,
                  np.arange(19) < 10 + right)  # fmt: skip
  found = resampling.bootstrap_intervals(
    labels, one_hot(said.astype(int), 2), ['no', 'yes'],
    resamples=200, seed=0, level=level,
  )  # fmt: skip
  low, high = found['recall/yes']
  # By the tails: at each end, so many or more (fewer) have (1 - level) / 2.
  tail = (1 - level) / 2
  if right == 0:
    assert low == 0
  else:
    assert stats.binom.sf(right - 1, 9, low) == pytest.approx(tail)
  if right == 9:
    assert high == 1
  else:
    assert stats.binom.cdf(right, 9, high) == pytest.approx(tail)
  test = stats.binomtest(right, 9).proportion_ci(level)
  assert (low, high) == pytest.approx((test.low, test.high))
  if right == 0:  # so of the other class, too; ten images are not few
    assert found['recall/no'] == [0, 0]


@pytest.mark.parametrize('stratified', [True, False])
def test_resamples_draw_n_images_and_keep_class_sizes_if_stratified(
  stratified, monkeypatch
):
  monkeypatch.setattr(resampling, '_BLOCK', 300)  # 15 resamples a block
  labels = np.repeat([0, 1, 4], [12, 7, 1])
  blocks = list(resampling.draws(labels, 400, 0, stratified))
  assert len(blocks) == 27
  counts = np.concatenate(blocks)
  assert counts.shape == (400, 20)
  np.testing.assert_array_equal(counts.sum(axis=1), 20)
  sizes = counts @ np.eye(5)[labels]
  if stratified:
    np.testing.assert_array_equal(sizes, np.tile([12, 7, 0, 0, 1], (400, 1)))
  else:
    assert sizes.std(axis=0)[0] > 1
  # Every image is drawn once on average: a binomial's standard error is
  # sqrt(1 / 400) = 0.05, and 5 of them are allowed for.
  np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.25)


# --- patients of several images ---------------------------------------------


def some_patients(labels, seed=0):
  """Whose each image is: 1 to 4 of one, by names that are no numbers."""
  rng = np.random.default_rng(seed)
  owner = np.repeat(np.arange(len(labels)), rng.integers(1, 5, len(labels)))
  return np.char.add('p', rng.permutation(owner[: len(labels)]).astype(str))


@pytest.mark.parametrize('stratified', [True, False])
def test_patients_are_drawn_with_all_their_images(stratified):
  labels, _ = random_set(4, n=90)
  labels = np.minimum(labels, 3) ** 2 // 3  # 0, 1 and 3, unequally often
  patients = some_patients(labels)
  names = sorted(set(patients))
  counts = np.concatenate(
    [*resampling.draws(labels, 300, 0, stratified, patients)]
  )
  of_patient = {p: counts[:, patients == p] for p in names}
  for drawn in of_patient.values():
    np.testing.assert_array_equal(drawn, np.tile(drawn[:, :1], drawn.shape[1]))
  times = np.stack([of_patient[p][:, 0] for p in names], axis=1)
  np.testing.assert_array_equal(times.sum(axis=1), len(names))
  np.testing.assert_allclose(times.mean(axis=0), 1, atol=5 / np.sqrt(300))
  # A patient is of the class that fewest images have, of those that it has.
  size = {c: (labels == c).sum() for c in labels}
  assert len(set(size.values())) == len(size) == 3
  kinds = np.array(
    [min(labels[patients == p], key=size.__getitem__) for p in names]
  )
  spread = (times @ np.equal.outer(kinds, [*size])).std(axis=0)
  assert (spread == 0).all() if stratified else (spread > 0).all()


def test_patients_of_one_image_each_change_nothing():
  labels, a = random_set(5)
  _, b = random_set(6)
  settings = {'resamples': 20, 'seed': 1, **OPTIONS}
  plain = resampling.bootstrap_intervals(labels, a, NAMES, **settings)
  patients = np.random.default_rng(0).permutation(300)
  assert plain == resampling.bootstrap_intervals(
    labels, a, NAMES, patients=patients, **settings
  )
  pair = {'resamples': 20, 'seed': 1}
  assert resampling.paired_bootstrap(
    labels, a, b, NAMES, patients=patients, **pair
  ) == resampling.paired_bootstrap(labels, a, b, NAMES, **pair)


def test_images_that_stand_twice_say_no_more_than_once():
  labels, a = some_set('a class of one image')
  b = predict(np.random.default_rng(8), labels, 5)
  twice = np.repeat(np.arange(120), 2)
  settings = {'resamples': 60, 'seed': 2, **OPTIONS}
  once = resampling.bootstrap_intervals(labels, a, NAMES, **settings)
  found = resampling.bootstrap_intervals(
    labels[twice], a[twice], NAMES, patients=twice, **settings
  )
  for name, interval in once.items():
    assert found[name] == (
      None if interval is None else pytest.approx(interval, abs=1e-9)
    ), name
  naive = resampling.bootstrap_intervals(
    labels[twice], a[twice], NAMES, **settings
  )
  assert np.ptp(naive['accuracy']) < 0.85 * np.ptp(found['accuracy'])
  pair = {'resamples': 60, 'seed': 2}
  once = resampling.paired_bootstrap(labels, a, b, NAMES, **pair)
  found = resampling.paired_bootstrap(
    labels[twice], a[twice], b[twice], NAMES, patients=twice, **pair
  )
  for name in ('accuracy', 'macro_f1', 'auroc_any_lesion', 'ece'):
    assert found[name]['interval'] == pytest.approx(
      once[name]['interval'], abs=1e-9
    )


def test_intervals_by_patient_cover_where_those_by_image_do_not():
  rng = np.random.default_rng(7)
  patients = np.repeat(np.arange(80), 4)
  sets, covered = 150, {'by patient': 0, 'by image': 0}
  for _ in range(sets):
    # Right on this patient with a chance of its own, .75 on average.
    right = rng.random(320) < rng.beta(1.5, 0.5, 80)[patients]
    labels = rng.integers(2, size=320)
    said = one_hot(np.where(right, labels, 1 - labels), 2)
    for how, owner in (('by patient', patients), ('by image', None)):
      low, high = resampling.bootstrap_intervals(
        labels, said, None, resamples=200, seed=0, stratified=False,
        patients=owner,
      )['accuracy']  # fmt: skip
      covered[how] += low <= 0.75 <= high
  # The standard error of a share of .95 is .018. The variance of a mean of 4
  # alike images is 1 + 3 / 3 = 2 times that of independent ones.
  assert covered['by patient'] / sets > 0.9
  assert covered['by image'] / sets < 0.88


def test_patients_of_another_number_of_images_are_refused():
  labels, probabilities = random_set(0, n=20)
  with pytest.raises(ValueError, match='patients of shape'):
    resampling.bootstrap_intervals(
      labels, probabilities, None, seed=0, patients=np.zeros(19)
    )


# --- against theory ---------------------------------------------------------


def test_unstratified_interval_of_accuracy_is_the_binomial_one():
  rng = np.random.default_rng(0)
  n, accuracy = 1000, 0.8
  labels = rng.integers(2, size=n)
  right = np.arange(n) < accuracy * n
  probabilities = one_hot(np.where(right, labels, 1 - labels), 2)
  low, high = resampling.bootstrap_intervals(
    labels, probabilities, None, seed=1, stratified=False
  )['accuracy']
  half = 1.96 * np.sqrt(accuracy * (1 - accuracy) / n)  # 0.0248
  # The 2.5 % quantile of 2000 draws has a standard error of 6 % of `half`/2;
  # accuracies come in steps of 0.001.
  assert low == pytest.approx(accuracy - half, abs=0.003)
  assert high == pytest.approx(accuracy + half, abs=0.003)


def test_95_percent_intervals_cover_the_truth_about_95_times_in_100():
  rng = np.random.default_rng(5)
  recalls = np.array([0.9, 0.6, 0.7])  # of the population
  labels = np.repeat([0, 1, 2], [120, 60, 60])
  sets, covered = 200, 0
  for _ in range(sets):
    right = rng.random(len(labels)) < recalls[labels]
    predictions = np.where(right, labels, (labels + 1) % 3)
    low, high = resampling.bootstrap_intervals(
      labels, one_hot(predictions, 3), None, resamples=200, seed=0
    )['balanced_accuracy']
    covered += low <= recalls.mean() <= high
  # Standard error of the share: sqrt(.95 * .05 / 200) = 0.015. Percentile
  # intervals of finite sets and 200 resamples fall a little short of 0.95.
  assert 0.90 <= covered / sets <= 0.99


def test_bootstrap_depends_on_the_seed_only():
  labels, probabilities = random_set(6)
  first, again, other = (
    resampling.bootstrap_intervals(
      labels, probabilities, NAMES, resamples=50, seed=seed
    )
    for seed in (1, 1, 2)
  )
  assert first == again
  assert first['auroc_any_lesion'] != other['auroc_any_lesion']


def test_without_names_the_summary_is_the_same_and_no_class_is_scored():
  labels, probabilities = random_set(6)
  with_names, without = (
    resampling.bootstrap_intervals(
      labels, probabilities, names, resamples=20, seed=1
    )
    for names in (NAMES, None)
  )
  assert tuple(without) == tuple(score_table.SUMMARY)
  assert without == {name: with_names[name] for name in without}


def test_unstratified_resamples_without_a_lesion_are_left_out_of_its_auroc():
  labels = np.array([0, 0, 0, 1])  # a third of the resamples misses image 3
  probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.5, 0.5]])
  intervals = resampling.bootstrap_intervals(
    labels, probabilities, None, resamples=200, seed=0, stratified=False
  )
  low, high = intervals['auroc_any_lesion']
  assert 0 <= low < high <= 1


def test_bootstrap_of_the_papers_test_split_is_vectorised():
  # In 0.3 s on a quiet core; scikit-learn on each resample takes minutes.
  rng = np.random.default_rng(8)
  labels = np.repeat(np.arange(5), PAPER_SIZES)
  probabilities = predict(rng, labels, 5)
  options = {'ordinal': True, **OPTIONS}
  result = scores.scores(labels, probabilities, NAMES, **options)['scores']
  intervals = resampling.bootstrap_intervals(
    labels, probabilities, NAMES, resamples=500, seed=0, **options
  )
  for name, (low, high) in intervals.items():
    # Drawing again raises a small calibration error: its interval lies high.
    assert name.startswith('ece') or low <= result[name] <= high, name
    assert low < high, name
  width = {name: high - low for name, (low, high) in intervals.items()}
  # What `balanced_accuracy_0_2` is for: three images make the fifth class.
  assert width['balanced_accuracy'] > 2 * width['balanced_accuracy_0_2']


def test_impossible_settings_are_refused():
  labels, probabilities = random_set(9, n=10)

  def draw(**changes):
    settings = {'resamples': 5, 'seed': 0, **changes}
    resampling.bootstrap_intervals(labels, probabilities, NAMES, **settings)

  with pytest.raises(ValueError, match='resamples must be at least 1'):
    draw(resamples=0)
  with pytest.raises(ValueError, match='level must lie between 0 and 1'):
    draw(level=95)
  with pytest.raises(ValueError, match='temperature must be above 0, not 0'):
    draw(temperature=0)


# --- pairs ------------------------------------------------------------------


def test_paired_difference_of_a_model_to_itself_is_nothing():
  labels, probabilities = random_set(9)
  paired = resampling.paired_bootstrap(
    labels, probabilities, probabilities, NAMES, resamples=20, seed=0
  )
  for name, value in paired.items():
    if name.startswith(('sensitivity_', 'specificity_', 'quad')) or (
      name.endswith('_scaled')
    ):
      assert value == {'difference': None, 'interval': None}
    else:
      assert value == {'difference': 0.0, 'interval': [0.0, 0.0]}


def test_paired_differences_are_of_the_same_resamples():
  labels, a = random_set(10, n=150)
  b = predict(np.random.default_rng(11), labels, 5, skill=0.5)
  thresholds, temperatures = (0.6, 0.5), (1.2, 0.8)
  paired = resampling.paired_bootstrap(
    labels,
    a,
    b,
    NAMES,
    resamples=15,
    seed=3,
    ordinal=True,
    threshold=thresholds,
    temperature=temperatures,
  )
  (counts,) = resampling.draws(labels, 15, seed=3, stratified=True)
  drawn = [np.repeat(np.arange(150), row.astype(int)) for row in counts]
  values_a, values_b = (
    [
      expected(labels[i], p[i], NAMES, threshold, t)
      for i in (np.arange(150), *drawn)
    ]
    for p, threshold, t in zip((a, b), thresholds, temperatures, strict=True)
  )
  assert json.loads(json.dumps(paired, allow_nan=False)) == paired
  assert list(paired) == list(values_a[0])
  for name, value in paired.items():
    point, *differences = (
      None if None in (x[name], y[name]) else x[name] - y[name]
      for x, y in zip(values_a, values_b, strict=True)
    )
    assert value['difference'] == pytest.approx(point, abs=1e-12), name
    defined = [d for d in differences if d is not None]
    low, high = np.quantile(defined, [0.025, 0.975])
    assert value['interval'] == pytest.approx([low, high], abs=1e-12), name


def test_pairing_makes_the_interval_of_similar_models_shorter():
  labels, a = random_set(12, n=400)
  b = 0.95 * a + 0.05 * predict(np.random.default_rng(13), labels, 5)
  single = resampling.bootstrap_intervals(
    labels, a, None, resamples=300, seed=0
  )
  paired = resampling.paired_bootstrap(
    labels, a, b, None, resamples=300, seed=0
  )
  for name in ('accuracy', 'macro_f1', 'auroc_any_lesion', 'brier', 'nll'):
    width = np.diff(single[name])[0]
    assert np.diff(paired[name]['interval'])[0] < width / 2, name


def test_a_score_that_one_model_lacks_has_no_difference():
  labels = np.array([0, 0, 1, 1])
  never_two, two = one_hot([0, 1, 1, 1], 3), one_hot([0, 2, 1, 1], 3)
  paired = resampling.paired_bootstrap(
    labels, never_two, two, NAMES[:3], resamples=5, seed=0,
    threshold=(0.5, None),
  )  # fmt: skip
  nothing = {'difference': None, 'interval': None}
  assert paired['precision/two'] == nothing
  assert paired['sensitivity_any_lesion'] == nothing


def test_models_that_are_no_pair_are_refused():
  labels, a = random_set(9, n=10)
  four = one_hot(labels % 4, 4)
  with pytest.raises(ValueError, match='both need the same classes'):
    resampling.paired_bootstrap(labels % 4, a, four, None, seed=0)
  with pytest.raises(ValueError, match=r'^model b: 10 labels for 9 rows'):
    resampling.paired_bootstrap(labels, a, a[1:], None, seed=0)
