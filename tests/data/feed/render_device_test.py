"""The device's render against the host's, and against exact cases."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from dpjax.data.feed import decisions, render_device, render_host
from dpjax.data.sources import phantom
from tests.data.feed import drawn_views

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


@functools.partial(jax.jit, static_argnums=2)
def device(images, drawn, size):
  return render_device.render(images, drawn, size)


@pytest.mark.parametrize('size', [128, 224, 256])
def test_both_renders_agree(images, size):
  """To a mean of 0.5 and a maximum of 2 grey levels: the host rounds to whole
  levels, a mean of 0.25; the rest is the rounding of coordinates.
  """
  _, _, drawn = drawn_views.lesion_views(
    len(images), 2, rotation=20, noise=0.7, scale=(0.2, 1)
  )
  on_host = render_host.render(images, drawn, size)
  on_device = np.asarray(device(images, drawn, size))
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
  drawn = decisions.identity(count)
  width = rng.uniform(0.5, 1.2, count).astype(np.float32)
  # Sheared by a pixel a row, one of the two reads a side of output column 100
  # falls on a source pixel in every row, but for rounding.
  offset = -(column + 0.5) * width.astype(np.float64) / side
  drawn['affine'][:, 0, 0, 0] = width
  drawn['affine'][:, 0, 0, 1] = 1
  drawn['affine'][:, 0, 0, 2] = offset
  noise = np.repeat(images[-1:], count, 0)
  gap = np.abs(
    render_host.render(noise, drawn, side // 2)
    - np.asarray(device(noise, drawn, side // 2))
  )
  assert gap.max() < 2


@pytest.mark.parametrize('side', [90, 128])
def test_identity_returns_the_image(side):
  image = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
  views = device(image, decisions.identity(2), side)
  np.testing.assert_array_equal(views[:, 0], image)


@pytest.mark.parametrize(
  ('stored', 'side'), [(96, 96), (128, 96), (256, 224), (300, 224), (48, 96)]
)
def test_a_plain_view_is_that_of_the_identity(stored, side):
  image = np.random.default_rng(0).integers(
    0, 256, (1, stored, stored), np.uint8
  )
  (found,) = np.asarray(render_device.plain(image, side))
  # Bilinear reads of double precision, black outside.
  n = 2 if stored > 1.3 * side else 1
  at = (np.arange(n * side) + 0.5) * stored / (n * side) - 0.5
  reads = ndimage.map_coordinates(
    image[0].astype(float), np.meshgrid(at, at, indexing='ij'), order=1,
    mode='grid-constant',
  )  # fmt: skip
  wanted = reads.reshape(side, n, side, n).mean((1, 3))
  np.testing.assert_allclose(found, wanted, atol=1e-4)
  # The reads of augmentation round their coordinates.
  by_reads = np.asarray(device(image, decisions.identity(1), side))[0, 0]
  np.testing.assert_allclose(found, by_reads, atol=0.1)
  if stored == side:
    np.testing.assert_array_equal(found, image[0])


def test_a_flip_is_exact():
  image = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE), np.uint8)
  drawn = decisions.identity(1)
  drawn['affine'][0, 0, 0] = -1, 0, 1
  np.testing.assert_array_equal(
    device(image, drawn, SIZE)[0, 0], image[0, :, ::-1]
  )


def test_a_turn_moves_a_spot_as_documented():
  spot = np.array([0.35, 0.6])
  at = (np.arange(256) + 0.5) / 256
  image = 255 * np.exp(
    -((at[None, :] - spot[0]) ** 2 + (at[:, None] - spot[1]) ** 2) / 2e-3
  )
  t = math.radians(30)
  cos, sin = math.cos(t), math.sin(t)
  drawn = decisions.identity(1)
  drawn['affine'][0, 0] = [
    [cos, -sin, 0.5 - (cos - sin) / 2],
    [sin, cos, 0.5 - (cos + sin) / 2],
  ]
  view = device(image[None].astype(np.uint8), drawn, 128)[0, 0]
  dx, dy = spot - 0.5
  # Counter-clockwise as seen, with y downwards.
  place = 0.5 + dx * cos + dy * sin, 0.5 + dy * cos - dx * sin
  row, column = ndimage.center_of_mass(np.asarray(view, np.float64))
  np.testing.assert_allclose(
    (np.array([column, row]) + 0.5) / 128, place, atol=0.1 / 128
  )


def test_outside_the_source_is_black():
  white = np.full((1, 64, 64), 255, np.uint8)
  drawn = decisions.identity(1)
  drawn['affine'][:] = [[2, 0, -0.5], [0, 2, -0.5]]
  expected = np.zeros((64, 64))
  expected[16:48, 16:48] = 255
  np.testing.assert_array_equal(device(white, drawn, 64)[0, 0], expected)
  # However far outside.
  drawn['affine'][:] = [[1, 0, 3], [0, 1, -4]]
  np.testing.assert_array_equal(device(white, drawn, 64)[0, 0], 0)


def test_no_gradient_flows_through_the_render(images):
  _, _, drawn = drawn_views.lesion_views(1, noise=1, blur=1)

  def total(gain):
    return render_device.render(
      jnp.asarray(images[:1]), {**drawn, 'gain': gain}, 32
    ).sum()

  np.testing.assert_array_equal(jax.jit(jax.grad(total))(drawn['gain']), 0)
