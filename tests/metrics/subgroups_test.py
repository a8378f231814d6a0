"""Groups of metadata, and their scores."""

import json

import numpy as np
import pytest

from dpjax.metrics import resampling, scores, subgroups
from tests.metrics.predicted import NAMES, random_set

OPTIONS = {'threshold': 0.6, 'temperature': 1.3, 'ordinal': True}


def sizes(values):
  return {name: len(rows) for name, rows in subgroups.groups(values).items()}


def score(metadata, labels, probabilities, **options):
  return subgroups.subgroups(
    metadata, labels, probabilities, NAMES, resamples=20, seed=3, **options
  )


def test_a_group_scores_as_its_images_alone_do():
  labels, probabilities = random_set(0)
  sex = np.array(['F', 'M', ''])[np.arange(300) % 3]
  found = score({'sex': sex}, labels, probabilities, **OPTIONS)
  assert list(found['sex']) == ['F', 'M', 'unknown']
  for name, value in (('F', 'F'), ('M', 'M'), ('unknown', '')):
    rows = sex == value
    point = scores.scores(labels[rows], probabilities[rows], NAMES, **OPTIONS)
    intervals = resampling.bootstrap_intervals(
      labels[rows],
      probabilities[rows],
      NAMES,
      resamples=20,
      seed=3,
      **OPTIONS,
    )
    assert found['sex'][name] == {
      'num_images': 100,
      'scores': {key: point['scores'][key] for key in subgroups.SCORES},
      'intervals': {key: intervals[key] for key in subgroups.SCORES},
    }
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_group_of_one_class_or_one_image_has_none_where_undefined():
  labels, probabilities = random_set(1, n=50)
  column = np.where(labels == 0, 'well', 'ill')
  column[np.flatnonzero(labels)[0]] = 'one'
  groups = score({'x': column}, labels, probabilities, **OPTIONS)['x']
  assert groups['one']['num_images'] == 1
  for name in ('well', 'ill', 'one'):
    assert groups[name]['scores']['auroc_any_lesion'] is None
    assert groups[name]['intervals']['auroc_any_lesion'] is None
    assert groups[name]['scores']['accuracy'] is not None
  assert groups['well']['scores']['sensitivity_any_lesion'] is None
  assert groups['well']['scores']['specificity_any_lesion'] is not None


def test_columns_of_one_value_are_left_out():
  labels, probabilities = random_set(2, n=20)
  columns = {
    'same': np.full(20, 'PA'),
    'unknown': np.full(20, ''),
    'two': np.array(['PA', ''])[np.arange(20) % 2],
  }
  assert list(score(columns, labels, probabilities)) == ['two']
  assert score({}, labels, probabilities) == {}


def test_a_column_of_another_length_is_refused_by_name():
  labels, probabilities = random_set(2, n=20)
  with pytest.raises(ValueError, match="'sex': 19 values for 20 labels"):
    score({'sex': np.full(19, 'F')}, labels, probabilities)


def test_more_than_eight_numbers_are_cut_at_their_quartiles():
  ages = np.random.default_rng(0).permutation(np.arange(1, 101))
  values = np.array([*map(str, ages), '', ''])
  found = subgroups.groups(values)
  assert {name: len(rows) for name, rows in found.items()} == {
    '<= 25': 25, '25 to 50': 25, '50 to 75': 25, '> 75': 25, 'unknown': 2,
  }  # fmt: skip
  assert list(found)[-1] == 'unknown'
  assert sorted(ages[found['25 to 50']]) == list(range(26, 51))


def test_every_image_is_in_one_group():
  rng = np.random.default_rng(1)
  for values in (
    rng.integers(0, 90, 200).astype(str),
    rng.choice(list('abcdefghijklmn'), 200),
    rng.choice(['', '1', '2.5', '3'], 200),
    rng.normal(size=200).round(2).astype(str),
  ):
    rows = np.concatenate(list(subgroups.groups(values).values()))
    assert sorted(rows) == list(range(200))


def test_ages_of_dicom_are_years():
  values = [f'{age:03d}Y' for age in range(2, 11)] + ['006M', '052W', '010D']
  found = subgroups.groups(np.array(values))
  # In years: .03 .5 1 | 2 3 4 | 5 6 7 | 8 9 10.
  assert list(found) == ['<= 1', '1 to 4', '4 to 7', '> 7']
  assert {values[i] for i in found['<= 1']} == {'006M', '052W', '010D'}


def test_skewed_numbers_have_fewer_groups_and_no_empty_one():
  values = np.array(['0'] * 50 + [str(n) for n in range(1, 10)])
  assert sizes(values) == {'<= 0': 50, '> 0': 9}
  few = np.array(['9'] * 50 + [str(n) for n in range(9)])
  assert sizes(few) == {'<= 9': 59}


def test_eight_numbers_or_fewer_stay_and_come_in_order_of_size():
  assert list(sizes(np.array(['10', '9', '2', '-1', '9']))) == [
    '-1', '2', '9', '10',
  ]  # fmt: skip


def test_of_many_texts_the_seven_commonest_stay():
  values = np.repeat(list('kjihgfedcba'), [9, 8, 7, 6, 5, 4, 3, 3, 1, 1, 1])
  found = sizes(np.array([*values, '', 'nan']))
  # d and e are equally common: the first in the alphabet stays.
  assert found == {
    'd': 3, 'f': 4, 'g': 5, 'h': 6, 'i': 7, 'j': 8, 'k': 9, 'other': 6,
    'unknown': 2,
  }  # fmt: skip
  assert list(found)[-2:] == ['other', 'unknown']


def test_values_that_are_called_other_or_unknown_join_those():
  values = np.array([*np.repeat(list('abcdefg'), 3), 'h', 'other', 'unknown'])
  found = sizes(np.array([*values, '']))
  assert found == {
    **dict.fromkeys('abcdefg', 3), 'other': 2, 'unknown': 2,
  }  # fmt: skip
  assert sizes(np.array(['a', 'unknown', ''])) == {'a': 1, 'unknown': 2}


@pytest.mark.parametrize(
  'text', ['inf', '1e999', '1_000', '١', '5 years', '1e']
)
def test_what_is_no_plain_number_is_a_text(text):
  values = np.array([*map(str, range(20)), text] * 3)
  assert 'other' in sizes(values)


def test_a_number_is_one_group_in_all_its_spellings():
  values = np.array(['1', '1.0', '01', '2.0', '2.00', 'x'] * 3)
  assert sizes(values) == {'1': 9, '2.0': 6, 'x': 3}
  assert sizes(np.array(['057Y', '57', '18M'])) == {'18M': 1, '57': 2}


def test_what_pandas_writes_for_a_missing_cell_is_unknown():
  ages = np.array([*map(str, range(30)), 'nan', 'NaN', ''])
  found = sizes(ages)
  assert found['unknown'] == 3 and len(found) == 5  # and the quarters


def test_names_of_images_are_no_groups():
  names = np.array([f'study-{i // 2 if i < 8 else i}' for i in range(40)])
  assert subgroups.groups(names) == {}


def test_a_group_is_resampled_by_its_patients():
  labels, probabilities = random_set(0)
  sex = np.array(['F', 'M'])[np.arange(300) // 2 % 2]
  patients = np.arange(300) // 2
  found = score({'sex': sex}, labels, probabilities, patients=patients)
  rows = sex == 'M'
  intervals = resampling.bootstrap_intervals(
    labels[rows], probabilities[rows], None, resamples=20, seed=3,
    patients=patients[rows],
  )  # fmt: skip
  assert found['sex']['M']['intervals'] == {
    key: intervals[key] for key in subgroups.SCORES
  }
  assert found != score({'sex': sex}, labels, probabilities)
