"""Augmentation on the device: decisions carried out in JAX.

The twin of render_host: the same maps, order, border and noise (decisions.py
has them), inside the jitted step. The host then sends one byte a pixel of the
STORED image, whatever the number of views.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dpjax.data.feed import render_common


def render(
  images: jax.Array, decisions: Mapping[str, jax.Array], size: int
) -> jax.Array:
  """Renders the decided views.

  Args:
    images: (B, S, S) uint8.
    decisions: from decisions.draw or decisions.identity, leading with (B, V).
    size: side of the views in pixels.

  Returns:
    (B, V, size, size) float32 in 0..255, not rounded; without gradients.
  """
  views = _resample(images, decisions['affine'], size)
  gain, bias, std = (
    decisions[name][..., None, None] for name in ('gain', 'bias', 'noise')
  )
  views = views * gain + (
    render_common.MID_GREY - gain * render_common.MID_GREY + bias
  )
  taps = render_common.blur_taps(jnp, decisions['blur'])
  views = _blur(_blur(views, taps, axis=2), taps, axis=3)
  views = views + std * render_common.noise(jnp, decisions['noise_seed'], size)
  return jax.lax.stop_gradient(jnp.clip(views, 0, 255))


def plain(images: jax.Array, size: int) -> jax.Array:
  """The whole images, as `render` shows them under decisions.identity.

  Two products of matrices, so that all platforms, and an exported network,
  have the same numbers. What is not augmented comes by this way only, whoever
  renders the augmented images.

  Args:
    images: (B, S, S) uint8.
    size: side of the views in pixels.

  Returns:
    (B, size, size) float32 in 0..255, not rounded.
  """
  grey = images.astype(jnp.float32)
  if images.shape[-1] == size:
    return grey
  weights = render_common.plain_weights(images.shape[-1], size)
  exact = jax.lax.Precision.HIGHEST
  rows = jnp.matmul(weights, grey, precision=exact)
  return jnp.matmul(rows, weights.T, precision=exact)


def _resample(images, affine, size):
  """Bilinear reads of (B, S, S) uint8 under (B, V, 2, 3)."""
  batch, source, _ = images.shape
  n = render_common.subsamples(source, size)
  # render_common.pixel_affine in fixed point. A compiler may compute one float
  # twice, with and without fused multiply-add; where a pixel's floor and its
  # fraction come from the two, a wrong neighbour is read (seen on the CPU).
  # Integers are the same however often they are computed, and each product
  # below is rounded once. Room for coordinates of up to 8 sides.
  bits = 28 - (source - 1).bit_length()
  one = 1 << bits

  def fixed(values):
    return jnp.round(values).astype(jnp.int32)

  linear = fixed(affine[..., :2] * (one * source / (n * size)))
  offset = fixed(affine[..., 2] * (one * source))
  offset = offset + (linear.sum(-1) >> 1) - one // 2

  # The four neighbours of a read packed into one word: one gather, not four.
  # A black rim stands for everything outside.
  rim = jnp.pad(images, ((0, 0), (1, 1), (1, 1))).astype(jnp.uint32)
  words = (
    rim[:, :-1, :-1]
    | (rim[:, :-1, 1:] << 8)
    | (rim[:, 1:, :-1] << 16)
    | (rim[:, 1:, 1:] << 24)
  ).reshape(batch, -1)  # (B, (S + 1)^2)

  def split(x):
    """The pixel at or before x, from -1 to S - 1, and the fraction beyond."""
    x = jnp.clip(x, -one, source * one)
    whole = jnp.minimum(x >> bits, source - 1)
    return whole, (x - whole * one).astype(jnp.float32) * (1 / one)

  def read(x, y):
    """Bilinear values at x, y in source pixels / one, (B, V, size, size)."""
    left, x = split(x)
    top, y = split(y)
    index = (top + 1) * (source + 1) + left + 1
    word = jnp.take_along_axis(
      words, index.reshape(batch, -1), axis=1, mode='promise_in_bounds'
    ).reshape(index.shape)
    tap = [
      ((word >> shift) & 0xFF).astype(jnp.float32) for shift in (0, 8, 16, 24)
    ]
    upper = tap[0] + (tap[1] - tap[0]) * x
    lower = tap[2] + (tap[3] - tap[2]) * x
    return upper + (lower - upper) * y

  fine = n * np.arange(size, dtype=np.int32)
  column, row = fine[None, None, None, :], fine[None, None, :, None]
  reads = [
    read(*render_common.map_points(linear, offset, column + j, row + i))
    for i in range(n)
    for j in range(n)
  ]
  return sum(reads) / (n * n)


def _blur(views, taps, axis):
  """Convolves (B, V, h, w) along an axis with its own taps (B, V, taps)."""
  size, radius = views.shape[axis], render_common.BLUR_RADIUS
  widths = [(0, 0)] * 4
  widths[axis] = (radius, radius)
  padded = jnp.pad(views, widths, mode='edge')
  return sum(
    jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
    * taps[..., k, None, None]
    for k in range(2 * radius + 1)
  )
