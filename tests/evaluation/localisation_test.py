"""Claims about dpjax.evaluation.localisation."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dpjax.errors import UserError
from dpjax.evaluation import localisation
from dpjax.metrics import resampling

SIZE = 24


def examples(count=12, shape=(6, 6), seed=0):
  """Maps with zeros and ties, boxes that overlap, touch edges and are thin."""
  rng = np.random.default_rng(seed)
  maps = np.maximum(rng.integers(-3, 8, (count, *shape)), 0) / 7
  maps[:, 0, 0] += 0.1
  corner = rng.uniform(0, 0.7, (count, 3, 2))
  side = rng.uniform(0.02, 0.5, (count, 3, 2))
  boxes = np.concatenate([corner, np.minimum(corner + side, 1)], -1)
  num_boxes = rng.integers(1, 4, count)
  return maps.astype(np.float32), boxes.astype(np.float32), num_boxes


def loop_upscaled(grid, size):
  """Bilinear with half-pixel centres and repeated edges, pixel by pixel."""
  h, w = grid.shape
  out = np.zeros((size, size))
  for i in range(size):
    for j in range(size):
      y = min(max((i + 0.5) * h / size - 0.5, 0), h - 1)
      x = min(max((j + 0.5) * w / size - 0.5, 0), w - 1)
      a, b = int(y), int(x)
      c, d = min(a + 1, h - 1), min(b + 1, w - 1)
      v, u = y - a, x - b
      out[i, j] = (1 - v) * ((1 - u) * grid[a, b] + u * grid[a, d])
      out[i, j] += v * ((1 - u) * grid[c, b] + u * grid[c, d])
  return out


def loop_mask(boxes, size):
  mask = np.zeros((size, size), bool)
  for x0, y0, x1, y1 in np.asarray(boxes, np.float64):
    for i in range(size):
      for j in range(size):
        x, y = (j + 0.5) / size, (i + 0.5) / size
        mask[i, j] |= x0 <= x < x1 and y0 <= y < y1
  return mask


def one(grid, boxes, size=None, threshold=0.5):
  """The scores of one map, as floats."""
  boxes = np.array([boxes])
  grid = np.array([grid])
  found = localisation.per_image(
    grid, boxes, np.array([boxes.shape[1]]), size or grid.shape[1], threshold
  )
  return {name: float(value[0]) for name, value in found.items()}


def test_scores_of_a_map_of_two_by_two_by_hand():
  left = [[0, 0, 0.5, 1]]
  assert one([[4, 1], [2, 1]], left) == {
    'pointing_game': 1,
    'energy_in_box': 6 / 8,
    'iou': 1,  # 4 and 2 are at least half of 4
    # By value: 4 of the lesion, 2 of the lesion.
    'pixel_ap': 1,
  }
  found = one([[1, 4], [2, 0]], left, threshold=0.5)
  assert found['pointing_game'] == 0
  assert found['energy_in_box'] == 3 / 7
  assert found['iou'] == 1 / 3  # right top and left bottom are bright
  # 4 is not; 2 is, precision 1/2; 1 is, precision 2/3.
  assert found['pixel_ap'] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_scores_equal_brute_force_and_scikit_learn_on_upscaled_maps():
  maps, boxes, num_boxes = examples(shape=(5, 6))
  found = localisation.per_image(maps, boxes, num_boxes, SIZE, 0.35)
  for i in range(len(maps)):
    grid = loop_upscaled(maps[i].astype(np.float64), SIZE)
    lesion = loop_mask(boxes[i, : num_boxes[i]], SIZE)
    assert lesion.any()
    flat, truth = grid.ravel(), lesion.ravel()
    energy = flat[truth].sum() / flat.sum()
    assert found['energy_in_box'][i] == pytest.approx(energy, abs=1e-5)
    iou = metrics.jaccard_score(truth, flat >= 0.35 * flat.max())
    assert found['iou'][i] == pytest.approx(iou, abs=0.01)
    # Rounding to float32 makes ties here and breaks others there.
    ap = metrics.average_precision_score(truth, flat.round(6))
    assert found['pixel_ap'][i] == pytest.approx(ap, abs=0.01)
    assert found['pointing_game'][i] == lesion.ravel()[flat.argmax()]


def test_pixel_ap_is_scikit_learns_to_rounding_with_ties_and_without():
  maps, boxes, num_boxes = examples(shape=(SIZE, SIZE), seed=1)
  maps[3] = np.random.default_rng(2).random((SIZE, SIZE))  # no ties
  maps[4] = 0.25  # nothing else
  maps[5, 0, :4] = -0.0  # equal to 0
  found = localisation.per_image(maps, boxes, num_boxes, SIZE, None)
  for i in range(len(maps)):
    lesion = localisation.lesion_mask(boxes[i, : num_boxes[i]], SIZE)
    expected = metrics.average_precision_score(lesion.ravel(), maps[i].ravel())
    assert found['pixel_ap'][i] == pytest.approx(expected, rel=1e-12)


def test_of_equal_maxima_the_share_inside_counts():
  left = [[0, 0, 0.5, 1]]
  assert one([[3, 3], [3, 0]], left)['pointing_game'] == pytest.approx(2 / 3)
  assert one(np.ones((4, 4)), [[0, 0, 1, 0.25]])['pointing_game'] == 0.25


def test_overlapping_boxes_count_once():
  twice = [[0, 0, 0.5, 1], [0, 0, 0.5, 0.5]]
  assert one([[4, 1], [2, 1]], twice) == one([[4, 1], [2, 1]], twice[:1])


def test_a_map_of_zeros_points_nowhere():
  found = one(np.zeros((4, 4)), [[0, 0, 0.5, 0.5]])
  assert found == {
    'pointing_game': 0,
    'energy_in_box': 0,
    'iou': 0,
    'pixel_ap': 0.25,
  }


def test_a_map_equal_to_the_lesion_has_every_score_of_one():
  _, boxes, num_boxes = examples()
  maps = np.stack(
    [
      localisation.lesion_mask(own[:count], SIZE)
      for own, count in zip(boxes, num_boxes, strict=True)
    ]
  )
  found = localisation.per_image(maps, boxes, num_boxes, SIZE, 0.5)
  for value in found.values():
    np.testing.assert_allclose(value, 1, rtol=1e-12)


def test_scores_do_not_depend_on_a_maps_scale():
  maps, boxes, num_boxes = examples()
  a, b = (
    localisation.per_image(m, boxes, num_boxes, SIZE, 0.4)
    for m in (maps, 8 * maps)
  )
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=1e-6)


def test_half_precision_maps_are_taken():
  maps, boxes, num_boxes = examples()
  found = localisation.per_image(
    maps.astype(np.float16), boxes, num_boxes, SIZE, 0.4
  )
  wanted = localisation.per_image(
    maps.astype(np.float16).astype(np.float64), boxes, num_boxes, SIZE, 0.4
  )
  for name in found:
    np.testing.assert_array_equal(found[name], wanted[name])


@pytest.mark.parametrize('seed', range(5))
def test_a_mask_is_that_of_the_pixels_whose_centre_is_in_a_box(seed):
  rng = np.random.default_rng(seed)
  low = rng.uniform(0, 0.7, (4, 2))
  boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (4, 2))], -1)
  # Edges on centres and on edges of pixels.
  boxes[0] = [0.5 / SIZE, 3 / SIZE, 4.5 / SIZE, 9.5 / SIZE]
  boxes[1] = [0, 0, 1 / SIZE, 1]
  mask = localisation.lesion_mask(boxes, SIZE)
  np.testing.assert_array_equal(mask, loop_mask(boxes, SIZE))


@pytest.mark.parametrize(
  'box, row, column',
  [
    ([0.51, 0.26, 0.52, 0.27], 1, 2),  # between centres
    ([0.99, 0.999, 1, 1], 3, 3),
    ([0, 0, 0.01, 0.01], 0, 0),
    ([0.3, 0.3, 0.3, 0.3], 1, 1),  # no area
  ],
)
def test_a_box_smaller_than_a_pixel_keeps_its_nearest(box, row, column):
  mask = localisation.lesion_mask(np.array([box]), 4)
  assert [*zip(*np.nonzero(mask), strict=True)] == [(row, column)]


def test_a_thin_box_keeps_its_whole_length():
  mask = localisation.lesion_mask(np.array([[0.0, 0.4, 1.0, 0.41]]), 4)
  np.testing.assert_array_equal(np.nonzero(mask)[0], [1, 1, 1, 1])


def test_the_threshold_is_the_one_of_the_best_mean_iou():
  maps, boxes, num_boxes = examples(30, seed=3)
  chosen = localisation.choose_threshold(maps, boxes, num_boxes, SIZE)
  means = {
    t: localisation.per_image(maps, boxes, num_boxes, SIZE, t)['iou'].mean()
    for t in (k / 20 for k in range(1, 20))
  }
  assert chosen == max(means, key=means.get)


def test_of_thresholds_that_are_as_good_the_lowest_is_chosen():
  lesion = np.zeros((1, 4, 4))
  lesion[:, :2] = 1
  lesion[:, 3] = 0.12
  box = np.array([[[0, 0, 1, 0.5]]])
  assert localisation.choose_threshold(lesion, box, np.array([1]), 4) == 0.15


def test_without_a_threshold_only_the_iou_is_undefined():
  maps, boxes, num_boxes = examples()
  found = localisation.per_image(maps, boxes, num_boxes, SIZE, None)
  scores, intervals = localisation.summarise(found, resamples=20, seed=0)
  assert [name for name, value in scores.items() if value is None] == ['iou']
  assert [name for name, value in intervals.items() if value is None] == ['iou']
  difference = localisation.paired(found, found, resamples=20, seed=0)
  assert difference['iou'] == {'difference': None, 'interval': None}
  json.dumps([scores, intervals, difference], allow_nan=False)


def test_baselines_are_seeded_noise_a_centred_bell_and_the_mean_mask():
  _, boxes, num_boxes = examples(6)
  num_boxes[0] = 0
  made = localisation.baselines(3, (5, 4), 8, boxes, num_boxes, seed=1)
  again = localisation.baselines(3, (5, 4), 8, boxes, num_boxes, seed=1)
  other = localisation.baselines(3, (5, 4), 8, boxes, num_boxes, seed=2)
  assert {k: v.shape for k, v in made.items()} == {
    'random': (3, 5, 4),
    'centre': (3, 8, 8),
    'prior': (3, 8, 8),
  }
  np.testing.assert_array_equal(made['random'], again['random'])
  assert not np.array_equal(made['random'], other['random'])
  assert not np.array_equal(made['random'][0], made['random'][1])
  y, x = np.mgrid[:8, :8] - 3.5
  bell = np.exp(-(x**2 + y**2) / (2 * 2**2))  # deviation 8 / 4
  np.testing.assert_allclose(made['centre'][2], bell, rtol=1e-5)
  masks = [
    localisation.lesion_mask(boxes[i, : num_boxes[i]], 8) for i in range(1, 6)
  ]
  np.testing.assert_allclose(made['prior'][1], np.mean(masks, 0), rtol=1e-6)


def test_without_a_lesion_in_training_there_is_no_prior():
  _, boxes, num_boxes = examples(4)
  made = localisation.baselines(2, (4, 4), 8, boxes, 0 * num_boxes, seed=0)
  assert made.keys() == {'random', 'centre'}


def test_noise_scores_as_chance_does():
  _, boxes, num_boxes = examples(400, seed=4)
  noise = localisation.baselines(
    400, (SIZE, SIZE), SIZE, boxes, num_boxes, seed=0
  )['random']
  found = localisation.per_image(noise, boxes, num_boxes, SIZE, None)
  area = np.mean(
    [
      loop_mask(own[:count], SIZE).mean()
      for own, count in zip(boxes, num_boxes, strict=True)
    ]
  )
  for name in ('pointing_game', 'energy_in_box'):
    assert found[name].mean() == pytest.approx(area, abs=0.06)


def test_intervals_are_those_of_scipys_percentile_bootstrap():
  values = np.random.default_rng(5).beta(0.5, 0.7, 80)
  scores, intervals = localisation.summarise(
    {'iou': values}, resamples=20_000, seed=0
  )
  expected = stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method='percentile', rng=1
  ).confidence_interval
  assert scores['iou'] == pytest.approx(values.mean())
  np.testing.assert_allclose(intervals['iou'], expected, atol=0.003)


def test_equal_seeds_give_equal_intervals_and_blocks_change_nothing(
  monkeypatch,
):
  values = {name: np.random.default_rng(6).random(50) for name in 'ab'}
  first = localisation.summarise(values, resamples=101, seed=3)
  monkeypatch.setattr(localisation, '_BLOCK', 500)
  assert localisation.summarise(values, resamples=101, seed=3) == first
  assert localisation.summarise(values, resamples=101, seed=4) != first


def test_a_paired_difference_knows_that_hard_images_are_hard_for_both():
  rng = np.random.default_rng(7)
  hard = rng.random(60)
  a = {'iou': hard + 0.02, 'energy_in_box': hard}
  b = {'iou': hard + rng.normal(0, 0.001, 60), 'pixel_ap': hard}
  found = localisation.paired(a, b, resamples=300, seed=0)
  assert found.keys() == {'iou'}
  low, high = found['iou']['interval']
  assert 0.019 < low <= found['iou']['difference'] <= high < 0.021
  same = localisation.paired(a, a, resamples=300, seed=0)
  assert same['iou'] == {'difference': 0, 'interval': [0, 0]}


def test_no_image_leaves_every_score_undefined():
  maps, boxes, num_boxes = (value[:0] for value in examples())
  found = localisation.per_image(maps, boxes, num_boxes, SIZE, 0.5)
  scores, intervals = localisation.summarise(found, resamples=10, seed=0)
  nothing = dict.fromkeys(localisation.SCORES)
  assert scores == nothing and intervals == nothing
  with pytest.raises(ValueError, match='1 image with boxes or more'):
    localisation.choose_threshold(maps, boxes, num_boxes, SIZE)


def negative(maps, boxes, num_boxes):
  maps[2, 1, 1] = -0.5
  return maps, boxes, num_boxes


def not_finite(maps, boxes, num_boxes):
  maps[2, 1, 1] = np.nan
  return maps, boxes, num_boxes


def no_box(maps, boxes, num_boxes):
  num_boxes[2] = 0
  return maps, boxes, num_boxes


def one_less(maps, boxes, num_boxes):
  return maps, boxes[1:], num_boxes


@pytest.mark.parametrize(
  'spoil, line',
  [
    (negative, r'map 2 runs from -0\.5 to .* not negative'),
    (not_finite, 'map 2 runs from nan to nan: it must be finite'),
    (no_box, 'image 2 has no box'),
    (one_less, r'boxes \(11, 3, 4\).* wanted \(N, h, w\)'),
  ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(spoil, line):
  with pytest.raises(ValueError, match=line) as error:
    localisation.per_image(*spoil(*examples()), SIZE, 0.5)
  assert '\n' not in str(error.value)


def test_pairs_of_other_lengths_and_impossible_resamples_are_refused():
  a, b = {'iou': np.ones(3)}, {'iou': np.ones(4)}
  with pytest.raises(ValueError, match='iou of 3 images against 4'):
    localisation.paired(a, b, resamples=10, seed=0)
  with pytest.raises(ValueError, match='resamples must be at least 1, not 0'):
    localisation.summarise(a, resamples=0, seed=0)
  with pytest.raises(ValueError, match='level must lie between 0 and 1'):
    localisation.summarise(a, resamples=10, seed=0, level=95)


def test_scores_come_back_from_their_file_in_the_order_of_the_ids(tmp_path):
  file = tmp_path / 'localisation.csv'
  scores = {
    'cam': {'pointing_game': np.array([1.0, 0.0]), 'iou': np.full(2, np.nan)},
    'att_pos/stage1': {'pointing_game': np.array([0.25, 0.5])},
  }
  localisation.write_scores(file, ['b', 'a'], scores)
  assert file.read_text().splitlines()[1] == 'b,1,,0.25'
  ids, found = localisation.read_scores(file)
  assert ids == ['a', 'b']
  assert set(found) == {'cam', 'att_pos/stage1'}
  assert found['cam'].keys() == {'pointing_game'}  # IoU is undefined there.
  np.testing.assert_array_equal(found['cam']['pointing_game'], [0, 1])
  np.testing.assert_array_equal(
    found['att_pos/stage1']['pointing_game'], [0.5, 0.25]
  )


@pytest.mark.parametrize(
  'content', [b'', b'id,cam/iou\na,x\n', b'id,cam/iou\na,1\nb\n', b'\xff\n']
)
def test_a_broken_file_of_scores_is_one_line(content, tmp_path):
  file = tmp_path / 'localisation.csv'
  file.write_bytes(content)
  with pytest.raises(UserError, match='no readable scores of maps') as caught:
    localisation.read_scores(file)
  assert str(file) in str(caught.value) and '\n' not in str(caught.value)


def test_maps_are_resampled_by_patient():
  rng = np.random.default_rng(2)
  values = {'iou': rng.random(30)}
  patients = rng.integers(12, size=30)
  _, intervals = localisation.summarise(
    values, resamples=80, seed=4, patients=patients
  )
  counts = np.concatenate(
    [*resampling.draws(np.zeros(30, int), 80, 4, False, patients)]
  )
  means = [np.mean(np.repeat(values['iou'], row.astype(int))) for row in counts]
  assert intervals['iou'] == pytest.approx(np.quantile(means, [0.025, 0.975]))
  other = {'iou': rng.random(30)}
  pair = localisation.paired(
    values, other, resamples=80, seed=4, patients=patients
  )
  minus = {'iou': values['iou'] - other['iou']}
  _, wanted = localisation.summarise(
    minus, resamples=80, seed=4, patients=patients
  )
  assert pair['iou']['interval'] == wanted['iou']
