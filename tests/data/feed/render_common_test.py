"""What both renders compute alike: noise and blur."""

import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.data.feed import render_common


def test_noise_is_the_documented_hash():
  def mix(h):
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)

  draw = random.Random(0)
  seed = draw.getrandbits(32)
  field = render_common.noise(np, np.uint32(seed), 48)
  for _ in range(50):
    row, column = draw.randrange(48), draw.randrange(48)
    total = sum(mix(mix(row * 48 + column) ^ seed).to_bytes(4, 'big'))
    expected = (total - 510) / math.sqrt(4 * (256**2 - 1) / 12)
    assert field[row, column] == pytest.approx(expected, abs=1e-6)


def test_noise_is_white_and_standard():
  seeds = np.array([[0, 1], [2, 2**31], [77, 2**32 - 1]], np.uint32)
  field = render_common.noise(np, seeds, 128).astype(
    np.float64
  )  # (3, 2, 128, 128)
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


def test_noise_has_the_same_bits_on_host_and_device():
  seeds = np.random.default_rng(0).integers(2**32, size=(2, 3), dtype=np.uint32)
  on_host = render_common.noise(np, seeds, 96)
  on_device = jax.jit(lambda s: render_common.noise(jnp, s, 96))(seeds)
  assert on_device.dtype == np.float32
  np.testing.assert_array_equal(
    on_host.view(np.uint32), np.asarray(on_device).view(np.uint32)
  )


def test_blur_taps_are_the_same_and_none_without_blur():
  sigma = np.array([[0, 0.1, 0.7], [1, 1.5, 2]], np.float32)
  on_host = render_common.blur_taps(np, sigma)
  np.testing.assert_allclose(
    on_host, render_common.blur_taps(jnp, jnp.asarray(sigma)), atol=1e-6
  )
  np.testing.assert_allclose(on_host.sum(-1), 1, atol=1e-6)
  delta = (
    np.arange(-render_common.BLUR_RADIUS, render_common.BLUR_RADIUS + 1) == 0
  )
  np.testing.assert_array_equal(on_host[0, 0], delta)
