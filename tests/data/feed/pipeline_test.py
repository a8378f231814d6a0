"""The stream of batches: one global order, whatever reads it."""

import collections
import dataclasses

import jax
import numpy as np
import pytest

from dpjax.data.feed import pipeline
from tests import fakes
from tests.data.feed import drawn_views

SIDES = (('stage1', 8), ('stage2', 4))


def make(n=20, seed=3, batch_size=8, **kwargs):
  spec = kwargs.pop('spec', None) or pipeline.BatchSpec(
    image_size=32,
    augmentation=dataclasses.replace(drawn_views.USUAL, keep_lesions=True),
    mask_sides=SIDES,
    host=kwargs.pop('host', True),
  )
  records = pipeline.Records((fakes.make_split(n, 32, seed=0),))
  return pipeline.training(
    records, spec, batch_size=batch_size, seed=seed, **kwargs
  )


def take(dataset, count):
  iterator = iter(dataset)
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('host', [True, False])
def test_any_number_of_processes_reads_the_same_global_batches(processes, host):
  whole = take(make(host=host), 4)
  shares = [
    take(make(host=host, process=(i, processes)), 4) for i in range(processes)
  ]
  for step, batch in enumerate(whole):
    joined = jax.tree.map(
      lambda *parts: np.concatenate(parts), *[s[step] for s in shares]
    )
    assert_equal(joined, batch)


def test_threads_and_prefetch_change_nothing():
  one = take(make(threads=1, prefetch=1), 4)
  assert_equal(take(make(threads=4, prefetch=8), 4), one)


def test_every_record_comes_once_an_epoch_in_a_new_order():
  batches = take(make(n=24, batch_size=8), 6)
  index = np.concatenate([b['index'] for b in batches]).reshape(2, 24)
  for epoch in index:
    assert sorted(epoch) == list(range(24))
  assert (index[0] != index[1]).any()


def test_batches_run_across_epochs_without_dropping_a_record():
  batches = take(make(n=20, batch_size=8), 5)
  seen = collections.Counter(np.concatenate([b['index'] for b in batches]))
  assert seen == dict.fromkeys(range(20), 2)


def test_each_row_carries_its_own_record():
  split = fakes.make_split(20, 32, seed=0)
  for batch in take(make(host=False), 4):
    index = batch['index']
    np.testing.assert_array_equal(batch['label'], split.labels[index])
    np.testing.assert_array_equal(batch['images'], split.pixels[index])
    np.testing.assert_array_equal(batch['boxes'], split.boxes[index])


def test_the_seed_decides_order_and_decisions():
  one = take(make(host=False), 2)
  assert_equal(take(make(host=False), 2), one)
  other = take(make(host=False, seed=4), 2)
  assert (one[0]['index'] != other[0]['index']).any()
  assert (
    one[0]['decisions']['affine'] != other[0]['decisions']['affine']
  ).any()


def test_a_record_is_augmented_anew_each_epoch():
  batches = take(make(n=8, batch_size=8, host=False), 2)
  first, second = (
    b['decisions']['affine'][np.argsort(b['index'])] for b in batches
  )
  assert (first != second).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize('consumed', [1, 3, 7])
def test_a_restored_iterator_goes_on_at_the_exact_element(consumed):
  dataset = make(prefetch=8)
  expected = take(dataset, 10)[consumed:]
  iterator = iter(dataset)
  for _ in range(consumed):
    next(iterator)
  state = iterator.get_state()  # of the consumed, not of the prefetched
  iterator.close()
  restored = iter(make(prefetch=8))
  restored.set_state(state)
  assert_equal([next(restored) for _ in expected], expected)
  restored.close()


def test_the_state_is_the_same_in_every_process():
  states = []
  for process in range(2):
    iterator = iter(make(process=(process, 2)))
    next(iterator), next(iterator)
    states.append(iterator.get_state())
    iterator.close()
  assert states[0] == states[1]


def test_pretraining_pairs_differ_and_share_their_radiograph():
  spec = pipeline.BatchSpec(
    image_size=32, augmentation=drawn_views.USUAL, views=2
  )
  batch = take(make(spec=spec), 1)[0]
  assert batch['views'].shape == (8, 2, 32, 32)
  assert 'masks' not in batch
  assert (batch['views'][:, 0] != batch['views'][:, 1]).any(axis=(1, 2)).all()


def test_a_plain_anchor_is_the_image_itself():
  spec = pipeline.BatchSpec(
    image_size=32,
    augmentation=drawn_views.USUAL,
    views=2,
    plain_anchor=True,
  )
  batch = take(make(spec=spec), 1)[0]
  pixels = fakes.make_split(20, 32, seed=0).pixels[batch['index']]
  np.testing.assert_array_equal(batch['views'][:, 0], pixels)
  assert (batch['views'][:, 1] != pixels).any(axis=(1, 2)).all()


def test_sequential_gives_every_record_once_in_order_and_marks_the_filling():
  records = pipeline.Records((fakes.make_split(13, 32, seed=0),))
  batches = list(
    pipeline.sequential(
      records, pipeline.BatchSpec(image_size=32), batch_size=5
    )
  )
  valid = np.concatenate([b['valid'] for b in batches])
  index = np.concatenate([b['index'] for b in batches])
  assert len(batches) == 3 and valid.sum() == 13
  np.testing.assert_array_equal(index[valid > 0], np.arange(13))
  views = np.concatenate([b['views'] for b in batches])[valid > 0]
  np.testing.assert_array_equal(views[:, 0], records.splits[0].pixels)


def test_several_sets_are_one_row_of_records():
  a = fakes.make_split(5, 32, seed=0)
  b = fakes.make_split(7, 32, seed=1, num_classes=4)
  both = pipeline.Records((a, b))
  order = np.array([11, 0, 5, 4, 6])
  np.testing.assert_array_equal(
    both.images(order), np.concatenate([a.pixels, b.pixels])[order]
  )
  assert both.column('boxes').shape == (12, 3, 4)
  assert len(both) == 12


@pytest.mark.parametrize('host', [True, False])
def test_masks_follow_the_crop_on_either_side(host):
  batch = take(make(host=host), 1)[0]
  if host:
    assert {k: m.shape for k, m in batch['masks'].items()} == {
      'stage1': (8, 8, 8),
      'stage2': (8, 4, 4),
    }
    # The crops keep the lesions, so a mask is there where a label is.
    covered = batch['masks']['stage1'].sum(axis=(1, 2)) > 0
    np.testing.assert_array_equal(covered, batch['label'] > 0)
  else:
    assert 'masks' not in batch and batch['boxes'].shape == (8, 2, 4)


@pytest.mark.parametrize('host', [True, False])
@pytest.mark.parametrize('normal', [True, False])
def test_an_image_with_a_lesion_and_no_box_is_marked(host, normal):
  split = fakes.make_split(12, 32, seed=0)  # labels 0, 1, 2, 0, 1, 2, ...
  split.num_boxes[[1, 5]] = 0
  spec = pipeline.BatchSpec(
    image_size=32, mask_sides=SIDES, host=host, normal=normal
  )
  (batch,) = take(
    pipeline.sequential(pipeline.Records((split,)), spec, batch_size=12), 1
  )
  # Where label 0 is a disease, an image of it without a box is unknown too.
  unknown = {1, 5} if normal else {0, 1, 3, 5, 6, 9}
  assert set(np.flatnonzero(batch['annotated'] == 0)) == unknown
