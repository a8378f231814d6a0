"""The decisions: their law, and what they must not tell."""

import dataclasses
import math

import numpy as np
import pytest
from sklearn import ensemble, linear_model, metrics

from dpjax.data.feed import decisions, render_common
from tests.data.feed import drawn_views


def test_decisions_lead_with_images_and_views():
  boxes, num = drawn_views.random_boxes(np.random.default_rng(0), 5)
  drawn = decisions.draw(
    np.random.default_rng(1), boxes, num, drawn_views.USUAL, 3
  )
  for found in (drawn, decisions.identity(5, 3)):
    assert found['affine'].shape == (5, 3, 2, 3)
    assert found['noise_seed'].dtype == np.uint32
    for name in ('gain', 'bias', 'blur', 'noise', 'noise_seed'):
      assert found[name].shape == (5, 3)
    for name in ('affine', 'gain', 'bias', 'blur', 'noise'):
      assert found[name].dtype == np.float32


def test_the_same_generator_draws_the_same_decisions():
  boxes, num = drawn_views.random_boxes(np.random.default_rng(0), 16, share=0.5)
  donors = boxes[num > 0], num[num > 0]
  settings = dataclasses.replace(drawn_views.USUAL, keep_lesions=True)
  first, again = (
    decisions.draw(np.random.default_rng(7), boxes, num, settings, 2, donors)
    for _ in range(2)
  )
  other = decisions.draw(
    np.random.default_rng(8), boxes, num, settings, 2, donors
  )
  for name in first:
    np.testing.assert_array_equal(first[name], again[name])
    assert (first[name] != other[name]).any()


def test_boxes_shift_no_random_number():
  """All but the crop, and what comes after, is the same for any boxes."""
  boxes, num = drawn_views.random_boxes(np.random.default_rng(0), 64)
  settings = dataclasses.replace(drawn_views.USUAL, keep_lesions=True)
  with_boxes, without = np.random.default_rng(3), np.random.default_rng(3)
  first = decisions.draw(with_boxes, boxes, num, settings, 2, (boxes, num))
  second = decisions.draw(without, boxes, 0 * num, settings, 2, (boxes, num))
  for name in ('gain', 'bias', 'blur', 'noise', 'noise_seed'):
    np.testing.assert_array_equal(first[name], second[name])
  assert with_boxes.random() == without.random()


def test_views_and_images_are_drawn_independently():
  drawn = decisions.draw(
    np.random.default_rng(0),
    np.zeros((4000, 1, 4), np.float32),
    np.zeros(4000, np.int32),
    drawn_views.USUAL,
    2,
  )
  for values in (drawn['gain'], drawn['affine'][..., 0, 2]):
    # 4 deviations of a correlation of 4000 independent pairs.
    assert abs(np.corrcoef(values[:, 0], values[:, 1])[0, 1]) < 0.064
    assert abs(np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]) < 0.064


@pytest.mark.parametrize('scale', [(0.3, 0.7), (0.5, 1.0)])
def test_plain_crops_have_their_area_their_ratio_and_stay_inside(scale):
  count = 20_000
  settings = dataclasses.replace(
    drawn_views.STILL, scale=scale, aspect=1.5, flip=0.5
  )
  affine = decisions.draw(
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
  edges = affine @ np.array([[0, 1], [0, 1], [1, 1]])  # two drawn_views.corners
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
  settings = drawn_views.USUAL
  drawn = decisions.draw(
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
  boxes, num = drawn_views.random_boxes(np.random.default_rng(0), 2000)
  boxes[:200, 0], num[:200] = (0, 0, 1, 1), 1  # the hardest: the whole image
  settings = dataclasses.replace(
    drawn_views.USUAL, scale=(0.2, 1), rotation=rotation, keep_lesions=True
  )
  drawn = decisions.draw(
    np.random.default_rng(1), boxes, num, settings, 2, (boxes, num)
  )
  for b in range(len(num)):
    for affine in drawn['affine'][b]:
      found = drawn_views.to_output(
        affine, drawn_views.corners(boxes[b, : num[b]])
      )
      assert found.min() > -1e-5 and found.max() < 1 + 1e-5


def test_keeping_lesions_leaves_a_crop_that_holds_them_alone():
  boxes, num = drawn_views.random_boxes(np.random.default_rng(0), 3000, most=1)
  plain = drawn_views.USUAL
  keep = dataclasses.replace(plain, keep_lesions=True)
  first = decisions.draw(np.random.default_rng(1), boxes, num, plain, 1)
  second = decisions.draw(
    np.random.default_rng(1), boxes, num, keep, 1, (boxes, num)
  )
  found = np.stack(
    [
      drawn_views.to_output(affine, drawn_views.corners(box[0]))
      for affine, box in zip(first['affine'][:, 0], boxes, strict=True)
    ]
  )  # (B, 4, 2)
  held = ((found > 0) & (found < 1)).all((1, 2))
  same = np.isclose(first['affine'], second['affine'], atol=1e-6).all((1, 2, 3))
  assert 0.2 < held.mean() < 0.8  # both cases occur
  np.testing.assert_array_equal(same, held)


def crop_features(drawn):
  affine = drawn['affine'].reshape(-1, 2, 3).astype(np.float64)
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
    named[name] = drawn[name].reshape(-1)
  return {name: np.asarray(x, np.float64) for name, x in named.items()}


def lesion_aurocs(boxes, num, donors):
  """How well the drawn alone tell which images have a lesion."""
  settings = dataclasses.replace(
    drawn_views.USUAL, scale=(0.3, 1), keep_lesions=True
  )
  drawn = decisions.draw(
    np.random.default_rng(11), boxes, num, settings, 1, donors
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
  boxes, num = drawn_views.random_boxes(
    np.random.default_rng(0), 40_000, share=0.5
  )
  donors = boxes[num > 0], num[num > 0]
  scores = lesion_aurocs(boxes, num, donors)
  assert max(scores.values()) <= 0.52, scores
  # The same scores do find a law that depends on the lesions: here
  # lesion-free images are lent a box that binds next to nothing.
  point = np.full((1, 4, 4), 0.5, np.float32), np.ones(1, np.int32)
  scores = lesion_aurocs(boxes[:10_000], num[:10_000], point)
  assert scores['area'] > 0.55 and scores['boosted'] > 0.6, scores


def test_keeping_lesions_without_donors_is_refused():
  settings = dataclasses.replace(drawn_views.USUAL, keep_lesions=True)
  with pytest.raises(ValueError, match='donors'):
    decisions.draw(np.random.default_rng(0), *drawn_views.NO_BOXES, settings, 1)


def test_a_set_without_lesions_draws_plain_crops():
  plain = drawn_views.USUAL
  keep = dataclasses.replace(plain, keep_lesions=True)
  nobody = np.zeros((0, 1, 4), np.float32), np.zeros(0, np.int32)
  first = decisions.draw(
    np.random.default_rng(0), *drawn_views.NO_BOXES, plain, 2
  )
  second = decisions.draw(
    np.random.default_rng(0), *drawn_views.NO_BOXES, keep, 2, nobody
  )
  np.testing.assert_allclose(first['affine'], second['affine'], atol=1e-6)


def test_a_blur_that_the_renders_cannot_hold_is_refused():
  most = render_common.BLUR_RADIUS / 2
  dataclasses.replace(drawn_views.USUAL, blur_sigma=(0.1, most))
  with pytest.raises(ValueError, match=r'augment\.blur_sigma is '):
    dataclasses.replace(drawn_views.USUAL, blur_sigma=(0.1, most + 0.01))
