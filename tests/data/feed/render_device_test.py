"""The device's render against the host's, and against exact cases."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dpjax.data.feed import augment, render_device
from dpjax.data.sources import phantom

SIZE = 96


def film(rng, side=256):
  """Soft shadows, ribs, grain and a saturated side marker with hard edges."""
  y, x = np.mgrid[:side, :side] / side
  image = 120 + 90 * np.cos(5 * (x - 0.5)) * np.sin(3 * y)
  image += 25 * np.sin(60 * y + 20 * (x - 0.5) ** 2)
  image += ndimage.gaussian_filter(rng.normal(0, 200, x.shape), 5)
  image += rng.normal(0, 5, x.shape)
  image[20:40, 200:204] = image[36:40, 200:214] = 255
  return image.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def images():
  """Phantoms, films, and white noise, which no radiograph is as hard as."""
  rng = np.random.default_rng(0)
  return np.stack(
    [record.pixels() for record in phantom.read(50, 0)[:2]]
    + [film(rng), film(rng)]
    + [rng.integers(0, 256, (256, 256), np.uint8) for _ in range(2)]
  )


def lesion_views(count, views=1, seed=0, **changes):
  """Boxes (B, 3, 4), their number with some 0, and drawn decisions."""
  rng = np.random.default_rng(seed)
  side = rng.uniform(0.06, 0.5, (count, 3, 2))
  low = rng.uniform(0, 1, (count, 3, 2)) * (1 - side)
  boxes = np.concatenate([low, low + side], -1).astype(np.float32)
  num = (np.arange(count) % 4).astype(np.int32)
  boxes[np.arange(3) >= num[:, None]] = 0
  settings = augment.Augmentation(**changes)
  return boxes, num, augment.draw(rng, boxes, num, settings, views)


@functools.partial(jax.jit, static_argnums=2)
def device(images, decisions, size):
  return render_device.render(images, decisions, size)


def device_masks(stages, kind):
  return jax.jit(
    functools.partial(render_device.masks, stage_sizes=stages, kind=kind)
  )


@pytest.mark.parametrize('size', [128, 224, 256])
def test_both_renders_agree(images, size):
  """To a mean of 0.5 and a maximum of 2 grey levels: the host rounds to whole
  levels, a mean of 0.25; the rest is the rounding of coordinates.
  """
  _, _, decisions = lesion_views(
    len(images), 2, rotation=20, noise=0.7, scale=(0.2, 1)
  )
  on_host = augment.render_host(images, decisions, size)
  on_device = np.asarray(device(images, decisions, size))
  assert on_device.dtype == np.float32
  assert on_device.shape == (len(images), 2, size, size)
  assert on_device.min() >= 0 and on_device.max() <= 255
  gap = np.abs(on_host - on_device)
  assert gap.mean() < 0.5
  assert gap.max() < 2


def test_reads_that_fall_on_a_pixel_up_to_rounding_agree(images):
  """Where a coordinate is whole up to its last bit, its floor and its fraction
  must come from one value: else a neighbour is read with the wrong weight.
  """
  rng = np.random.default_rng(0)
  count, side, column = 64, 256, 200
  decisions = augment.identity(count)
  width = rng.uniform(0.5, 1.2, count).astype(np.float32)
  # Sheared by a pixel a row, one of the two reads a side of output column 100
  # falls on a source pixel in every row, but for rounding.
  offset = -(column + 0.5) * width.astype(np.float64) / side
  decisions['affine'][:, 0, 0, 0] = width
  decisions['affine'][:, 0, 0, 1] = 1
  decisions['affine'][:, 0, 0, 2] = offset
  noise = np.repeat(images[-1:], count, 0)
  gap = np.abs(
    augment.render_host(noise, decisions, side // 2)
    - np.asarray(device(noise, decisions, side // 2))
  )
  assert gap.max() < 2


@pytest.mark.parametrize('side', [90, 128])
def test_identity_returns_the_image(side):
  image = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
  views = device(image, augment.identity(2), side)
  np.testing.assert_array_equal(views[:, 0], image)


def test_a_flip_is_exact():
  image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE), np.uint8)
  decisions = augment.identity(1)
  decisions['affine'][0, 0, 0] = -1, 0, 1
  np.testing.assert_array_equal(
    device(image, decisions, SIZE)[0, 0], image[0, :, ::-1]
  )


def test_a_turn_moves_a_spot_as_documented():
  spot = np.array([0.35, 0.6])
  at = (np.arange(256) + 0.5) / 256
  image = 255 * np.exp(
    -((at[None, :] - spot[0]) ** 2 + (at[:, None] - spot[1]) ** 2) / 2e-3
  )
  t = math.radians(30)
  cos, sin = math.cos(t), math.sin(t)
  decisions = augment.identity(1)
  decisions['affine'][0, 0] = [
    [cos, -sin, 0.5 - (cos - sin) / 2],
    [sin, cos, 0.5 - (cos + sin) / 2],
  ]
  view = device(image[None].astype(np.uint8), decisions, 128)[0, 0]
  dx, dy = spot - 0.5
  # Counter-clockwise as seen, with y downwards.
  place = 0.5 + dx * cos + dy * sin, 0.5 + dy * cos - dx * sin
  row, column = ndimage.center_of_mass(np.asarray(view, np.float64))
  np.testing.assert_allclose(
    (np.array([column, row]) + 0.5) / 128, place, atol=0.1 / 128
  )


def test_outside_the_source_is_black():
  white = np.full((1, 64, 64), 255, np.uint8)
  decisions = augment.identity(1)
  decisions['affine'][:] = [[2, 0, -0.5], [0, 2, -0.5]]
  expected = np.zeros((64, 64))
  expected[16:48, 16:48] = 255
  np.testing.assert_array_equal(device(white, decisions, 64)[0, 0], expected)
  # However far outside.
  decisions['affine'][:] = [[1, 0, 3], [0, 1, -4]]
  np.testing.assert_array_equal(device(white, decisions, 64)[0, 0], 0)


def test_noise_has_the_same_bits_on_host_and_device():
  seeds = np.random.default_rng(0).integers(2**32, size=(2, 3), dtype=np.uint32)
  on_host = augment.noise(np, seeds, SIZE)
  on_device = jax.jit(lambda s: augment.noise(jnp, s, SIZE))(seeds)
  assert on_device.dtype == np.float32
  np.testing.assert_array_equal(
    on_host.view(np.uint32), np.asarray(on_device).view(np.uint32)
  )


def test_blur_taps_are_the_same_and_none_without_blur():
  sigma = np.array([[0, 0.1, 0.7], [1, 1.5, 2]], np.float32)
  on_host = augment.blur_taps(np, sigma)
  np.testing.assert_allclose(
    on_host, augment.blur_taps(jnp, jnp.asarray(sigma)), atol=1e-6
  )
  np.testing.assert_allclose(on_host.sum(-1), 1, atol=1e-6)
  delta = np.arange(-augment.BLUR_RADIUS, augment.BLUR_RADIUS + 1) == 0
  np.testing.assert_array_equal(on_host[0, 0], delta)


STAGES_112 = {'stage1': 28, 'stage2': 14, 'stage3': 7, 'stage4': 4}
STAGES_224 = {'stage1': 56, 'stage2': 28, 'stage3': 14, 'stage4': 7}
ODD = {'stage1': 24, 'stage2': 9}


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224, ODD])
@pytest.mark.parametrize('kind', ['area', 'binary'])
def test_both_masks_agree(stages, kind):
  boxes, num, decisions = lesion_views(16, rotation=25, scale=(0.3, 1))
  affine = decisions['affine'][:, 0]
  on_host = augment.masks_host(boxes, num, affine, stages, kind)
  on_device = device_masks(stages, kind)(boxes, num, affine)
  assert on_host.keys() == on_device.keys() == stages.keys()
  for name, side in stages.items():
    assert on_host[name].shape == on_device[name].shape == (16, side, side)
    assert on_host[name].dtype == on_device[name].dtype == np.float32
    # A point on an outline, up to float32, may count on one side only.
    differs = np.abs(on_host[name] - on_device[name]) > 1e-6
    assert differs.mean() < 1e-3
    assert 0 < on_host[name].mean() < 1


def test_padding_is_no_box():
  boxes = np.array([[[0, 0, 1, 1]]], np.float32)
  affine = augment.identity(1)['affine'][:, 0]
  for num, value in ((0, 0), (1, 1)):
    found = device_masks(STAGES_112, 'area')(boxes, np.array([num]), affine)
    for mask in found.values():
      np.testing.assert_array_equal(mask, value)


def test_an_unknown_kind_of_mask_is_refused_by_name():
  boxes, num, decisions = lesion_views(4)
  with pytest.raises(ValueError, match=r'mgacr\.mask is .soft.'):
    render_device.masks(
      boxes, num, decisions['affine'][:, 0], STAGES_112, 'soft'
    )


def test_no_gradient_flows_through_the_render(images):
  _, _, decisions = lesion_views(1, noise=1, blur=1)

  def total(gain):
    return render_device.render(
      jnp.asarray(images[:1]), {**decisions, 'gain': gain}, 32
    ).sum()

  np.testing.assert_array_equal(jax.jit(jax.grad(total))(decisions['gain']), 0)
