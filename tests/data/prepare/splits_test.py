"""The paper's split, by whole groups."""

import collections

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.prepare import duplicates, splits
from dpjax.errors import UserError

SIDES = ('train', 'validation', 'test')


def alone(*counts):
  """Labels with so many of each class, every image its own group."""
  labels = np.repeat(np.arange(len(counts)), counts).tolist()
  return labels, [f'g{i:05d}' for i in range(len(labels))]


def assign(labels, groups, given=None, pairs=(), seed=0, **shares):
  given = [None] * len(labels) if given is None else given
  return splits.assign(
    labels, groups, given, copies(*pairs), seed=seed, **shares
  )


def copies(*pairs):
  return [duplicates.Copy(*sorted(pair), 0, True) for pair in pairs]


def table(labels, split):
  """split -> number of images of each class."""
  labels = np.asarray(labels)
  return {
    side: np.bincount(
      labels[split == side], minlength=labels.max() + 1
    ).tolist()
    for side in SIDES
  }


def families(seed, count=2000):
  """Groups of 1 to 4 images with labels of their own, long-tailed."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 5, count)
  groups = np.repeat([f'patient {i}' for i in rng.permutation(count)], sizes)
  labels = rng.choice(5, len(groups), p=(0.76, 0.1, 0.12, 0.01, 0.01))
  order = rng.permutation(len(groups))
  return labels[order].tolist(), groups[order].tolist()


def test_shares_are_a_tenth_and_a_tenth_of_the_rest_of_each_class():
  labels, groups = alone(1000, 200, 300, 60)
  assert table(labels, assign(labels, groups)) == {
    'test': [100, 20, 30, 6],
    'validation': [90, 18, 27, 5],
    'train': [810, 162, 243, 49],
  }


@pytest.mark.parametrize('count', range(1, 12))
def test_from_six_images_on_a_class_has_two_in_each_split(count):
  labels, groups = alone(300, count)
  found = table(labels, assign(labels, groups))
  least = 2 if count >= 6 else 0
  assert [found[s][1] for s in ('validation', 'test')] == [least, least]
  assert found['train'][1] == count - 2 * least


def test_the_seed_decides():
  labels, groups = alone(200, 50)
  one = assign(labels, groups, seed=3)
  np.testing.assert_array_equal(assign(labels, groups, seed=3), one)
  assert (assign(labels, groups, seed=4) != one).any()


def test_the_order_of_the_images_does_not_matter():
  labels, groups = families(seed=0, count=300)
  order = np.random.default_rng(1).permutation(len(labels))
  shuffled = assign([labels[i] for i in order], [groups[i] for i in order])
  np.testing.assert_array_equal(shuffled, assign(labels, groups)[order])


@pytest.mark.parametrize('seed', range(5))
def test_groups_are_on_one_side_and_shares_right_to_within_a_group(seed):
  labels, groups = families(seed)
  split = assign(labels, groups, seed=seed)
  sides = collections.defaultdict(set)
  for group, side in zip(groups, split, strict=True):
    sides[group].add(str(side))
  assert all(len(found) == 1 for found in sides.values())
  found = table(labels, split)
  counts = np.bincount(labels)
  np.testing.assert_array_equal(
    sum(np.array(found[side]) for side in SIDES), counts
  )
  left = counts - found['test']
  for side, total in (('test', counts), ('validation', left)):
    wanted = np.maximum(np.rint(0.1 * total), 2)
    assert np.abs(found[side] - wanted).max() < 4  # the largest group


@pytest.mark.parametrize('seed', range(5))
def test_training_keeps_every_class_however_large_the_groups(seed):
  # One patient with all of class 2, three with class 1, and many with class 0.
  labels = [2] * 8 + [1] * 9 + [0] * 60
  groups = ['a'] * 8 + ['b'] * 3 + ['c'] * 3 + ['d'] * 3
  groups += [f'e{i // 2}' for i in range(60)]
  found = table(labels, assign(labels, groups, seed=seed))
  assert found['train'][2] == 8
  assert [found[s][1] for s in SIDES] == [3, 3, 3]


def test_a_labelled_test_part_is_kept_and_no_other_is_drawn():
  labels, groups = alone(500, 100)
  given = ['test' if i % 7 == 0 else None for i in range(600)]
  split = assign(labels, groups, given)
  np.testing.assert_array_equal(split == 'test', np.arange(600) % 7 == 0)
  rest = np.bincount(np.array(labels)[split != 'test'])
  assert table(labels, split)['validation'] == np.rint(0.1 * rest).tolist()


def test_a_given_validation_part_is_kept_and_no_other_is_drawn():
  labels, groups = alone(500, 100)
  given = [('validation', None, 'train')[min(i % 9, 2)] for i in range(600)]
  split = assign(labels, groups, given)
  np.testing.assert_array_equal(split == 'validation', np.arange(600) % 9 == 0)
  rest = np.bincount(np.array(labels)[split != 'validation'])
  assert table(labels, split)['test'] == np.rint(0.1 * rest).tolist()


def test_parts_that_are_all_given_stay_as_they_are():
  labels, groups = alone(80, 40)
  given = [SIDES[i % 3] for i in range(120)]
  assert assign(labels, groups, given).tolist() == given


def test_the_shares_are_those_asked_for():
  labels, groups = alone(1000, 200)
  split = assign(labels, groups, test=0.2, validation=0.25)
  assert table(labels, split) == {
    'test': [200, 40],
    'validation': [200, 40],
    'train': [600, 120],
  }


def test_a_share_of_0_draws_none():
  labels, groups = alone(100, 20)
  assert table(labels, assign(labels, groups, test=0.0))['test'] == [0, 0]
  split = assign(labels, groups, validation=0.0)
  assert table(labels, split)['validation'] == [0, 0]
  assert table(labels, split)['test'] == [10, 2]


@pytest.mark.parametrize('share', (-0.1, 1.0, float('nan')))
def test_a_share_out_of_range_is_one_line(share):
  with pytest.raises(UserError, match=r'config\.split\.test') as caught:
    assign(*alone(30), test=share)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'one, other',
  [
    ('test', None),
    ('test', 'train'),
    ('test', 'validation'),
    ('validation', None),
    ('validation', 'train'),
  ],
)
def test_a_patient_on_two_sides_of_the_source_is_named_in_one_line(one, other):
  labels, groups = alone(50)
  groups[3] = groups[30] = 'patient 12'
  given = [one if i < 10 else other for i in range(50)]
  with pytest.raises(UserError, match='patient 12') as caught:
    assign(labels, groups, given)
  assert '\n' not in str(caught.value)
  # Not even if they are the same image.
  with pytest.raises(UserError, match='patient 12'):
    assign(labels, groups, given, [(3, 30)])


def test_a_name_with_a_line_end_does_not_break_the_line():
  labels, _ = alone(30, 10)
  with pytest.raises(UserError, match=r"patient 'Doe\\nJane' \(") as drawn:
    assign(labels, ['Doe\nJane'] * 40)
  given = ['test'] * 4 + ['train'] * 36
  with pytest.raises(UserError, match=r"patient 'Doe\\nJane' is") as kept:
    assign(labels, ['Doe\nJane'] * 40, given)
  for caught in (drawn, kept):
    assert str(caught.value).isprintable()


def test_one_patient_with_most_images_is_named_in_one_line():
  # As where a hospital wrote the same word into every file.
  labels, _ = alone(30, 10)
  with pytest.raises(UserError, match='ANONYMOUS') as caught:
    assign(labels, ['ANONYMOUS'] * 40)
  message = str(caught.value)
  assert '40 of 40' in message and 'config.split.unit=image' in message
  assert '\n' not in message
  # Nothing is to be drawn, or hardly anything is there.
  split = assign(labels, ['ANONYMOUS'] * 40, test=0.0, validation=0.0)
  assert (split == 'train').all()
  assert (assign([0] * 19, ['ANONYMOUS'] * 19) == 'train').all()
  assert (assign(*alone(4, 4, 4, 4, 4)) == 'train').all()


def test_copies_join_their_patients_through_any_chain():
  labels, groups = alone(60)
  # 0-1-2-... in fives.
  pairs = [(i, i + 1) for i in range(59) if i % 5 != 4]
  split = assign(labels, groups, pairs=pairs)
  assert all(len(set(split[i : i + 5])) == 1 for i in range(0, 60, 5))
  assert set(split) == set(SIDES)


def test_copies_of_a_given_test_part_are_left_out_elsewhere():
  labels, groups = alone(60)
  given = ['test'] * 10 + ['validation'] * 10 + ['train'] * 40
  # 0 and 1 may both be tested; 11 is copied from 2, 31 from 30 from 3, and 41
  # from 12; 50 and 51 are the training part's own affair.
  pairs = [(0, 1), (2, 11), (3, 30), (30, 31), (12, 41), (50, 51)]
  split = assign(labels, groups, given, pairs)
  wanted = np.array(given, '<U10')
  wanted[[11, 30, 31, 41]] = 'left_out'
  np.testing.assert_array_equal(split, wanted)


def test_a_patient_with_a_copy_of_a_given_part_is_left_out_whole():
  labels, groups = alone(60)
  given = ['test'] * 10 + ['validation'] * 10 + ['train'] * 40
  # 40 copies a test image, and 41 and 12 are of one patient with it, under two
  # names: 12 is a copy of 41.
  groups[40] = groups[41] = 'patient 7'
  # 50 copies a validation image, and 51 is of its patient.
  groups[50] = groups[51] = 'patient 8'
  pairs = [(0, 40), (41, 12), (15, 50)]
  split = assign([*labels, None], [*groups, 'patient 8'], [*given, None], pairs)
  wanted = np.array([*given, 'left_out'], '<U10')
  wanted[[40, 41, 12, 50, 51]] = 'left_out'
  np.testing.assert_array_equal(split, wanted)


def test_where_no_given_validation_image_is_left_some_are_drawn():
  labels, groups = alone(60)
  given = ['test'] * 10 + ['validation'] * 2 + ['train'] * 48
  split = assign(labels, groups, given, [(0, 10), (1, 11)])
  np.testing.assert_array_equal(split[:10], 'test')
  np.testing.assert_array_equal(split[10:12], 'left_out')
  assert table(labels, split)['validation'] == [5]  # of 48


def test_an_image_without_a_label_of_a_held_out_patient_is_left_out():
  labels, groups = alone(100)
  split = assign(labels + [None] * 100, groups + groups)
  held_out = np.isin(split[:100], ('test', 'validation'))
  assert held_out.sum() == 19
  np.testing.assert_array_equal(split[100:] == 'left_out', held_out)
  np.testing.assert_array_equal(split[100:] == 'unlabelled', ~held_out)


def test_an_image_without_a_label_that_copies_a_held_out_one_is_left_out():
  labels, groups = alone(40)
  given = ['test'] * 4 + [None] * 36
  split = assign(
    [*labels, None, None], [*groups, 'u', 'v'], given + [None] * 2, [(3, 40)]
  )
  assert split[40:].tolist() == ['left_out', 'unlabelled']


@st.composite
def sets(draw):
  """(labels, patients, given, pairs); patients on one side of the source."""
  count = draw(st.integers(1, 60))

  def each(values):
    return draw(st.lists(values, min_size=count, max_size=count))

  labels = each(st.sampled_from((None, 0, 0, 0, 1, 2)))
  numbers = each(st.integers(0, count - 1))
  known = draw(st.sampled_from(((None,), (None, *SIDES), SIDES)))
  sides = each(st.sampled_from(known))  # by patient
  place = st.integers(0, count - 1)
  pairs = draw(st.lists(st.tuples(place, place), max_size=20))
  pairs = [pair for pair in pairs if pair[0] != pair[1]]
  patients = [f'patient {number}' for number in numbers]
  return labels, patients, [sides[number] for number in numbers], pairs


def linked(nodes, pairs):
  """Sets of nodes that pairs link, by hand."""
  found = [{node} for node in nodes]
  for one, other in pairs:
    first = next(part for part in found if one in part)
    second = next(part for part in found if other in part)
    if first is not second:
      first |= second
      found.remove(second)
  return found


def assigned(one, **kwargs):
  """The split, or None where most images are of one group."""
  try:
    return assign(*one, **kwargs)
  except ValueError as error:
    assert 'no image can be drawn' in str(error)
    return None


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(one=sets(), seed=st.integers(0, 9))
def test_nothing_is_on_two_sides_and_nothing_is_lost(one, seed):
  labels, patients, given, pairs = one
  split = assigned(one, seed=seed)
  hypothesis.assume(split is not None)
  rows = range(len(labels))
  links = [(patients.index(patients[i]), i) for i in rows]
  groups = linked(rows, pairs + links)

  def held_out(part):
    """The side of the source that has a group, if one has."""
    sides = {given[i] for i in part if labels[i] is not None}
    return next((s for s in ('test', 'validation') if s in sides), None)

  kept = {held_out(part) for part in groups} - {None}
  for part in groups:
    side = held_out(part)
    if side:
      # What the source holds out stays as it is, and the rest of the group is
      # nowhere.
      for i in part:
        own = labels[i] is not None and given[i] == side
        assert split[i] == (side if own else 'left_out')
      continue
    # All others are whole on a side that is drawn, or in training, with nothing
    # lost but what pre-training must not see.
    sides = {str(split[i]) for i in part if labels[i] is not None}
    assert len(sides) <= 1 and sides <= {*SIDES} - kept
    rest = 'left_out' if sides - {'train'} else 'unlabelled'
    assert all(split[i] == rest for i in part if labels[i] is None)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(one=sets(), order=st.randoms(use_true_random=False))
def test_the_order_does_not_matter_with_copies_and_given_sides(one, order):
  labels, patients, given, pairs = one
  new = list(range(len(labels)))
  order.shuffle(new)  # new[k]: what now stands at k
  at = {old: k for k, old in enumerate(new)}
  shuffled = (
    [labels[i] for i in new],
    [patients[i] for i in new],
    [given[i] for i in new],
    [(at[i], at[j]) for i, j in reversed(pairs)],
  )
  first, second = assigned(one), assigned(shuffled)
  if first is None or second is None:
    assert first is second is None
  else:
    np.testing.assert_array_equal(second, first[new])


def test_images_without_a_label_are_neither_trained_on_nor_tested():
  labels, groups = alone(100, 20)
  mixed = labels + [None] * 30
  # Even a test part: nothing can be scored without labels.
  given = [None] * 120 + ['test'] * 30
  split = assign(mixed, groups + [f'u{i}' for i in range(30)], given)
  assert (split[120:] == 'unlabelled').all()
  np.testing.assert_array_equal(split[:120], assign(labels, groups))


def test_a_set_without_any_label_is_all_unlabelled():
  assert (assign([None] * 9, list('abcdefghi')) == 'unlabelled').all()
