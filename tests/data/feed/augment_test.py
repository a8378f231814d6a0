"""Decisions, the host's render and the lesion masks."""

import dataclasses
import math
import random

import numpy as np
import pytest
import shapely
from scipy import ndimage
from sklearn import ensemble, linear_model, metrics

from dpjax.data.feed import augment

STILL = augment.Augmentation(
  scale=(1, 1),
  aspect=1,
  flip=0,
  rotation=0,
  brightness=0,
  contrast=0,
  blur=0,
  noise=0,
)
NO_BOXES = np.zeros((1, 1, 4), np.float32), np.zeros(1, np.int32)


def random_boxes(rng, batch, most=4, share=1.0):
  """(B, K, 4) boxes of a pneumonia set's sizes; `share` of images have any."""
  side = rng.uniform(0.06, 0.4, (batch, most, 2))
  low = rng.uniform(0, 1, (batch, most, 2)) * (1 - side)
  boxes = np.concatenate([low, low + side], -1).astype(np.float32)
  num = rng.integers(1, most + 1, batch) * (rng.random(batch) < share)
  boxes[np.arange(most) >= num[:, None]] = 0
  return boxes, num.astype(np.int32)


def affine_of(
  width=1.0, height=1.0, center=(0.5, 0.5), flip=False, degrees=0.0
):
  """The documented map, step by step: turn, mirror, scale, move (2, 3)."""
  t = math.radians(degrees)
  turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
  mirror = np.diag([-1.0 if flip else 1.0, 1.0])
  linear = np.diag([width, height]) @ mirror @ turn
  offset = np.asarray(center) - linear @ [0.5, 0.5]
  return np.concatenate([linear, offset[:, None]], 1)


def decisions_of(affine):
  decisions = augment.identity(1)
  decisions['affine'] = np.asarray(affine, np.float32)[None, None]
  return decisions


def to_output(affine, points):
  """Source points (..., 2) to output points, in float64."""
  affine = np.asarray(affine, np.float64)
  return (points - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T


def corners(boxes):
  x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
  return np.stack([x0, y0, x1, y0, x1, y1, x0, y1], -1).reshape(*x0.shape, 4, 2)


# Decisions.


def test_decisions_lead_with_images_and_views():
  boxes, num = random_boxes(np.random.default_rng(0), 5)
  drawn = augment.draw(
    np.random.default_rng(1), boxes, num, augment.Augmentation(), 3
  )
  for decisions in (drawn, augment.identity(5, 3)):
    assert decisions['affine'].shape == (5, 3, 2, 3)
    assert decisions['noise_seed'].dtype == np.uint32
    for name in ('gain', 'bias', 'blur', 'noise', 'noise_seed'):
      assert decisions[name].shape == (5, 3)
    for name in ('affine', 'gain', 'bias', 'blur', 'noise'):
      assert decisions[name].dtype == np.float32


def test_the_same_generator_draws_the_same_decisions():
  boxes, num = random_boxes(np.random.default_rng(0), 16, share=0.5)
  lenders = boxes[num > 0], num[num > 0]
  settings = augment.Augmentation(keep_lesions=True)
  first, again = (
    augment.draw(np.random.default_rng(7), boxes, num, settings, 2, lenders)
    for _ in range(2)
  )
  other = augment.draw(
    np.random.default_rng(8), boxes, num, settings, 2, lenders
  )
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()


def test_boxes_shift_no_random_number():
  """All but the crop, and what comes after, is the same for any boxes."""
  boxes, num = random_boxes(np.random.default_rng(0), 64)
  settings = augment.Augmentation(keep_lesions=True)
  with_boxes, without = np.random.default_rng(3), np.random.default_rng(3)
  first = augment.draw(with_boxes, boxes, num, settings, 2, (boxes, num))
  second = augment.draw(without, boxes, 0 * num, settings, 2, (boxes, num))
  for name in ('gain', 'bias', 'blur', 'noise', 'noise_seed'):
    np.testing.assert_array_equal(first[name], second[name])
  assert with_boxes.random() == without.random()


def test_views_and_images_are_drawn_independently():
  drawn = augment.draw(
    np.random.default_rng(0),
    np.zeros((4000, 1, 4), np.float32),
    np.zeros(4000, np.int32),
    augment.Augmentation(),
    2,
  )
  for values in (drawn['gain'], drawn['affine'][..., 0, 2]):
    # 4 deviations of a correlation of 4000 independent pairs.
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.064
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.064


@pytest.mark.parametrize('scale', [(0.3, 0.7), (0.5, 1.0)])
def test_plain_crops_have_their_area_their_ratio_and_stay_inside(scale):
  count = 20_000
  settings = dataclasses.replace(STILL, scale=scale, aspect=1.5, flip=0.5)
  affine = augment.draw(
    np.random.default_rng(0),
    np.zeros((count, 1, 4), np.float32),
    np.zeros(count, np.int32),
    settings,
    1,
  )['affine'][:, 0].astype(np.float64)
  width, height = np.abs(affine[:, 0, 0]), affine[:, 1, 1]
  np.testing.assert_array_equal(affine[:, [0, 1], [1, 0]], 0)
  area, ratio = width * height, width / height
  # Uniform area: the mean is known to 4 standard errors.
  assert scale[0] - 1e-6 < area.min() and area.max() < scale[1] + 1e-6
  error = 4 * (scale[1] - scale[0]) / math.sqrt(12 * count)
  assert abs(area.mean() - sum(scale) / 2) < error
  assert 1 / 1.5 - 1e-6 < ratio.min() and ratio.max() < 1.5 + 1e-6
  assert abs(np.log(ratio).mean()) < 4 * math.log(1.5) / math.sqrt(3 * count)
  edges = affine @ np.array([[0, 1], [0, 1], [1, 1]])  # two corners
  assert edges.min() > -1e-6 and edges.max() < 1 + 1e-6
  center = affine @ [0.5, 0.5, 1]
  room = 1 - np.stack([width, height], -1)
  free = room > 1e-3  # where the crop can move
  place = ((center - 0.5) / np.where(free, room, 1))[free]  # in +-1/2
  assert abs(place.mean()) < 4 / math.sqrt(12 * place.size)
  assert abs(place.var() - 1 / 12) < 0.002
  flips = (affine[:, 0, 0] < 0).mean()
  assert abs(flips - 0.5) < 4 * 0.5 / math.sqrt(count)


def test_decided_strengths_fill_their_ranges():
  settings = augment.Augmentation()
  drawn = augment.draw(
    np.random.default_rng(0),
    np.zeros((20_000, 1, 4), np.float32),
    np.zeros(20_000, np.int32),
    settings,
    1,
  )

  def fills(values, low, high):
    slack = (high - low) / 100
    assert low - 1e-6 <= values.min() < low + slack
    assert high - slack < values.max() <= high + 1e-6
    assert abs(values.mean() - (low + high) / 2) < slack

  fills(drawn['gain'], 0.8, 1.2)
  fills(drawn['bias'], -51, 51)
  fills(drawn['blur'][drawn['blur'] > 0], *settings.blur_sigma)
  fills(drawn['noise'][drawn['noise'] > 0], *settings.noise_std)
  assert abs((drawn['blur'] > 0).mean() - 0.5) < 0.015
  assert abs((drawn['noise'] > 0).mean() - 0.3) < 0.015


@pytest.mark.parametrize('rotation', [0, 10, 45])
def test_kept_lesions_are_whole_inside_the_turned_frame(rotation):
  boxes, num = random_boxes(np.random.default_rng(0), 2000)
  boxes[:200, 0], num[:200] = (0, 0, 1, 1), 1  # the hardest: the whole image
  settings = augment.Augmentation(
    scale=(0.2, 1), rotation=rotation, keep_lesions=True
  )
  drawn = augment.draw(
    np.random.default_rng(1), boxes, num, settings, 2, (boxes, num)
  )
  for b in range(len(num)):
    for affine in drawn['affine'][b]:
      found = to_output(affine, corners(boxes[b, : num[b]]))
      assert found.min() > -1e-5 and found.max() < 1 + 1e-5


def test_keeping_lesions_leaves_a_crop_that_holds_them_alone():
  boxes, num = random_boxes(np.random.default_rng(0), 3000, most=1)
  plain = augment.Augmentation()
  keep = dataclasses.replace(plain, keep_lesions=True)
  first = augment.draw(np.random.default_rng(1), boxes, num, plain, 1)
  second = augment.draw(
    np.random.default_rng(1), boxes, num, keep, 1, (boxes, num)
  )
  found = np.stack(
    [
      to_output(affine, corners(box[0]))
      for affine, box in zip(first['affine'][:, 0], boxes, strict=True)
    ]
  )  # (B, 4, 2)
  held = ((found > 0) & (found < 1)).all((1, 2))
  same = np.isclose(first['affine'], second['affine'], atol=1e-6).all((1, 2, 3))
  assert 0.2 < held.mean() < 0.8  # both cases occur
  np.testing.assert_array_equal(same, held)


def crop_features(decisions):
  affine = decisions['affine'].reshape(-1, 2, 3).astype(np.float64)
  linear = affine[:, :, :2]
  width, height = np.linalg.norm(linear, axis=2).T
  center = affine @ [0.5, 0.5, 1]
  named = {
    'area': width * height,
    'width': width,
    'height': height,
    'x': center[:, 0],
    'y': center[:, 1],
    'off centre': np.abs(center - 0.5).max(1),
    'angle': np.arctan2(linear[:, 1, 0], linear[:, 1, 1]),
    'offset x': affine[:, 0, 2],
    'offset y': affine[:, 1, 2],
    'flip': np.linalg.det(linear) < 0,
  }
  for name in ('gain', 'bias', 'blur', 'noise', 'noise_seed'):
    named[name] = decisions[name].reshape(-1)
  return {name: np.asarray(x, np.float64) for name, x in named.items()}


def lesion_aurocs(boxes, num, lenders):
  """How well the decisions alone tell which images have a lesion."""
  settings = augment.Augmentation(scale=(0.3, 1), keep_lesions=True)
  drawn = augment.draw(
    np.random.default_rng(11), boxes, num, settings, 1, lenders
  )
  lesion = num > 0
  named = crop_features(drawn)
  scores = {name: metrics.roc_auc_score(lesion, x) for name, x in named.items()}
  scores = {name: max(score, 1 - score) for name, score in scores.items()}
  x = np.stack(list(named.values()), 1)
  x = (x - x.mean(0)) / x.std(0)
  half = len(num) // 2
  for name, model in (
    ('boosted', ensemble.HistGradientBoostingClassifier(max_iter=40)),
    ('logistic', linear_model.LogisticRegression()),
  ):
    model.fit(x[:half], lesion[:half])
    score = model.predict_proba(x[half:])[:, 1]
    scores[name] = metrics.roc_auc_score(lesion[half:], score)
  return scores


def test_decisions_do_not_tell_which_images_have_lesions():
  """An AUROC of 0.5 is chance; 20,000 held out give a deviation of 0.004."""
  boxes, num = random_boxes(np.random.default_rng(0), 40_000, share=0.5)
  lenders = boxes[num > 0], num[num > 0]
  scores = lesion_aurocs(boxes, num, lenders)
  assert max(scores.values()) <= 0.52, scores
  # The same scores do find a law that depends on the lesions: here
  # lesion-free images are lent a box that binds next to nothing.
  point = np.full((1, 4, 4), 0.5, np.float32), np.ones(1, np.int32)
  scores = lesion_aurocs(boxes[:10_000], num[:10_000], point)
  assert scores['area'] > 0.55 and scores['boosted'] > 0.6, scores


def test_keeping_lesions_without_lenders_is_refused():
  settings = augment.Augmentation(keep_lesions=True)
  with pytest.raises(ValueError, match='lenders'):
    augment.draw(np.random.default_rng(0), *NO_BOXES, settings, 1)


def test_a_set_without_lesions_draws_plain_crops():
  plain = augment.Augmentation()
  keep = dataclasses.replace(plain, keep_lesions=True)
  nobody = np.zeros((0, 1, 4), np.float32), np.zeros(0, np.int32)
  first = augment.draw(np.random.default_rng(0), *NO_BOXES, plain, 2)
  second = augment.draw(np.random.default_rng(0), *NO_BOXES, keep, 2, nobody)
  np.testing.assert_allclose(first['affine'], second['affine'], atol=1e-6)


@pytest.mark.parametrize(
  'field, value',
  [
    ('flip', 1.5),
    ('aspect', 0.5),
    ('scale', (0.0, 1.0)),
    ('scale', (0.9, 0.5)),
    ('blur_sigma', (0.1, 5.0)),
    ('noise_std', (-1.0, 2.0)),
  ],
)
def test_a_setting_out_of_range_is_refused_by_name(field, value):
  with pytest.raises(ValueError, match=f'augment.{field} is '):
    augment.Augmentation(**{field: value})


# The host's render.


@pytest.mark.parametrize('side', [90, 128])
def test_identity_returns_the_image(side):
  images = np.random.default_rng(0).integers(
    0, 256, (2, side, side), dtype=np.uint8
  )
  views = augment.render_host(images, augment.identity(2, 2), side)
  assert views.dtype == np.uint8
  np.testing.assert_array_equal(views, np.stack([images, images], 1))


def test_a_drawn_flip_is_exact():
  images = np.random.default_rng(0).integers(0, 256, (3, 97, 97), np.uint8)
  boxes, num = np.zeros((3, 1, 4), np.float32), np.zeros(3, np.int32)
  settings = dataclasses.replace(STILL, flip=1)
  drawn = augment.draw(np.random.default_rng(0), boxes, num, settings, 1)
  views = augment.render_host(images, drawn, 97)
  np.testing.assert_array_equal(views[:, 0], images[:, :, ::-1])


def test_a_positive_quarter_turn_is_counter_clockwise():
  image = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
  view = augment.render_host(image, decisions_of(affine_of(degrees=90)), 64)
  np.testing.assert_array_equal(view[0, 0], np.rot90(image[0]))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('degrees', [-17.0, 9.0])
def test_crop_flip_and_turn_move_a_spot_as_documented(flip, degrees):
  """The spot's centre of mass lands where the inverse steps put it."""
  spot = np.array([0.45, 0.62])
  x, y = np.meshgrid((np.arange(256) + 0.5) / 256, (np.arange(256) + 0.5) / 256)
  image = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 2e-3)
  width, height, center = 0.7, 0.8, np.array([0.48, 0.53])
  affine = affine_of(width, height, center, flip, degrees)
  view = augment.render_host(
    image[None].astype(np.uint8), decisions_of(affine), 128
  )[0, 0]

  place = (spot - center) / [width, height]  # crop
  if flip:
    place[0] = -place[0]
  t = math.radians(degrees)  # turned counter-clockwise, with y downwards
  place = 0.5 + np.array(
    [
      place[0] * math.cos(t) + place[1] * math.sin(t),
      place[1] * math.cos(t) - place[0] * math.sin(t),
    ]
  )
  row, column = ndimage.center_of_mass(view.astype(np.float64))
  found = (np.array([column, row]) + 0.5) / 128
  np.testing.assert_allclose(found, place, atol=0.1 / 128)


def test_a_crop_shows_its_part_of_a_ramp():
  ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))[None]
  affine = affine_of(width=0.5, height=0.5, center=(0.375, 0.5))
  view = augment.render_host(ramp, decisions_of(affine), 128)[0, 0]
  # Columns 32..159 of the source, one to one.
  np.testing.assert_array_equal(
    view, np.tile(np.arange(32, 160), (128, 1)).astype(np.uint8)
  )


def test_outside_the_source_is_black():
  white = np.full((1, 128, 128), 255, np.uint8)
  affine = affine_of(width=2, height=2)
  view = augment.render_host(white, decisions_of(affine), 128)[0, 0]
  inside = np.zeros((128, 128), np.uint8)
  inside[32:96, 32:96] = 255
  np.testing.assert_array_equal(view, inside)


def test_a_much_larger_source_is_averaged_not_skipped():
  stripes = np.full((1, 192, 192), 150, np.uint8)
  stripes[:, :, 1::3] = 0  # exactly where single reads would fall
  view = augment.render_host(stripes, augment.identity(1), 64)
  # 2 x 2 reads lie 3/4 of a pixel beside the stripes; the true mean is 100.
  assert np.abs(view - 0.75 * 150).max() <= 0.5
  assert [augment.subsamples(256, size) for size in (128, 192, 224, 256)] == [
    2,
    2,
    1,
    1,
  ]


def test_intensity_is_a_gain_about_mid_grey_and_a_bias():
  image = np.arange(256, dtype=np.uint8).repeat(256).reshape(1, 256, 256)
  decisions = augment.identity(1)
  decisions['gain'][:], decisions['bias'][:] = 1.2, -20
  expected = (1.2 * (np.arange(256) - 127.5) + 127.5 - 20).clip(0, 255)
  view = augment.render_host(image, decisions, 256)[0, 0]
  assert np.abs(view[:, 0] - expected).max() < 0.5 + 1e-3  # rounding to levels


@pytest.mark.parametrize('sigma', [0.3, 1.0, 2.0])
def test_blur_is_a_truncated_gaussian_with_replicated_borders(sigma):
  image = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
  decisions = augment.identity(1)
  decisions['blur'][:] = sigma
  view = augment.render_host(image, decisions, 64)[0, 0]
  expected = ndimage.gaussian_filter(
    image[0].astype(np.float64),
    sigma,
    mode='nearest',
    radius=augment.BLUR_RADIUS,
  )
  assert np.abs(view - expected).max() < 0.5 + 1e-3  # rounding to levels


def test_noise_is_added_after_the_blur_and_clipped_last():
  image = np.full((1, 64, 64), 250, np.uint8)
  decisions = augment.identity(1)
  decisions['blur'][:], decisions['noise'][:] = 1.5, 20
  decisions['noise_seed'][:] = 5
  view = augment.render_host(image, decisions, 64)[0, 0]
  noise = augment.noise(np, np.uint32(5), 64)
  np.testing.assert_array_equal(view, np.rint(250 + 20 * noise).clip(0, 255))
  assert view.max() == 255


# Noise.


def test_noise_is_the_documented_hash():
  def mix(h):
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)

  draw = random.Random(0)
  seed = draw.getrandbits(32)
  field = augment.noise(np, np.uint32(seed), 48)
  for _ in range(50):
    row, column = draw.randrange(48), draw.randrange(48)
    total = sum(mix(mix(row * 48 + column) ^ seed).to_bytes(4, 'big'))
    expected = (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)
    assert field[row, column] == pytest.approx(expected, abs=1e-6)


def test_noise_is_white_and_standard():
  seeds = np.array([[0, 1], [2, 2**31], [77, 2**32 - 1]], np.uint32)
  field = augment.noise(np, seeds, 128).astype(np.float64)  # (3, 2, 128, 128)
  assert field.shape == (3, 2, 128, 128)
  one = field.reshape(6, -1)
  error = 4 / 128  # 4 deviations of a mean of 128^2 independent values
  assert np.abs(one.mean(1)).max() < error
  assert np.abs(one.var(1) - 1).max() < error
  # Of the sum of four bytes: 3 - 1.2 / 4.
  assert np.abs((one**4).mean() - 2.7) < 0.1
  assert np.abs(np.corrcoef(one) - np.eye(6)).max() < error
  for step in ((0, 1), (1, 0), (1, 1), (0, 2), (0, 64)):
    moved = np.roll(field, step, (-2, -1))
    assert np.abs((field * moved).mean((-2, -1))).max() < error
  # No seed or column stands out.
  assert np.abs(field.mean(-2)).max() < 6 / math.sqrt(128)


# Masks.

STAGES_112 = {'stage1': 28, 'stage2': 14, 'stage3': 7, 'stage4': 4}
STAGES_224 = {'stage1': 56, 'stage2': 28, 'stage3': 14, 'stage4': 7}
ODD = {'stage1': 24, 'stage2': 9}


def lesion_views(count, seed=0):
  """Turned crops of overlapping and border boxes: boxes, num, affine."""
  rng = np.random.default_rng(seed)
  boxes, num = random_boxes(rng, count, most=3)
  boxes[0], num[0] = [[0.3, 0.3, 0.6, 0.6], [0.4, 0.2, 0.7, 0.5], [0] * 4], 2
  boxes[1, 0], num[1] = (0, 0, 0.3, 1), 1  # along the image's border
  num[2] = 0
  settings = augment.Augmentation(scale=(0.3, 0.8), rotation=25)
  affine = augment.draw(rng, boxes, num, settings, 1)['affine'][:, 0]
  return boxes, num, affine


def union_in_output(boxes, affine):
  return shapely.union_all(
    [shapely.Polygon(to_output(affine, corners(box))) for box in boxes]
  )


def cells_of(side):
  low = np.arange(side) / side
  x, y = np.meshgrid(low, low)
  return shapely.box(x, y, x + 1 / side, y + 1 / side)  # (side, side)


def edges_of(polygons):
  rings = shapely.get_rings(shapely.get_parts(polygons))
  points = [shapely.get_coordinates(ring) for ring in rings]
  return shapely.linestrings(
    np.concatenate([np.stack([p[:-1], p[1:]], 1) for p in points])
  )


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224, ODD])
def test_area_masks_are_the_exact_covered_shares(stages):
  """Up to 4 x 4 sampling: a straight edge crosses at most 7 of a cell's 16
  sub-cells, and where it misjudges one, it is by half of it at most.
  """
  boxes, num, affine = lesion_views(8)
  masks = augment.masks_host(boxes, num, affine, stages)
  frame = shapely.box(0, 0, 1, 1)
  step = 1 / (4 * max(stages.values()))
  gaps = []
  for b in range(len(num)):
    if not num[b]:
      continue
    union = union_in_output(boxes[b, : num[b]], affine[b])
    shapely.prepare(union)
    inside = union.intersection(frame)
    edges = edges_of(union)
    for name, side in stages.items():
      cells = cells_of(side)
      exact = shapely.area(shapely.intersection(union, cells)) * side**2
      crossing = shapely.intersects(edges[:, None, None], cells).sum(0)
      gap = np.abs(masks[name][b] - exact)
      assert (gap <= crossing * 7 / 32 + 1e-5).all()
      # The same argument along the whole outline.
      total = abs(masks[name][b].mean() - inside.area)
      assert total <= inside.length * step / math.sqrt(2) + 20 * step**2
      gaps.append(total)
  assert np.mean(gaps) < 1e-3 and max(gaps) < 4e-3  # shares of the frame


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224])
def test_binary_masks_tell_whether_a_cell_centre_is_covered(stages):
  boxes, num, affine = lesion_views(8)
  masks = augment.masks_host(boxes, num, affine, stages, kind='binary')
  for b in range(len(num)):
    union = union_in_output(boxes[b, : num[b]], affine[b])
    for name, side in stages.items():
      x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2)
      covered = shapely.contains_xy(union, x, y)
      # float32 may decide otherwise only on the outline itself.
      sure = shapely.distance(union.boundary, shapely.points(x, y)) > 1e-6
      sure |= num[b] == 0
      assert sure.mean() > 0.99
      np.testing.assert_array_equal(masks[name][b][sure], covered[sure])


def test_overlapping_boxes_count_once():
  box = [0.25, 0.25, 0.75, 0.5]
  affine = augment.identity(2)['affine'][:, 0]
  boxes = np.array([[box, box], [box, [0] * 4]], np.float32)
  masks = augment.masks_host(boxes, np.array([2, 1]), affine, STAGES_112)
  for mask in masks.values():
    np.testing.assert_array_equal(mask[0], mask[1])
    assert mask.max() == 1
  assert masks['stage1'][0].mean() == pytest.approx(0.125)


def test_padding_is_no_box():
  affine = augment.identity(1)['affine'][:, 0]
  boxes = np.array([[[0, 0, 1, 1]]], np.float32)
  for kind in ('area', 'binary'):
    masks = augment.masks_host(boxes, np.array([0]), affine, STAGES_112, kind)
    assert {name: mask.shape for name, mask in masks.items()} == {
      name: (1, side, side) for name, side in STAGES_112.items()
    }
    assert all((mask == 0).all() for mask in masks.values())


def test_the_mask_lies_on_the_pixels_it_belongs_to():
  """A white box on black, rendered, is its own mask at full resolution."""
  boxes = np.array([[[0.25, 0.375, 0.5, 0.75]]], np.float32)
  image = np.zeros((1, 256, 256), np.uint8)
  image[0, 96:192, 64:128] = 255
  affine = affine_of(0.8, 0.7, (0.4, 0.55), flip=True, degrees=12)
  view = augment.render_host(image, decisions_of(affine), 256)[0, 0]
  mask = augment.masks_host(
    boxes, np.array([1]), affine[None].astype(np.float32), {'pixels': 256}
  )['pixels'][0]
  # They differ on the outline alone: a bilinear edge is a pixel wide.
  assert np.abs(view / 255 - mask).max() < 0.6
  assert np.abs(view / 255 - mask).mean() < 0.005
  assert abs(view.mean() / 255 - mask.mean()) < 1e-3


def test_an_unknown_kind_of_mask_is_refused_by_name():
  boxes, num, affine = lesion_views(4)
  with pytest.raises(ValueError, match=r'mgacr\.mask is .soft.'):
    augment.masks_host(boxes, num, affine, STAGES_112, kind='soft')
