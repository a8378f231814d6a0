"""predictions.csv to the bit and by row, and what is refused before it."""

import csv
import os

import numpy as np
import pytest
from scipy import special

from dpjax.errors import UserError
from dpjax.metrics import (
  calibration,
  predictions,
  resampling,
  scores,
  significance,
  subgroups,
)
from tests.metrics import predicted


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_predictions_come_back_from_the_file_to_the_bit(tmp_path, dtype):
  labels, probabilities = predicted.random_set(16, n=50)
  probabilities = probabilities.astype(dtype)
  ids = [f'exam {i}, "left" é' for i in range(50)]  # commas and quotes
  path = tmp_path / 'predictions.csv'
  path.write_text('what an earlier run left')
  predictions.write_predictions(
    path, ids, labels, probabilities, predicted.NAMES
  )

  assert [file.name for file in tmp_path.iterdir()] == ['predictions.csv']
  ids_read, labels_read, probabilities_read, _ = predictions.read_predictions(
    path
  )
  assert ids_read == ids
  np.testing.assert_array_equal(labels_read, labels)
  assert probabilities_read.dtype == np.float64
  np.testing.assert_array_equal(probabilities_read.astype(dtype), probabilities)
  before, after = (
    scores.scores(labels, p, predicted.NAMES)['scores']
    for p in (probabilities, probabilities_read)
  )
  # The digits stand for a float32, but are read as the float64 that they say.
  predicted.assert_same(after, before, 1e-6 if dtype == np.float32 else 0)


def test_predictions_file_has_the_promised_layout(tmp_path):
  path = tmp_path / 'predictions.csv'
  probabilities = np.array([[0.25, 0.75], [0.1, 0.9]], np.float32)
  predictions.write_predictions(
    path, ['a', 'b'], np.array([1, 0]), probabilities, ['no', 'yes']
  )
  assert list(csv.reader(path.read_text().splitlines())) == [
    ['id', 'label', 'prediction', 'p_no', 'p_yes'],
    ['a', '1', '1', '0.25', '0.75'],
    ['b', '0', '1', '0.1', '0.9'],
  ]


def test_no_id_is_a_formula_in_the_file_and_all_come_back(tmp_path):
  path = tmp_path / 'predictions.csv'
  ids = ['=1+1', '+a', '@b', '-c', '-1', "'=d", 'e']
  probabilities = np.full((7, 2), 0.5)
  predictions.write_predictions(
    path, ids, np.zeros(7, int), probabilities, ['-', '=yes']
  )
  found, *_ = predictions.read_predictions(path)
  assert found == ids
  first = [row[0] for row in csv.reader(path.read_text().splitlines())][1:]
  assert first == ["'=1+1", "'+a", "'@b", "'-c", '-1', "''=d", 'e']


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
  tmp_path, monkeypatch
):
  path = tmp_path / 'predictions.csv'
  path.write_text('old')

  def disk_full(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', disk_full)
  with pytest.raises(OSError, match='disk full'):
    predictions.write_predictions(path, ['a'], [1], [[0.2, 0.8]], ['n', 'y'])
  assert path.read_text() == 'old'
  assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_a_spreadsheet_saved_is_read(tmp_path):
  path = tmp_path / 'predictions.csv'
  path.write_bytes(  # a byte order mark and CRLF
    b'\xef\xbb\xbfid,label,prediction,p_a,p_b\r\nx,0,1,0.5,0.5\r\n'
  )
  ids, labels, probabilities, _ = predictions.read_predictions(path)
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
  with pytest.raises(UserError) as error:
    predictions.read_predictions(path)
  line = str(error.value)
  assert str(path) in line and place in line and reason in line
  assert '\n' not in line


def test_a_missing_or_binary_file_is_refused_by_name(tmp_path):
  path = tmp_path / 'predictions.csv'
  with pytest.raises(UserError, match=r'predictions\.csv: No such file'):
    predictions.read_predictions(path)
  path.write_bytes(b'\xff\xd8\xff\xe0')
  with pytest.raises(UserError, match=r'predictions\.csv: not a CSV file'):
    predictions.read_predictions(path)


def test_the_path_of_a_folder_that_is_not_there_is_not_made(tmp_path):
  path = tmp_path / 'no' / 'predictions.csv'
  with pytest.raises(FileNotFoundError):
    predictions.write_predictions(path, ['a'], [1], [[0.2, 0.8]], ['n', 'y'])
  assert not path.parent.exists()


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
def test_impossible_predictions_are_refused_in_one_line_by_all_that_score(
  labels, probabilities, reason
):
  good = np.array(GOOD[1])
  column = {'sex': np.array(['F', 'M'])}
  for call in (
    lambda: predictions.check(labels, probabilities),
    lambda: scores.scores(labels, probabilities, ['a', 'b']),
    lambda: scores.summary(labels, probabilities),
    lambda: resampling.bootstrap_intervals(labels, probabilities, None, seed=0),
    lambda: resampling.paired_bootstrap(
      labels, probabilities, good, None, seed=0
    ),
    lambda: significance.mcnemar(labels, probabilities, good),
    lambda: calibration.fit_temperature(labels, probabilities),
    lambda: calibration.choose_threshold(labels, probabilities),
    lambda: calibration.reliability(labels, probabilities),
    lambda: subgroups.subgroups(
      column, labels, probabilities, ['a', 'b'], seed=0
    ),
  ):
    with pytest.raises(ValueError, match=reason) as error:
      call()
    assert '\n' not in str(error.value)
    # No user calls these: it is a bug of ours, and is told as one.
    assert not isinstance(error.value, UserError)


def test_softmax_takes_logits_of_any_size():
  logits = np.array(
    [[1.0, 2.0, -3.0], [1e4, 0.0, 1e4], [-900.0, -901.0, -902.0]]
  )
  found = predictions.softmax(logits.astype(np.float32))
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, special.softmax(logits, axis=1), rtol=1e-14)


def test_rows_in_half_precision_pass():
  labels, probabilities = predicted.random_set(17)
  half = probabilities.astype(np.float16)
  t = calibration.fit_temperature(labels, half)
  scores.scores(labels, half, predicted.NAMES, temperature=t, threshold=0.5)


def test_impossible_names_and_ids_are_refused(tmp_path):
  with pytest.raises(ValueError, match='3 class names for 2 columns'):
    predictions.check_names(['a', 'b', 'c'], 2)
  with pytest.raises(ValueError, match="'a' comes twice"):
    predictions.check_names(['a', 'a'], 2)
  path = tmp_path / 'predictions.csv'
  with pytest.raises(ValueError, match='1 ids for 2 labels'):
    predictions.write_predictions(path, ['x'], *GOOD, ['a', 'b'])
  with pytest.raises(ValueError, match="'x' comes twice"):
    predictions.write_predictions(path, ['x', 'x'], *GOOD, ['a', 'b'])
  assert not path.exists()


def test_whose_an_image_is_stands_in_the_last_column(tmp_path):
  path = tmp_path / 'predictions.csv'
  names = ['a', 'b']
  three = ['x', 'y', 'z'], [0, 1, 1], [[0.5, 0.5], [0.2, 0.8], [0.6, 0.4]]
  predictions.write_predictions(path, *three, names, [7, 3, 7])
  assert path.read_text().splitlines()[:2] == [
    'id,label,prediction,p_a,p_b,patient',
    'x,0,0,0.5,0.5,7',
  ]
  found = predictions.read_predictions(path)
  assert found.patients.tolist() == ['7', '3', '7']
  assert found.probabilities.tolist() == three[2]
  # One image each: nothing to say.
  predictions.write_predictions(path, *three, names, [7, 3, 5])
  assert 'patient' not in path.read_text()
  assert predictions.read_predictions(path).patients is None


def mean_of(*members):
  """The mean of [(ids, labels, probabilities), ...] for the images a and b."""
  named = {
    str(i): predictions.Predictions(ids, np.array(labels), np.array(p), None)
    for i, (ids, labels, p) in enumerate(members)
  }
  return predictions.mean(named, ['a', 'b'], np.array([0, 1]))


def test_the_mean_goes_by_the_ids_and_not_by_the_order_of_rows():
  found = mean_of(
    (['a', 'b'], [0, 1], [[0.9, 0.1], [0.4, 0.6]]),
    (['b', 'a'], [1, 0], [[0.2, 0.8], [0.7, 0.3]]),
  )
  np.testing.assert_allclose(found, [[0.8, 0.2], [0.3, 0.7]])


@pytest.mark.parametrize(
  ('ids', 'labels', 'rows', 'words'),
  [
    (['a', 'c'], [0, 1], [[1, 0]] * 2, '1: not of the images and classes'),
    (['a'], [0], [[1, 0]], '1: not of the images and classes'),
    (['a', 'b'], [0, 1], [[1, 0, 0]] * 2, '1: not of the images and classes'),
    (['a', 'b'], [0, 0], [[1, 0]] * 2, '1: b has another label'),
  ],
)
def test_a_mean_of_other_images_labels_or_classes_is_refused(
  ids, labels, rows, words
):
  first = (['a', 'b'], [0, 1], [[1, 0]] * 2)
  with pytest.raises(UserError, match=words):
    mean_of(first, (ids, labels, rows))
