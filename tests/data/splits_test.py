"""The paper's split, by whole groups."""

import collections

import numpy as np
import pytest

from dpjax.data import splits

SIDES = ('train', 'validation', 'test')


def alone(*counts):
  """Labels with so many of each class, every image its own group."""
  labels = np.repeat(np.arange(len(counts)), counts).tolist()
  return labels, [f'g{i:05d}' for i in range(len(labels))]


def assign(labels, groups, given=None, seed=0):
  given = [None] * len(labels) if given is None else given
  return splits.assign(labels, groups, given, seed)


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


def test_a_group_on_both_sides_of_a_given_test_part_is_named_in_one_line():
  labels, groups = alone(50)
  groups[3] = groups[30] = 'patient 12'
  given = ['test' if i < 10 else None for i in range(50)]
  with pytest.raises(ValueError, match='patient 12') as caught:
    assign(labels, groups, given)
  assert '\n' not in str(caught.value)


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
