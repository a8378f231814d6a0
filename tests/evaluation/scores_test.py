"""Scores against scikit-learn and hand counts; intervals against theory."""

import csv
import json

import numpy as np
import pytest

from dpjax.evaluation import scores as scores_lib

metrics = pytest.importorskip('sklearn.metrics')

NAMES = ['normal', 'one', 'two', 'three', 'four']
PAPER_SIZES = [1600, 213, 433, 21, 3]  # the competition's test split


def predict(rng, labels, num_classes, skill=1.0, tenths=False):
  """Random probabilities that lean to the label; whole tenths make ties."""
  logits = rng.normal(size=(len(labels), num_classes))
  logits[np.arange(len(labels)), labels] += skill
  p = np.exp(logits)
  p /= p.sum(axis=1, keepdims=True)
  return rng.multinomial(10, p) / 10 if tenths else p


def random_set(seed, n=300, num_classes=5, **kwargs):
  rng = np.random.default_rng(seed)
  labels = rng.integers(num_classes, size=n)
  return labels, predict(rng, labels, num_classes, **kwargs)


def one_hot(predictions, num_classes):
  return np.eye(num_classes)[predictions]


def sklearn_summary(labels, probabilities):
  """The summary scores by plain calls, for five classes all present."""
  predictions = probabilities.argmax(axis=1)
  low = labels <= 2
  return {
    'accuracy': metrics.accuracy_score(labels, predictions),
    'balanced_accuracy': metrics.balanced_accuracy_score(labels, predictions),
    'balanced_accuracy_0_2': np.mean(
      [
        metrics.accuracy_score(labels[labels == c], predictions[labels == c])
        for c in np.unique(labels[low])
      ]
    ),
    'macro_f1': metrics.f1_score(labels, predictions, average='macro'),
    'auroc_any_lesion': metrics.roc_auc_score(
      labels > 0, 1 - probabilities[:, 0]
    ),
  }


# --- scores -----------------------------------------------------------------


@pytest.mark.parametrize('tenths', [False, True])
def test_scores_are_those_of_scikit_learn(tenths):
  labels, probabilities = random_set(0, tenths=tenths)
  predictions = probabilities.argmax(axis=1)
  result = scores_lib.scores(labels, probabilities, NAMES)

  expected = sklearn_summary(labels, probabilities)
  assert {k: result[k] for k in expected} == pytest.approx(expected, abs=1e-12)
  matrix = metrics.confusion_matrix(labels, predictions)
  np.testing.assert_array_equal(result['confusion_matrix'], matrix)
  for c, name in enumerate(NAMES):
    row, true, said = result['per_class'][name], labels == c, predictions == c
    assert row['precision'] == metrics.precision_score(true, said)
    assert row['recall'] == metrics.recall_score(true, said)
    assert row['f1'] == pytest.approx(metrics.f1_score(true, said), abs=1e-12)
    assert row['auroc'] == metrics.roc_auc_score(true, probabilities[:, c])
    assert row['support'] == true.sum()


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
  result = scores_lib.scores(labels, probabilities, NAMES[:4])

  assert result['confusion_matrix'] == [
    [3, 1, 0, 0],
    [1, 1, 0, 0],
    [1, 0, 2, 0],
    [0, 0, 1, 0],
  ]
  assert result['num_images'] == 10
  assert result['accuracy'] == pytest.approx(6 / 10)
  assert result['majority_accuracy'] == pytest.approx(4 / 10)
  recalls = [3 / 4, 1 / 2, 2 / 3, 0]
  assert result['balanced_accuracy'] == pytest.approx(np.mean(recalls))
  assert result['balanced_accuracy_0_2'] == pytest.approx(np.mean(recalls[:3]))
  f1s = [6 / 9, 2 / 4, 4 / 6, 0]
  assert result['macro_f1'] == pytest.approx(np.mean(f1s))
  # Lesions have p_0 .5 .1 .6 .1 0 .2. Below .7: 6; below .6: 5 and one tie;
  # below .5: 4 and one tie; below .1: 1 and two ties.
  in_order = 6 + 5.5 + 4.5 + 2
  assert result['auroc_any_lesion'] == pytest.approx(in_order / (4 * 6))
  assert result['per_class']['three'] == {
    'precision': None,  # never predicted
    'recall': 0.0,
    'f1': 0.0,
    # p_3 of the true one is 0, as it is of 4 others; 5 have more.
    'auroc': pytest.approx(4 / 2 / 9),
    'support': 1,
  }


def test_scores_survive_json_unchanged():
  labels, probabilities = random_set(1)
  result = scores_lib.scores(labels, probabilities, NAMES)
  assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_class_predicted_but_never_true_enters_no_mean():
  result = scores_lib.scores(
    np.array([0, 0, 1]), one_hot([0, 2, 1], 3), NAMES[:3]
  )
  assert result['balanced_accuracy'] == pytest.approx((1 / 2 + 1) / 2)
  assert result['macro_f1'] == pytest.approx((2 / 3 + 1) / 2)
  row = result['per_class']['two']
  assert (row['precision'], row['recall'], row['f1']) == (0.0, None, 0.0)
  assert row['auroc'] is None


def test_a_class_neither_true_nor_predicted_has_no_scores():
  result = scores_lib.scores(np.array([0, 1]), one_hot([0, 1], 3), NAMES[:3])
  assert result['per_class']['two'] == {
    'precision': None,
    'recall': None,
    'f1': None,
    'auroc': None,
    'support': 0,
  }
  assert result['macro_f1'] == result['balanced_accuracy'] == 1.0


@pytest.mark.parametrize('n', [1, 4])
@pytest.mark.parametrize('label', [0, 4])
def test_images_of_a_single_class_leave_auroc_undefined(n, label):
  labels = np.full(n, label)
  probabilities = one_hot(labels, 5)
  result = scores_lib.scores(labels, probabilities, NAMES)
  assert result['accuracy'] == result['majority_accuracy'] == 1.0
  assert result['balanced_accuracy'] == result['macro_f1'] == 1.0
  assert result['balanced_accuracy_0_2'] == (1.0 if label == 0 else None)
  assert result['auroc_any_lesion'] is None
  assert all(row['auroc'] is None for row in result['per_class'].values())

  intervals = scores_lib.bootstrap(labels, probabilities, resamples=5, seed=0)
  for name, interval in intervals.items():
    assert interval == (None if result[name] is None else [1.0, 1.0])
  paired = scores_lib.paired_bootstrap(
    labels, probabilities, probabilities, resamples=5, seed=0
  )
  assert paired['auroc_any_lesion'] == {'difference': None, 'interval': None}
  assert paired['accuracy'] == {'difference': 0.0, 'interval': [0.0, 0.0]}
  assert '\n-: undefined' in scores_lib.format_table(result, intervals)


def test_scores_that_do_not_apply_are_none():
  labels, probabilities = random_set(2, num_classes=3)
  result = scores_lib.scores(labels, probabilities, NAMES[:3], any_lesion=False)
  intervals = scores_lib.bootstrap(
    labels, probabilities, resamples=5, seed=0, any_lesion=False
  )
  for values in result, intervals:
    assert values['balanced_accuracy_0_2'] is None
    assert values['auroc_any_lesion'] is None
    assert values['macro_f1'] is not None


def test_auroc_tells_lesion_probabilities_below_rounding_apart():
  # 1 - 1e-17 is 1 in float64: ranked by 1 - p_0 these two would tie.
  probabilities = np.array([[1e-17, 1.0], [1e-18, 1.0]])
  result = scores_lib.scores(np.array([0, 1]), probabilities, ['no', 'yes'])
  assert result['auroc_any_lesion'] == 1.0


# --- bootstrap --------------------------------------------------------------


@pytest.mark.parametrize('tenths', [False, True])
def test_each_resample_scores_what_scikit_learn_scores_on_it(tenths):
  labels, probabilities = random_set(3, n=120, tenths=tenths)
  counts = np.random.default_rng(0).integers(0, 4, size=(20, len(labels)))
  values = scores_lib._weighted_scores(
    labels, probabilities, counts.astype(float), any_lesion=True
  )
  for r, count in enumerate(counts):
    drawn = np.repeat(np.arange(len(labels)), count)
    expected = sklearn_summary(labels[drawn], probabilities[drawn])
    found = {name: value[r] for name, value in values.items()}
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_resample_that_draws_all_images_once_scores_as_scores_does():
  # Class 1 is never true, class 3 never predicted: the unstratified cases.
  labels = np.array([0, 0, 2, 2, 3])
  probabilities = one_hot([0, 1, 2, 1, 0], 4)
  result = scores_lib.scores(labels, probabilities, NAMES[:4])
  values = scores_lib._weighted_scores(
    labels, probabilities, np.ones((1, 5)), any_lesion=True
  )
  for name, value in values.items():
    assert value == pytest.approx(result[name], abs=1e-12), name


def test_the_summary_is_that_of_scores():
  labels, probabilities = random_set(3)
  full = scores_lib.scores(labels, probabilities, list('abcde'))
  for name, value in scores_lib.summary(labels, probabilities).items():
    assert value == pytest.approx(full[name], abs=1e-12)


def test_intervals_are_quantiles_of_scikit_learns_scores():
  labels, probabilities = random_set(4, n=80)
  (counts,) = scores_lib._draws(labels, 40, seed=7, stratified=True)
  drawn = [np.repeat(np.arange(80), row.astype(int)) for row in counts]
  values = [sklearn_summary(labels[i], probabilities[i]) for i in drawn]
  intervals = scores_lib.bootstrap(
    labels, probabilities, resamples=40, seed=7, level=0.8
  )
  for name, interval in intervals.items():
    expected = np.quantile([value[name] for value in values], [0.1, 0.9])
    assert interval == pytest.approx(expected.tolist(), abs=1e-12), name


@pytest.mark.parametrize('stratified', [True, False])
def test_resamples_draw_n_images_and_keep_class_sizes_if_stratified(
  stratified, monkeypatch
):
  monkeypatch.setattr(scores_lib, '_BLOCK', 300)  # 15 resamples a block
  labels = np.repeat([0, 1, 4], [12, 7, 1])
  blocks = list(scores_lib._draws(labels, 400, 0, stratified))
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


def test_unstratified_interval_of_accuracy_is_the_binomial_one():
  rng = np.random.default_rng(0)
  n, accuracy = 1000, 0.8
  labels = rng.integers(2, size=n)
  right = np.arange(n) < accuracy * n
  probabilities = one_hot(np.where(right, labels, 1 - labels), 2)
  low, high = scores_lib.bootstrap(
    labels, probabilities, seed=1, stratified=False
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
  sets, covered = 300, 0
  for _ in range(sets):
    right = rng.random(len(labels)) < recalls[labels]
    predictions = np.where(right, labels, (labels + 1) % 3)
    low, high = scores_lib.bootstrap(
      labels, one_hot(predictions, 3), resamples=200, seed=0
    )['balanced_accuracy']
    covered += low <= recalls.mean() <= high
  # Standard error of the share: sqrt(.95 * .05 / 300) = 0.013. Percentile
  # intervals of finite sets and 200 resamples fall a little short of 0.95.
  assert 0.90 <= covered / sets <= 0.985


def test_bootstrap_depends_on_the_seed_only():
  labels, probabilities = random_set(6)
  first, again, other = (
    scores_lib.bootstrap(labels, probabilities, resamples=50, seed=seed)
    for seed in (1, 1, 2)
  )
  assert first == again
  assert first['auroc_any_lesion'] != other['auroc_any_lesion']


def test_unstratified_resamples_without_a_lesion_are_left_out_of_its_auroc():
  labels = np.array([0, 0, 0, 1])  # a third of the resamples misses image 3
  probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.5, 0.5]])
  intervals = scores_lib.bootstrap(
    labels, probabilities, resamples=200, seed=0, stratified=False
  )
  low, high = intervals['auroc_any_lesion']
  assert 0 <= low < high <= 1


def test_bootstrap_of_the_papers_test_split_is_vectorised():
  # In 0.5 s on a quiet core; scikit-learn on each resample takes 40 s.
  rng = np.random.default_rng(8)
  labels = np.repeat(np.arange(5), PAPER_SIZES)
  probabilities = predict(rng, labels, 5)
  result = scores_lib.scores(labels, probabilities, NAMES)
  intervals = scores_lib.bootstrap(labels, probabilities, seed=0)
  for name, (low, high) in intervals.items():
    assert low < result[name] < high, name
  width = {name: high - low for name, (low, high) in intervals.items()}
  # What `balanced_accuracy_0_2` is for: three images make the fifth class.
  assert width['balanced_accuracy'] > 2 * width['balanced_accuracy_0_2']


def test_paired_difference_of_a_model_to_itself_is_nothing():
  labels, probabilities = random_set(9)
  paired = scores_lib.paired_bootstrap(
    labels, probabilities, probabilities, resamples=20, seed=0
  )
  for value in paired.values():
    assert value == {'difference': 0.0, 'interval': [0.0, 0.0]}


def test_paired_differences_are_of_the_same_resamples():
  labels, a = random_set(10, n=150)
  b = predict(np.random.default_rng(11), labels, 5, skill=0.5)
  paired = scores_lib.paired_bootstrap(labels, a, b, resamples=60, seed=3)
  (counts,) = scores_lib._draws(labels, 60, seed=3, stratified=True)
  drawn = [np.repeat(np.arange(150), row.astype(int)) for row in counts]
  values_a, values_b = (
    [sklearn_summary(labels[i], p[i]) for i in drawn] for p in (a, b)
  )
  point_a, point_b = (scores_lib.scores(labels, p, NAMES) for p in (a, b))
  assert json.loads(json.dumps(paired)) == paired
  for name, value in paired.items():
    expected = point_a[name] - point_b[name]
    assert value['difference'] == pytest.approx(expected, abs=1e-12)
    differences = [
      x[name] - y[name] for x, y in zip(values_a, values_b, strict=True)
    ]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert value['interval'] == pytest.approx([low, high], abs=1e-12)


def test_pairing_makes_the_interval_of_similar_models_shorter():
  labels, a = random_set(12, n=400)
  b = 0.95 * a + 0.05 * predict(np.random.default_rng(13), labels, 5)
  single = scores_lib.bootstrap(labels, a, resamples=300, seed=0)
  paired = scores_lib.paired_bootstrap(labels, a, b, resamples=300, seed=0)
  for name, (low, high) in single.items():
    assert np.diff(paired[name]['interval'])[0] < (high - low) / 2, name


# --- the table --------------------------------------------------------------


def test_table_says_every_score_and_lines_up():
  labels = np.repeat(np.arange(5), PAPER_SIZES)
  probabilities = predict(np.random.default_rng(14), labels, 5)
  result = scores_lib.scores(labels, probabilities, NAMES)
  intervals = scores_lib.bootstrap(labels, probabilities, resamples=20, seed=0)
  table = scores_lib.format_table(result, intervals, level=0.9)
  assert '90 % interval' in table
  for name, (low, high) in intervals.items():
    assert f'  {result[name]:.3f}  {low:.3f} to {high:.3f}' in table
  assert f'{result["majority_accuracy"]:.3f}' in table
  lines = table.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith('class'))
  assert len({len(line) for line in lines[start : start + 6]}) == 1
  for c, line in enumerate(lines[-5:]):
    assert line.split() == [
      str(c),
      NAMES[c],
      *map(str, result['confusion_matrix'][c]),
    ]


@pytest.mark.parametrize('num_classes', [2, 5, 14, 40])
def test_table_stays_within_80_columns(num_classes):
  labels = np.arange(3 * num_classes) % num_classes
  probabilities = predict(np.random.default_rng(0), labels, num_classes)
  names = [f'a finding with a very long name, number {c}' for c in labels]
  result = scores_lib.scores(labels, probabilities, names[:num_classes])
  # Counts of a large set; the table does not add them up again.
  result['confusion_matrix'] = [
    [123456 * n for n in row] for row in result['confusion_matrix']
  ]
  intervals = scores_lib.bootstrap(labels, probabilities, resamples=5, seed=0)
  table = scores_lib.format_table(result, intervals)
  assert max(map(len, table.splitlines())) <= 80
  matrix = table.split('confusion matrix')[1].splitlines()
  heads = [line.split() for line in matrix[1:] if line.startswith('   ')]
  columns = [int(c) for head in heads for c in head]
  assert columns == list(range(num_classes))  # wrapped, none dropped


def test_table_without_intervals_has_no_column_for_them():
  labels, probabilities = random_set(15, num_classes=2)
  result = scores_lib.scores(labels, probabilities, ['0', '1'])
  table = scores_lib.format_table(result)
  assert 'interval' not in table
  assert '-: undefined' not in table  # nothing is
  assert 'classes 0 to 2' not in table  # there are only two
  assert '\n0 ' in table and '0 0' not in table  # a number is not numbered


# --- predictions.csv --------------------------------------------------------


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_predictions_come_back_from_the_file_to_the_bit(tmp_path, dtype):
  labels, probabilities = random_set(16, n=50)
  probabilities = probabilities.astype(dtype)
  ids = [f'exam {i}, "left" é' for i in range(50)]  # commas and quotes
  path = tmp_path / 'predictions.csv'
  path.write_text('what an earlier run left')
  scores_lib.write_predictions(path, ids, labels, probabilities, NAMES)

  assert [file.name for file in tmp_path.iterdir()] == ['predictions.csv']
  ids_read, labels_read, probabilities_read = scores_lib.read_predictions(path)
  assert ids_read == ids
  np.testing.assert_array_equal(labels_read, labels)
  assert probabilities_read.dtype == np.float64
  np.testing.assert_array_equal(probabilities_read.astype(dtype), probabilities)
  assert scores_lib.scores(
    labels_read, probabilities_read, NAMES
  ) == scores_lib.scores(labels, probabilities, NAMES)


def test_predictions_file_has_the_promised_layout(tmp_path):
  path = tmp_path / 'predictions.csv'
  probabilities = np.array([[0.25, 0.75], [0.1, 0.9]], np.float32)
  scores_lib.write_predictions(
    path, ['a', 'b'], np.array([1, 0]), probabilities, ['no', 'yes']
  )
  assert list(csv.reader(path.read_text().splitlines())) == [
    ['id', 'label', 'prediction', 'p_no', 'p_yes'],
    ['a', '1', '1', '0.25', '0.75'],
    ['b', '0', '1', '0.1', '0.9'],
  ]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch
):
  path = tmp_path / 'predictions.csv'
  path.write_text('old')

  def disk_full(*_):
    raise OSError('disk full')

  monkeypatch.setattr(scores_lib.os, 'replace', disk_full)
  with pytest.raises(OSError, match='disk full'):
    scores_lib.write_predictions(path, ['a'], [1], [[0.2, 0.8]], ['n', 'y'])
  assert path.read_text() == 'old'
  assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path):
  path = tmp_path / 'predictions.csv'
  path.write_bytes(  # a byte order mark and CRLF
    b'\xef\xbb\xbfid,label,prediction,p_a,p_b\r\nx,0,1,0.5,0.5\r\n'
  )
  ids, labels, probabilities = scores_lib.read_predictions(path)
  assert (ids, labels.tolist()) == (['x'], [0])
  assert probabilities.tolist() == [[0.5, 0.5]]  # the tie may go either way


HEADER = 'id,label,prediction,p_a,p_b\n'


@pytest.mark.parametrize(
  ('text', 'place', 'reason'),
  [
    ('', 'row 1', 'the header must be'),
    ('id,label,p_a,p_b\nx,0,1,0\n', 'row 1', "not 'id,label,p_a,p_b'"),
    (HEADER, 'predictions.csv', 'no rows below the header'),
    (HEADER + 'x,0,0,1,0\ny,0,0,1\n', 'row 3', '4 fields'),
    (HEADER + 'x,normal,0,1,0\n', 'row 2', "'normal'"),
    (HEADER + 'x,0,0,high,0\n', 'row 2', "'high'"),
    (HEADER + 'x,0,0,1,0\nx,0,0,1,0\n', 'row 3', "'x' comes again"),
    (HEADER + 'x,0,0,1,0\ny,2,0,1,0\n', 'row 3', 'label 2 is not in 0..1'),
    (HEADER + 'x,0,0,1,nan\n', 'row 2', 'class 1 is not finite'),
    (HEADER + 'x,0,0,1,0\ny,0,0,1.1,-0.1\n', 'row 3', 'class 1 is negative'),
    (HEADER + 'x,0,0,1,0\ny,0,0,1,0.1\n', 'row 3', 'sum to 1.1'),
    (HEADER + 'x,0,1,0.9,0.1\n', 'row 2', 'most probable class, 0'),
    (HEADER + 'x,0,5,0.9,0.1\n', 'row 2', 'most probable class, 0'),
  ],
)
def test_a_broken_file_is_refused_by_row_and_reason(
  tmp_path, text, place, reason
):
  path = tmp_path / 'predictions.csv'
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    scores_lib.read_predictions(path)
  line = str(error.value)
  assert str(path) in line and place in line and reason in line
  assert '\n' not in line


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
  path = tmp_path / 'predictions.csv'
  with pytest.raises(ValueError, match=r'predictions\.csv: No such file'):
    scores_lib.read_predictions(path)
  path.write_bytes(b'\xff\xd8\xff\xe0')
  with pytest.raises(ValueError, match=r'predictions\.csv: not a CSV file'):
    scores_lib.read_predictions(path)


# --- refused arguments ------------------------------------------------------

GOOD = ([0, 1], [[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
  ('labels', 'probabilities', 'reason'),
  [
    ([], np.zeros((0, 2)), 'no images'),
    ([[0, 1]], GOOD[1], r'labels must be \(N,\)'),
    (GOOD[0], [0.5, 0.5], r'probabilities must be \(N, C\)'),
    (GOOD[0], [[1.0], [1.0]], 'at least 2 classes'),
    ([0, 1, 1], GOOD[1], '3 labels for 2 rows'),
    ([0.0, 1.0], GOOD[1], 'whole numbers, not float64'),
    (GOOD[0], [['x', 'y'], ['z', 'w']], 'must be numbers'),
    ([0, 2], GOOD[1], r'image 1: label 2 is not in 0\.\.1'),
    ([-1, 1], GOOD[1], r'image 0: label -1 is not in 0\.\.1'),
    (GOOD[0], [[0.5, 0.5], [np.nan, 1]], 'image 1: .* class 0 is not finite'),
    (GOOD[0], [[0.5, np.inf], [1, 0]], 'image 0: .* class 1 is not finite'),
    (GOOD[0], [[0.5, 0.5], [1.1, -0.1]], 'image 1: .* class 1 is negative'),
    (GOOD[0], [[0.5, 0.5], [0.5, 0.498]], 'image 1: .* sum to 0.998'),
  ],
)
def test_impossible_predictions_are_refused_in_one_line(
  labels, probabilities, reason
):
  good = np.array(GOOD[1])
  for call in (
    lambda: scores_lib.scores(labels, probabilities, ['a', 'b']),
    lambda: scores_lib.bootstrap(labels, probabilities, seed=0),
    lambda: scores_lib.paired_bootstrap(labels, probabilities, good, seed=0),
  ):
    with pytest.raises(ValueError, match=reason) as error:
      call()
    assert '\n' not in str(error.value)


def test_rows_in_half_precision_pass():
  labels, probabilities = random_set(17)
  half = probabilities.astype(np.float16)
  scores_lib.scores(labels, half, NAMES)


def test_impossible_names_ids_and_settings_are_refused(tmp_path):
  with pytest.raises(ValueError, match='3 class names for 2 columns'):
    scores_lib.scores(*GOOD, ['a', 'b', 'c'])
  with pytest.raises(ValueError, match="'a' comes twice"):
    scores_lib.scores(*GOOD, ['a', 'a'])
  with pytest.raises(ValueError, match='resamples must be at least 1'):
    scores_lib.bootstrap(*GOOD, resamples=0, seed=0)
  with pytest.raises(ValueError, match='level must lie between 0 and 1'):
    scores_lib.bootstrap(*GOOD, seed=0, level=95)
  three = [[0.5, 0.5, 0], [0.2, 0.8, 0]]
  with pytest.raises(ValueError, match='both need the same classes'):
    scores_lib.paired_bootstrap(*GOOD, three, seed=0)
  with pytest.raises(ValueError, match=r'^model b: image 0'):
    scores_lib.paired_bootstrap(*GOOD, [[1, 1], [1, 0]], seed=0)
  path = tmp_path / 'predictions.csv'
  with pytest.raises(ValueError, match='1 ids for 2 labels'):
    scores_lib.write_predictions(path, ['x'], *GOOD, ['a', 'b'])
  with pytest.raises(ValueError, match="'x' comes twice"):
    scores_lib.write_predictions(path, ['x', 'x'], *GOOD, ['a', 'b'])
  assert not path.exists()
