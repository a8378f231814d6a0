"""The host's render against exact cases."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import ndimage

from dpjax.data.feed import decisions, render_common, render_host
from tests.data.feed import drawn_views


@pytest.mark.parametrize('side', [90, 128])
def test_identity_returns_the_image(side):
  images = np.random.default_rng(0).integers(
    0, 256, (2, side, side), dtype=np.uint8
  )
  views = render_host.render(images, decisions.identity(2, 2), side)
  assert views.dtype == np.uint8
  np.testing.assert_array_equal(views, np.stack([images, images], 1))


def test_a_drawn_flip_is_exact():
  images = np.random.default_rng(0).integers(0, 256, (3, 97, 97), np.uint8)
  boxes, num = np.zeros((3, 1, 4), np.float32), np.zeros(3, np.int32)
  settings = dataclasses.replace(drawn_views.STILL, flip=1)
  drawn = decisions.draw(np.random.default_rng(0), boxes, num, settings, 1)
  views = render_host.render(images, drawn, 97)
  np.testing.assert_array_equal(views[:, 0], images[:, :, ::-1])


def test_a_positive_quarter_turn_is_counter_clockwise():
  image = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
  view = render_host.render(
    image, drawn_views.decisions_of(drawn_views.affine_of(degrees=90)), 64
  )
  np.testing.assert_array_equal(view[0, 0], np.rot90(image[0]))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('degrees', [-17.0, 9.0])
def test_crop_flip_and_turn_move_a_spot_as_documented(flip, degrees):
  """The spot's centre of mass lands where the inverse steps put it."""
  spot = np.array([0.45, 0.62])
  x, y = np.meshgrid((np.arange(256) + 0.5) / 256, (np.arange(256) + 0.5) / 256)
  image = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / 2e-3)
  width, height, center = 0.7, 0.8, np.array([0.48, 0.53])
  affine = drawn_views.affine_of(width, height, center, flip, degrees)
  view = render_host.render(
    image[None].astype(np.uint8), drawn_views.decisions_of(affine), 128
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
  affine = drawn_views.affine_of(width=0.5, height=0.5, center=(0.375, 0.5))
  view = render_host.render(ramp, drawn_views.decisions_of(affine), 128)[0, 0]
  # Columns 32..159 of the source, one to one.
  np.testing.assert_array_equal(
    view, np.tile(np.arange(32, 160), (128, 1)).astype(np.uint8)
  )


def test_outside_the_source_is_black():
  white = np.full((1, 128, 128), 255, np.uint8)
  affine = drawn_views.affine_of(width=2, height=2)
  view = render_host.render(white, drawn_views.decisions_of(affine), 128)[0, 0]
  inside = np.zeros((128, 128), np.uint8)
  inside[32:96, 32:96] = 255
  np.testing.assert_array_equal(view, inside)


def test_a_much_larger_source_is_averaged_not_skipped():
  stripes = np.full((1, 192, 192), 150, np.uint8)
  stripes[:, :, 1::3] = 0  # exactly where single reads would fall
  view = render_host.render(stripes, decisions.identity(1), 64)
  # 2 x 2 reads lie 3/4 of a pixel beside the stripes; the true mean is 100.
  assert np.abs(view - 0.75 * 150).max() <= 0.5
  assert [
    render_common.subsamples(256, size) for size in (128, 192, 224, 256)
  ] == [
    2,
    2,
    1,
    1,
  ]


def test_intensity_is_a_gain_about_mid_grey_and_a_bias():
  image = np.arange(256, dtype=np.uint8).repeat(256).reshape(1, 256, 256)
  drawn = decisions.identity(1)
  drawn['gain'][:], drawn['bias'][:] = 1.2, -20
  expected = (1.2 * (np.arange(256) - 127.5) + 127.5 - 20).clip(0, 255)
  view = render_host.render(image, drawn, 256)[0, 0]
  assert np.abs(view[:, 0] - expected).max() < 0.5 + 1e-3  # rounding to levels


@pytest.mark.parametrize('sigma', [0.3, 1.0, 2.0])
def test_blur_is_a_truncated_gaussian_with_replicated_borders(sigma):
  image = np.random.default_rng(0).integers(0, 256, (1, 64, 64), np.uint8)
  drawn = decisions.identity(1)
  drawn['blur'][:] = sigma
  view = render_host.render(image, drawn, 64)[0, 0]
  expected = ndimage.gaussian_filter(
    image[0].astype(np.float64),
    sigma,
    mode='nearest',
    radius=render_common.BLUR_RADIUS,
  )
  assert np.abs(view - expected).max() < 0.5 + 1e-3  # rounding to levels


def test_noise_is_added_after_the_blur_and_clipped_last():
  image = np.full((1, 64, 64), 250, np.uint8)
  drawn = decisions.identity(1)
  drawn['blur'][:], drawn['noise'][:] = 1.5, 20
  drawn['noise_seed'][:] = 5
  view = render_host.render(image, drawn, 64)[0, 0]
  noise = render_common.noise(np, np.uint32(5), 64)
  np.testing.assert_array_equal(view, np.rint(250 + 20 * noise).clip(0, 255))
  assert view.max() == 255
