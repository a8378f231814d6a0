"""The stream of batches: one global order, whatever reads it."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
import scipy.stats

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


def indices(num_records, epochs, seed):
  """The order of whole epochs, (epochs, num_records), all in one batch."""
  spec = pipeline.BatchSpec(image_size=32, host=False, images=False)
  size = num_records * epochs
  (batch,) = take(make(num_records, seed, size, spec=spec), 1)
  return batch['index'].reshape(epochs, num_records)


def test_each_epoch_is_any_permutation_whatever_the_others_are():
  records, epochs = 8, 4000
  order = indices(records, epochs, seed=3)
  np.testing.assert_array_equal(np.sort(order), [range(records)] * epochs)
  # How often each record has each place: chi-squared of 7 x 7 degrees.
  expected = epochs / records
  counts = np.array(
    [np.bincount(order[:, i], minlength=records) for i in range(records)]
  )
  freedom = (records - 1) ** 2
  distance = ((counts - expected) ** 2 / expected).sum()
  assert abs(distance - freedom) < 5 * np.sqrt(2 * freedom)
  # The correlation of two orders has the variance 1 / (n - 1).
  error = 4 / np.sqrt((records - 1) * epochs)
  for other in (np.roll(order, 1, axis=0), indices(records, epochs, seed=4)):
    centred = (order - 3.5) * (other - 3.5)
    assert abs(centred.mean() / np.var(range(records))) < error


@pytest.mark.parametrize(
  ('shuffle', 'wanted'),
  [
    (
      'numpy',
      [
        9,
        6,
        0,
        2,
        1,
        4,
        7,
        5,
        3,
        8,
        4,
        1,
        2,
        8,
        5,
        0,
        7,
        9,
        6,
        3,
        7,
        4,
        1,
        8,
      ],
    ),
    (
      'grain',
      [
        4,
        6,
        9,
        7,
        5,
        3,
        1,
        8,
        2,
        0,
        8,
        1,
        3,
        7,
        9,
        0,
        5,
        4,
        2,
        6,
        4,
        0,
        7,
        9,
      ],
    ),
  ],
)
def test_an_order_stays_what_runs_have_begun_with(shuffle, wanted):
  """As recorded with numpy 2.4 and Grain 0.2.18."""
  batches = take(make(n=10, batch_size=8, shuffle=shuffle), 3)
  assert np.concatenate([b['index'] for b in batches]).tolist() == wanted


def test_the_stream_draws_by_the_law_of_the_decisions():
  settings = drawn_views.USUAL
  spec = pipeline.BatchSpec(
    image_size=32, augmentation=settings, host=False, images=False
  )
  batches = take(make(n=50, batch_size=10_000, spec=spec), 2)
  drawn = {
    name: np.stack([b['decisions'][name][:, 0] for b in batches])
    for name in batches[0]['decisions']
  }
  linear = drawn['affine'][..., :2].astype(np.float64)
  area = np.linalg.det(linear)
  low, high = settings.scale
  for values, start, stop in (
    (abs(area), low, high),
    (drawn['gain'], 1 - settings.contrast, 1 + settings.contrast),
    (drawn['noise_seed'], 0, 2**32),
  ):
    uniform = scipy.stats.uniform(start, stop - start)
    for batch in values:
      assert scipy.stats.kstest(batch, uniform.cdf).pvalue > 1e-4
    # Of one batch nothing is known from the one before, nor of one record in
    # it from the next: 4 deviations.
    for one, other in (values, (values[0, 1:], values[0, :-1])):
      assert abs(np.corrcoef(one, other)[0, 1]) < 0.04
  assert abs((area < 0).mean() - settings.flip) < 4 * 0.5 / np.sqrt(area.size)


@pytest.mark.parametrize('shuffle', ['numpy', 'grain'])
@pytest.mark.parametrize('consumed', [1, 3, 7])
def test_a_restored_iterator_goes_on_at_the_exact_element(consumed, shuffle):
  dataset = make(prefetch=8, shuffle=shuffle)
  expected = take(dataset, 10)[consumed:]
  iterator = iter(dataset)
  for _ in range(consumed):
    next(iterator)
  state = iterator.get_state()  # of the consumed, not of the prefetched
  iterator.close()
  restored = iter(make(prefetch=8, shuffle=shuffle))
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
  images = np.concatenate([b['images'] for b in batches])[valid > 0]
  np.testing.assert_array_equal(images, records.splits[0].pixels)


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
def test_what_is_not_augmented_goes_as_it_is_stored_whoever_renders(host):
  split = fakes.make_split(5, 48, seed=0)
  spec = pipeline.BatchSpec(image_size=32, host=host)
  (batch,) = take(
    pipeline.sequential(pipeline.Records((split,)), spec, batch_size=5), 1
  )
  assert set(batch) == {'index', 'label', 'valid', 'images'}
  np.testing.assert_array_equal(batch['images'], split.pixels)


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
